import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from palidecode import parse
from palidecode.errors import InputError
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.vocab import PALIGEMMA, loc_token, seg_token
from tests.samples import TOKENIZER


@pytest.fixture(scope="module", params=["real", "small"])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_tokenizer")


# --- Ids --------------------------------------------------------------------------------------

PUBLISHED = {
    "beach": [54901],
    "cow standing on the beach": [14706, 9980, 611, 573, 8318],
    "\n": [108],
    "<loc0000><loc1023>": [256_000, 257_023],
    "<seg000><seg127>": [257_024, 257_151],
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_the_published_ids(real_tokenizer, text):
    assert real_tokenizer.encode(text) == PUBLISHED[text]


def test_the_real_tokenizer_has_the_ids_that_are_our_defaults(real_tokenizer):
    assert real_tokenizer.vocabulary == PALIGEMMA
    assert real_tokenizer.image == 257_152
    assert real_tokenizer.last_id == 257_151


def test_the_ids_of_another_tokenizer_are_read_from_it(small_tokenizer):
    v = small_tokenizer.vocabulary
    assert (v.loc_offset, v.seg_offset) != (PALIGEMMA.loc_offset, PALIGEMMA.seg_offset)
    ids = [v.loc_offset + 7, v.seg_offset + 9]
    assert small_tokenizer.encode(loc_token(7) + seg_token(9)) == ids
    assert small_tokenizer.image == 1536 == small_tokenizer.last_id + 1


def test_a_prompt_is_bos_the_prompt_and_a_newline(real_tokenizer):
    words = [39208, 4401, 2161, 5929]  # detect, ▁cat, ▁;, ▁dog
    assert real_tokenizer.encode_prompt("detect cat ; dog") == [2, *words, 108]
    assert real_tokenizer.encode_prompt("") == [2, 108]


def test_loc_tokens_in_a_prompt_become_their_ids(tokenizer):
    ids = tokenizer.encode_prompt("describe <loc0001><loc1023>")
    first = tokenizer.vocabulary.loc_offset
    assert ids[-3:-1] == [first + 1, first + 1023]


@pytest.mark.parametrize("control", ["<bos>", "<eos>", "<pad>", "<image>"])
@pytest.mark.parametrize("prompt", ["detect {}", "detect cat{}dog", "{}detect cat"])
def test_a_prompt_that_spells_a_control_token_is_refused(tokenizer, prompt, control):
    with pytest.raises(InputError, match="spells a control token") as caught:
        tokenizer.encode_prompt(prompt.format(control))
    assert "\n" not in str(caught.value)


# --- And back ---------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<▁"), max_size=30)


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_decoding_gives_the_text_back(real_tokenizer, small_tokenizer, text):
    assert real_tokenizer.decode(real_tokenizer.encode(text)) == text
    assert small_tokenizer.decode(small_tokenizer.encode(text)) == text


def test_answers_come_back_and_control_tokens_are_left_out(tokenizer):
    text = "<loc0046><loc0538><loc0795><loc1022>" + "<seg127>" * 16 + " cat ; <loc0001> café, 猫"
    v = tokenizer.vocabulary
    ids = [v.bos, *tokenizer.encode(text), v.eos, v.pad, v.pad, tokenizer.image]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([]) == ""


def test_separators_are_the_tokens_written_with_a_semicolon(tokenizer):
    box = "<loc0001>" * 4
    written = tokenizer.encode(f"{box} cat ; {box} dog;{box}")
    separators = [tokenizer.is_separator(token) for token in written]
    assert sum(separators) == 2
    spelled = [tokenizer.decode([t]) for t, yes in zip(written, separators, strict=True) if yes]
    assert all(";" in text for text in spelled)
    assert not tokenizer.is_separator(10**9)


# --- Free labels ------------------------------------------------------------------------------


def test_label_tokens_are_the_words_and_nothing_that_means_something(tokenizer):
    first, inner, later, space = tokenizer.label_tokens
    assert {*first, *inner, space} <= set(later)
    assert not set(first) & set(inner)
    assert tokenizer.decode([space]) == " "
    assert set(tokenizer.encode(" cat")) <= set(first)
    assert set(tokenizer.encode(" red star")) <= set(later)
    v = tokenizer.vocabulary
    for barred in (v.eos, v.pad, v.bos, v.loc_offset, v.seg_offset, tokenizer.image):
        assert barred not in later
    for barred in "\n;<":
        assert not set(tokenizer.encode(barred)) & set(later.tolist())
    for token in first.tolist():
        text = tokenizer.decode([token])
        assert text[0] == " "
        assert text.strip(), token
    for token in inner.tolist():
        text = tokenizer.decode([token])
        assert text == text.strip() != "", token


def test_no_run_of_label_tokens_reads_as_anything_but_a_label(tokenizer):
    rng = np.random.default_rng(1)
    first, inner, later, space = tokenizer.label_tokens
    v = tokenizer.vocabulary
    box = [v.loc_offset + bin_ for bin_ in (1, 2, 900, 901)]
    # Bytes are few among many: half of the runs are made of the rarest tokens alone.
    bytes_ = [t for t in later.tolist() if _is_byte(tokenizer, t)]
    assert len(bytes_) == 128
    for turn in range(1500):
        pool = later if turn % 2 else bytes_
        begin = [rng.choice(first)] if turn % 3 else [space, rng.choice(inner)]
        label = [*begin, *rng.choice(pool, rng.integers(0, 12))]
        ids = [*box, *map(int, label)]
        text = tokenizer.decode(ids)
        by_text = parse(text)
        by_ids = parse(ids, vocabulary=v, detokenize=tokenizer.decode)
        assert by_text.issues == by_ids.issues == (), text
        assert len(by_text.objects) == len(by_ids.objects) == 1
        assert by_text.objects[0].label == by_ids.objects[0].label == text[36:].strip()
        assert by_text.objects[0].label


def _is_byte(tokenizer, token):
    return tokenizer._tokenizer.id_to_token(token).startswith("<0x")


# --- Files that are none ----------------------------------------------------------------------


def without(name):
    def change(data):
        kept = [token for token in data["added_tokens"] if token["content"] != name]
        return json.dumps(data | {"added_tokens": kept})

    return change


def swapped(data):
    tokens = {token["content"]: token for token in data["added_tokens"]}
    one, other = tokens["<loc0500>"], tokens["<loc0501>"]
    one["content"], other["content"] = other["content"], one["content"]
    return json.dumps(data)


WRONG = {
    "empty": (lambda data: "", "not a tokenizer file"),
    "cut short": (lambda data: json.dumps(data)[:9000], "not a tokenizer file"),
    "other JSON": (lambda data: '{"version": "1.0"}', "not a tokenizer file"),
    "a list": (lambda data: "[]", "not a tokenizer file"),
    "no loc token": (without("<loc0500>"), "<loc0500> is missing; not a PaliGemma tokenizer"),
    "no seg token": (without("<seg127>"), "<seg127> is missing; not a PaliGemma tokenizer"),
    "no control token": (
        lambda data: json.dumps(data).replace("<bos>", "<s>"),
        "<bos> is missing; not a PaliGemma tokenizer",
    ),
    "another order": (swapped, "<loc0000> … <loc1023> are not in a row"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_is_no_paligemma_tokenizer_is_refused(tmp_path, wrong):
    change, reason = WRONG[wrong]
    path = tmp_path / "tokenizer.json"
    path.write_text(change(json.loads(TOKENIZER.read_text())))
    with pytest.raises(InputError) as caught:
        Tokenizer.from_file(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: {reason}")
    assert "\n" not in said


def test_a_file_that_is_missing_a_folder_or_not_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file; put the checkpoint"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="not a tokenizer file"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a tokenizer file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_padding_and_truncation_that_a_file_asks_for_are_not_done(tmp_path, small_tokenizer):
    built = tokenizers.Tokenizer.from_file(str(TOKENIZER))
    built.enable_padding(length=20, pad_id=0, pad_token="<pad>")
    built.enable_truncation(max_length=3)
    built.save(str(tmp_path / "tokenizer.json"))
    read = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert read.encode("detect red star") == small_tokenizer.encode("detect red star")
