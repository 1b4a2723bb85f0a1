"""PaliDecoder on folders of tiny random models: pictures and prompts in, detections out."""

import pickle
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from palidecode.answers.parsing import parse
from palidecode.answers.scoring import RECIPES, Evidence
from palidecode.coco.writing import to_coco
from palidecode.errors import InputError
from palidecode.geometry.boxes import loc_to_xyxy
from palidecode.pipeline import AskOptions, PaliDecoder, UnreadablePictureWarning, asking
from palidecode.pipeline.reading import SUB_BIN_RADIUS, Generated
from palidecode.runtime.grammar import GrammarOptions
from tests.runtime.tiny_models import (
    PICTURES,
    ids_of,
    line,
    random_picture,
    same_answers,
    write_folder,
)

PROMPT = "cat ; red star"


@pytest.fixture(scope="module", params=[1, 2], ids=["gemma", "gemma2"])
def decoder(request, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("model"), request.param)
    return PaliDecoder.from_pretrained(folder, "float32", "cpu")


def same_detections(found, wanted):
    assert found.labels == wanted.labels
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=1e-4)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    np.testing.assert_array_equal(found.codes, wanted.codes)
    np.testing.assert_array_equal(found.image_index, wanted.image_index)
    np.testing.assert_array_equal(found.sizes, wanted.sizes)


# --- Pictures -----------------------------------------------------------------------------------


def test_pictures_may_be_images_paths_and_arrays(decoder, tmp_path):
    colours = np.asarray(PICTURES[0])
    grey = colours[:, :, 0].copy()
    clear = np.dstack([colours, colours[:, :, 1]])
    path = tmp_path / "a.png"
    PICTURES[0].save(path)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    groups = [
        [PICTURES[0], colours, path, str(path), Image.open(path)],
        [grey, Image.fromarray(grey), tmp_path / "grey.png", np.dstack([grey] * 3)],
        [clear, Image.fromarray(clear), tmp_path / "clear.png"],
    ]
    different = []
    for pictures in groups:
        found = decoder.generate(pictures, "detect cat", 12)
        assert {answer.size for answer in found} == {(70, 50)}
        assert not any(answer.error for answer in found)
        assert len({tuple(ids) for ids in ids_of(found)}) == 1
        different.append(found[0].logprobs[0])
    assert len({round(value, 6) for value in different}) == 3


@pytest.fixture
def looked_at(decoder):
    """Record the number of pictures in each call of the vision tower."""
    decoder.forget_pictures()
    calls = []
    hook = decoder.engine.model.vision.register_forward_hook(
        lambda module, inputs, output: calls.append(len(output))
    )
    yield calls
    hook.remove()


def test_one_picture_is_looked_at_once_for_many_prompts(decoder, looked_at):
    prompts = [f"detect {word}" for word in ("cat", "dog", "car", "key", "moon", "star", "tree")]
    found = decoder.generate(PICTURES[0], prompts, 6, batch_size=3)
    assert looked_at == [1]
    assert len(found) == 7
    decoder.generate(PICTURES[0], "describe", 6)
    decoder.detect(PICTURES[0].copy(), ["cat", "dog"], max_new_tokens=6)
    assert looked_at == [1]


def test_every_picture_of_a_batch_is_looked_at_once(decoder, looked_at):
    many = [random_picture(seed, (20, 20)) for seed in range(12)]
    decoder.detect(many, ["cat", "dog"], max_new_tokens=4, batch_size=5)
    assert sum(looked_at) == 12
    assert len(decoder._asker.features) == 12


def test_only_the_last_pictures_are_kept(decoder, monkeypatch):
    monkeypatch.setattr(asking, "_KEPT_TOKENS", 0)
    decoder.detect([random_picture(seed, (20, 20)) for seed in range(12)], "cat", max_new_tokens=2)
    assert len(decoder._asker.features) == 8


def cut_short(folder):
    PICTURES[0].save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    return folder / "cut.png"


BROKEN = {
    "missing": lambda folder: folder / "nothing.png",
    "cut short": cut_short,
    "no picture": lambda folder: Path(__file__),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_picture_that_cannot_be_read_leaves_the_others_alone(
    decoder, tmp_path, broken, batch_size
):
    bad = BROKEN[broken](tmp_path)
    pictures = [PICTURES[0], bad, PICTURES[1], PICTURES[2]]
    told = []
    options = {"max_new_tokens": 12, "batch_size": batch_size}
    with pytest.warns(UnreadablePictureWarning) as warned:
        found = decoder.generate(
            pictures, "detect cat", on_token=lambda *call: told.append(call), **options
        )
    assert len(warned) == 1
    assert str(warned[0].message) == found[1].error
    wanted = decoder.generate(PICTURES, "detect cat", **options)
    same_answers([found[0], *found[2:]], wanted)
    assert found[1] == Generated("detect cat", error=found[1].error, name=str(bad))
    assert found[1].error
    assert {row for row, _, _ in told} == {0, 2, 3}
    for row, answer in enumerate(found):
        assert [token for at, token, _ in told if at == row] == answer.token_ids


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_detections_of_a_batch_with_a_picture_that_cannot_be_read(decoder, tmp_path, batch_size):
    pictures = [PICTURES[0], tmp_path / "no.png", PICTURES[1]]
    options = {"max_new_tokens": 40, "sub_bin": True, "batch_size": batch_size}
    with pytest.warns(UnreadablePictureWarning) as warned:
        found = decoder.detect(pictures, ["cat", "dog", "key"], **options)
    assert len(warned) == 1
    assert found.sizes.tolist() == [[70, 50], [0, 0], [40, 90]]
    assert 1 not in found.image_index
    wanted = decoder.detect([PICTURES[0], PICTURES[1]], ["cat", "dog", "key"], **options)
    assert set(wanted.image_index) == {0, 1}
    same_detections(found.image(0) + found.image(2), wanted)


def test_pictures_keep_their_paths_as_names(decoder, tmp_path):
    PICTURES[0].save(tmp_path / "a.png")
    given = [tmp_path / "a.png", PICTURES[1], Image.open(tmp_path / "a.png")]
    path = str(tmp_path / "a.png")
    found = decoder.detect(given, ["cat", "dog"], max_new_tokens=20)
    assert found.names == [path, "", path]
    images = to_coco(found)["images"]
    assert [image["file_name"] for image in images] == [path, "2", path]
    assert decoder.generate(given, "detect cat", max_new_tokens=4).names == found.names


def test_answers_have_the_verbs_of_detections(decoder, tmp_path):
    PICTURES[0].save(tmp_path / "a.png")
    pictures = [tmp_path / "a.png", PICTURES[1]]
    answers = decoder.generate(pictures, "detect cat", 40, grammar=True, over="allowed")
    found = decoder.detect(pictures, "cat", max_new_tokens=40)
    assert isinstance(answers, list)
    assert answers[0].prompt == "detect cat"
    same_detections(answers.detections, found)
    assert len(found) > 0
    assert answers.to_dict() == answers.detections.to_dict()
    assert answers.to_pandas().shape == (len(found), 10)
    assert len(answers.filter(label="no such label")) == 0
    assert len(answers.nms(1.0)) == len(found)
    answers.to_csv(tmp_path / "objects.csv")
    assert (tmp_path / "objects.csv").read_text().count("\n") == len(found) + 1
    assert len(answers.plot().axes) == 2
    assert [answers[-1], *answers[:1]] == [answers[1], answers[0]]
    assert answers[np.array([False, True])] == [answers[1]]
    assert answers.image(str(tmp_path / "a.png")) == [answers[0]]
    assert len((answers + answers[1:]).detections.sizes) == 3
    assert type(pickle.loads(pickle.dumps(answers))) is list
    lines = repr(answers).splitlines()
    assert lines[0] == "2 answers"
    assert lines[3].split()[:3] == ["#1", "detect", "cat"]
    assert answers._repr_html_().count("<table>") == 2


def test_without_a_prompt_the_models_own_classes_are_asked_for(decoder):
    known = copy(decoder)
    known.classes = ("cat", "red star")
    wanted = decoder.detect(PICTURES[0], PROMPT, max_new_tokens=30)
    same_detections(known.detect(PICTURES[0], max_new_tokens=30), wanted)
    assert known.segment(PICTURES[0], max_new_tokens=2).names == [""]
    with pytest.raises(InputError, match="nothing to detect: give a prompt"):
        decoder.detect(PICTURES[0])


def test_a_decoder_prints_what_it_is(decoder):
    known = copy(decoder)
    known.classes = tuple(f"class {n}" for n in range(22))
    lines = [line.split(maxsplit=1) for line in repr(known).splitlines()]
    assert lines[0] == ["PaliDecoder"]
    assert lines[1] == ["model", decoder.source]
    assert lines[2] == ["engine", "torch, float32, cpu"]
    assert lines[3][1].startswith("class 0, class 1, ")
    assert lines[3][1].endswith("class 19 and 2 more")
    assert repr(decoder).endswith("not listed")


def test_a_quantised_decoder_says_so():
    decoder = PaliDecoder.from_pretrained("demo", quantize="int8", device="cpu", engine="torch")
    assert "engine  torch, int8, cpu" in repr(decoder)


def test_pictures_none_of_which_can_be_read(decoder, tmp_path):
    with pytest.warns(UnreadablePictureWarning) as warned:
        found = decoder.detect([tmp_path / "a.png", tmp_path / "b.png"], "cat", sub_bin=True)
    assert len(warned) == 2
    assert len(found) == 0
    assert found.sizes.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 7), np.uint8), r"\(H, W\), \(H, W, 3\) or \(H, W, 4\), got \(4, 4, 7\)"),
        (np.full((4, 4, 3), 255.0), r"floats must be in \[0, 1\], got 255 … 255"),
        (np.zeros((4, 4, 3), np.int64), "must be uint8, or floats"),
        (torch.zeros(3, 4, 4), r"not Tensor; for a tensor: tensor.permute"),
        ("https://example.org/a.jpg", "download it first"),
        (7, "not int"),
    ],
)
def test_what_is_no_picture_at_all_raises(decoder, picture, message):
    with pytest.raises(InputError, match=message):
        decoder.detect([PICTURES[0], picture], "cat")


def test_floats_are_scaled(decoder):
    array = np.asarray(PICTURES[0])
    wanted = decoder.generate(array, "detect cat", max_new_tokens=12)
    same_answers(decoder.generate(array / 255, "detect cat", max_new_tokens=12), wanted)


def test_names_that_a_model_does_not_know_warn(tmp_path):
    folder = write_folder(tmp_path / "model")
    (folder / "palidecode.json").write_text('{"classes": ["cat", "dog"]}')
    known = PaliDecoder.from_pretrained(folder, "float32")
    with pytest.warns(UserWarning, match=r"'key': not among the classes .* \(cat, dog\)"):
        known.detect(PICTURES[0], ["cat ; key", "dog"], max_new_tokens=6)
    known.detect(PICTURES[0], "cat ; dog", max_new_tokens=6)


# --- Answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_batch_size_changes_nothing(decoder, temperature):
    prompts = ["detect cat", "segment red star", "describe", "detect dog ; key", "detect moon"]
    options = {"grammar": True, "temperature": temperature, "max_new_tokens": 30}
    wanted = decoder.generate(PICTURES[0], prompts, batch_size=8, **options)
    for batch_size in (1, 2):
        found = decoder.generate(PICTURES[0], prompts, batch_size=batch_size, **options)
        same_answers(found, wanted)


def test_one_prompt_asked_again_and_again_is_answered_differently_when_drawing(decoder):
    found = decoder.generate(
        PICTURES[0], ["describe"] * 6, 8, temperature=1.0, batch_size=2, seed=3
    )
    assert len({tuple(ids) for ids in ids_of(found)}) == 6


def test_texts_spell_the_ids_and_sizes_are_the_pictures(decoder):
    found = decoder.generate(PICTURES, "segment cat", 60, True)
    assert [answer.size for answer in found] == [(70, 50), (40, 90), (28, 28)]
    for answer in found:
        assert answer.finished
        assert answer.token_ids[-1] == decoder.tokenizer.vocabulary.eos
        assert decoder.tokenizer.encode(answer.text) == answer.token_ids[:-1]
        assert len(answer.logprobs) == len(answer.end_logprobs) == len(answer.token_ids)
        assert answer.loc_probabilities is None


def test_the_likeliest_bins_of_every_loc_token(decoder):
    (answer,) = decoder.generate(PICTURES[0], "detect cat", 30, True, loc_probabilities=True)
    v = decoder.tokenizer.vocabulary
    written = [t - v.loc_offset for t in answer.token_ids if 0 <= t - v.loc_offset < 1024]
    bins, shares = answer.top_locs(3)
    assert bins.shape == shares.shape == (len(written), 3)
    assert bins[:, 0].tolist() == written
    assert (np.diff(shares) <= 0).all()
    whole = answer.loc_probabilities
    for row, column in np.ndindex(bins.shape):
        assert shares[row, column] == whole[row, bins[row, column]]
        assert (whole[row] > shares[row, column]).sum() <= column
    (silent,) = decoder.generate(PICTURES[0], "detect cat", 1, True, loc_probabilities=True)
    assert silent.top_locs(3)[0].shape == (0, 3)
    with pytest.raises(InputError, match=r"generate\(…, loc_probabilities=True\)"):
        decoder.generate(PICTURES[0], "detect cat", 1)[0].top_locs(3)


def test_requests_that_make_no_sense_are_refused(decoder, tmp_path):
    def refused(*request, **options):
        with pytest.raises(InputError) as caught:
            decoder.generate(*request, **options)
        return line(caught)

    assert refused(PICTURES, ["a", "b"]).startswith("3 pictures and 2 prompts: give as many")
    assert refused(PICTURES, "a", batch_size=0) == "batch_size must be at least 1, got 0"
    assert refused(PICTURES, [3]) == "a prompt must be text, got int"
    assert refused(PICTURES, "a", temperature=-1).startswith("temperature must be 0 or more")
    assert "spells a control token" in refused(PICTURES, "detect <eos>")
    # Before any picture is opened: this one isn't there, and would warn.
    far = "detect " + "cat " * 9000
    assert "exceed the model's 8192" in refused(["no.png"] * 20, ["detect cat"] * 19 + [far])
    assert "exceed the model's 8192" in refused(tmp_path / "no.png", "detect cat", 8192)


def test_nothing_asked_is_nothing_answered(decoder):
    assert decoder.generate([], "detect cat") == []
    assert decoder.generate(PICTURES[0], []) == []
    found = decoder.detect([], "cat")
    assert len(found) == 0
    assert found.sizes.shape == (0, 2)


# --- Objects ------------------------------------------------------------------------------------


def test_a_prompt_may_name_its_task_or_not(decoder):
    options = {"max_new_tokens": 40, "temperature": 1.0}
    short = decoder.detect(PICTURES * 6, PROMPT, **options)
    long = decoder.detect(PICTURES * 6, f"detect {PROMPT}", **options)
    assert set(short.labels) == {"cat", "red star"}
    assert not short.has_mask.any()
    same_detections(long, short)
    with pytest.raises(InputError, match="asks to segment, the task is to detect"):
        decoder.detect(PICTURES, "segment cat")


@pytest.mark.parametrize("grammar", [True, False])
@pytest.mark.parametrize("prompt", ["", " ", "detect", ";", []])
def test_nothing_to_look_for_is_refused(decoder, prompt, grammar):
    with pytest.raises(InputError, match=r"asks for nothing|nothing to detect"):
        decoder.detect(PICTURES[0], prompt, grammar=grammar)


def test_several_prompts_are_put_together_by_picture(decoder):
    prompts = ["cat", "dog ; key", "moon"]
    found = decoder.segment(PICTURES, prompts, max_new_tokens=60, batch_size=4)
    assert found.sizes.tolist() == [[70, 50], [40, 90], [28, 28]]
    row = 0
    for number, picture in enumerate(PICTURES):
        for prompt in prompts:
            alone = decoder.segment(picture, prompt, max_new_tokens=60)
            part = slice(row, row + len(alone))
            assert found.labels[part] == alone.labels
            assert (found.image_index[part] == number).all()
            np.testing.assert_array_equal(found.xyxy[part], alone.xyxy)
            np.testing.assert_array_equal(found.codes[part], alone.codes)
            np.testing.assert_allclose(found.scores[part], alone.scores, atol=1e-5)
            row += len(alone)
    assert row == len(found) > 9


def test_classes_in_groups_are_separate_prompts_about_a_picture_that_is_seen_once(
    decoder, looked_at
):
    names = ["cat", "dog", "key", "moon", "red star"]
    options = AskOptions(max_new_tokens=60, classes_per_prompt=2)
    grouped = decoder.answers("segment", PICTURES, " ; ".join(names), options, batch_size=4)
    assert sum(looked_at) == len(PICTURES)
    groups = ["cat ; dog", "key ; moon", "red star"]
    plain = replace(options, classes_per_prompt=None)
    wanted = [decoder.answers("segment", p, text, plain)[0] for p in PICTURES for text in groups]
    same_answers(grouped, wanted)
    found = decoder.segment(PICTURES, names, classes_per_prompt=1, max_new_tokens=60)
    assert set(found.labels) == set(names)
    same_detections(decoder.segment(PICTURES, names, max_new_tokens=60), found)


def slow_objects(decoder, answer):
    """Label, bins, evidence and loc distributions of a grammatical answer, token by token."""
    v, place, found = decoder.tokenizer.vocabulary, 0, []
    ids, logprobs, end, loc = answer.token_ids, answer.logprobs, 0, 0
    while ids[place] != v.eos:
        item = SimpleNamespace(bins=[], words=[], end=answer.end_logprobs[end], where=[])
        numbers = {"loc": [], "label": [], "rest": []}
        while ids[place] != v.eos and not decoder.tokenizer.is_separator(ids[place]):
            kind = "label"
            if 0 <= ids[place] - v.loc_offset < 1024:
                kind = "loc"
                item.bins.append(ids[place] - v.loc_offset)
                item.where.append(loc)
                loc += 1
            elif 0 <= ids[place] - v.seg_offset < 128:
                kind = "rest"
            else:
                item.words.append(ids[place])
            numbers[kind].append(logprobs[place])
            place += 1
        end = place
        item.evidence = Evidence(**numbers, end=item.end)
        item.label = decoder.tokenizer.decode(item.words).strip()
        found.append(item)
        if ids[place] != v.eos:
            place += 2  # ▁; and ▁
    return found


@pytest.mark.parametrize("over", ["vocabulary", "allowed"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_scores_are_the_recipes_of_the_tokens_of_each_object(decoder, recipe, over):
    options = {"max_new_tokens": 80, "temperature": 1.0, "over": over}
    found = decoder.segment(PICTURES * 2, PROMPT, score=recipe, **options)
    answers = decoder.generate(PICTURES * 2, f"segment {PROMPT}", grammar=True, **options)
    items = [item for answer in answers for item in slow_objects(decoder, answer)]
    assert found.labels == [item.label for item in items]
    wanted = [RECIPES[recipe](item.evidence) for item in items]
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-4)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert len(found) > 6


def test_a_recipe_that_is_none_is_refused_before_anything_is_done(decoder):
    with pytest.raises(InputError, match="score must be one of"):
        decoder.detect("no.png", "cat", score="best")


def slow_place(mode, weights):
    near = range(max(0, mode - SUB_BIN_RADIUS), min(1023, mode + SUB_BIN_RADIUS) + 1)
    return sum(b * float(weights[b]) for b in near) / sum(float(weights[b]) for b in near)


def test_sub_bin_boxes_are_expectations_near_the_bins(decoder):
    options = {"max_new_tokens": 90, "batch_size": 2, "temperature": 1.0, "over": "allowed"}
    whole = decoder.detect(PICTURES * 2, PROMPT, **options)
    fine = decoder.detect(PICTURES * 2, PROMPT, sub_bin=True, **options)
    assert fine.labels == whole.labels
    answers = decoder.generate(
        PICTURES * 2, f"detect {PROMPT}", grammar=True, loc_probabilities=True, **options
    )
    wanted, crossed = [], 0
    for answer in answers:
        for item in slow_objects(decoder, answer):
            weights = answer.loc_probabilities[item.where]
            bins = [slow_place(*both) for both in zip(item.bins, weights, strict=True)]
            for low, high in ((0, 2), (1, 3)):
                if bins[low] >= bins[high]:
                    bins[low], bins[high] = item.bins[low], item.bins[high]
                    crossed += 1
            wanted.append(loc_to_xyxy(np.array([bins]), [answer.size])[0])
    np.testing.assert_allclose(fine.xyxy, wanted, atol=1e-3)
    bin_sizes = np.tile(fine.sizes[fine.image_index] / 1024, 2)
    assert (np.abs(fine.xyxy - whole.xyxy) <= SUB_BIN_RADIUS * bin_sizes + 1e-3).all()
    assert (fine.xyxy[:, 2:] > fine.xyxy[:, :2]).all()
    assert np.abs(fine.xyxy - whole.xyxy).max() > 0.01
    assert len(wanted) > 6


def answer_of(decoder, text, distributions):
    """An answer as of a model, with made-up probabilities."""
    ids = [*decoder.tokenizer.encode(text), decoder.tokenizer.vocabulary.eos]
    zeros = [0.0] * len(ids)
    return Generated("", text, ids, zeros, zeros, (1024, 1024), True, distributions)


def test_sub_bin_sides_that_would_cross_stay_at_their_bins(decoder):
    flat = np.full((4, 1024), 1 / 1024, np.float32)
    flat[2, :101] = 0  # below y2 = 101 only what the grammar allows
    flat[3] = np.eye(1024, dtype=np.float32)[500]
    answer = answer_of(decoder, "<loc0100><loc0010><loc0101><loc0500> cat", flat)
    # y1 would be 100 and y2 107: no crossing. x1 lies at the edge: its mean is 11 of 0 … 22.
    found = decoder.read([answer], sub_bin=True)
    np.testing.assert_allclose(found.xyxy, [[11, 100, 500, 107]])
    flat[0, :100] = 0  # now y1 would be 106
    flat[2] = np.eye(1024, dtype=np.float32)[101]
    np.testing.assert_allclose(decoder.read([answer], sub_bin=True).xyxy, [[11, 100, 500, 101]])


def test_odd_answers_have_sub_bin_boxes_of_their_own_loc_tokens(decoder):
    text = "<loc0001> ; <loc0100> <loc0200><loc0300><loc0400><loc0999> cat ; <seg001> dog"
    bins = [1, 100, 200, 300, 400, 999]
    answer = answer_of(decoder, text, np.eye(1024, dtype=np.float32)[bins])
    found = decoder.read([answer], sub_bin=True)
    np.testing.assert_allclose(found.xyxy, [[200, 100, 400, 300]])
    assert found.issues
    with pytest.raises(InputError, match="answers generated with loc_probabilities=True"):
        decoder.read([replace(answer, loc_probabilities=None)], sub_bin=True)


def test_without_the_grammar_oddities_are_listed_and_not_lost(decoder):
    found = decoder.detect(PICTURES, PROMPT, grammar=False, max_new_tokens=60)
    answers = decoder.generate(PICTURES, f"detect {PROMPT}", 60)
    for number, answer in enumerate(answers):
        parsed = parse(
            answer.token_ids,
            vocabulary=decoder.tokenizer.vocabulary,
            detokenize=decoder.tokenizer.decode,
        )
        assert [issue for at, issue in found.issues if at == number] == list(parsed.issues)
        boxes = [item for item in parsed.objects if item.loc is not None]
        assert (found.image_index == number).sum() == len(boxes)
    assert found.issues
    assert np.isfinite(found.scores).all()


def test_grammar_options_reach_the_answer(decoder):
    options = GrammarOptions(labels="none", max_objects=2)
    found = decoder.segment(
        PICTURES * 4,
        "the cat on the left",
        grammar=options,
        max_new_tokens=90,
        temperature=1.0,
    )
    assert set(found.labels) == {""}
    assert np.bincount(found.image_index).max() == 2
