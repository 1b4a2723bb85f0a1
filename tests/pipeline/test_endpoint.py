"""A server as the model: what is sent, what is read, and servers that fail."""

import base64
import io
import json
import math
import socket
import time
from email.utils import formatdate

import numpy as np
import pytest
from PIL import Image

from palidecode import EndpointOptions, InputError, PaliDecoder, ServerError, lark_grammar
from palidecode.answers.scoring import RECIPES, Evidence
from palidecode.files import PictureBytes, open_picture
from palidecode.pipeline.endpoint import _seconds_of
from palidecode.runtime.options import GrammarOptions
from palidecode.vocab import LOC_COUNT, loc_token
from tests.pipeline.servers import (
    BOX,
    CAT,
    MODEL,
    answers_cat,
    completion,
    drops,
    entry,
    hangs,
    lists_models,
    sends,
    serving,
    status,
    tokens_of,
)

SIZE = (80, 60)
ROOM = {"retries": 2, "pause": 0.0, "timeout": 5.0}


@pytest.fixture(scope="module")
def picture():
    return Image.effect_noise(SIZE, 50).convert("RGB")


def replying(value):
    return lambda handler, body: handler.send(200, value)


def asked(place, **options):
    return PaliDecoder.from_endpoint(place.url, MODEL, **ROOM | options)


def sent(body):
    """The MIME type and bytes of a request's picture."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    head, _, data = url.partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(data)


# --- Requests ---------------------------------------------------------------------------------


def test_a_request_has_openais_form(picture):
    with serving() as place:
        decoder = asked(place)
        decoder.segment([picture], ["cat", "dog"])
        decoder.generate(picture, "caption en", temperature=0.5, top_p=0.9, seed=3)
    first, second, third = place.bodies
    texts = [b["messages"][0]["content"][1] for b in (first, second)]
    assert sorted(texts, key=str) == [
        {"type": "text", "text": "segment cat"},
        {"type": "text", "text": "segment dog"},
    ]
    del first["messages"]
    assert first == {
        "model": MODEL,
        "max_tokens": 256,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": 20,
        "skip_special_tokens": False,
    }
    assert (third["temperature"], third["top_p"], third["seed"]) == (0.5, 0.9, 3)
    assert {path for path, _, _ in place.seen} == {"/v1/models", "/v1/chat/completions"}
    assert "Authorization" not in place.seen[-1][1]


def test_samples_have_seeds_of_their_own(picture):
    with serving() as place:
        options = {"samples": 3, "temperature": 0.5, "seed": 7}
        found = asked(place).detect([picture, picture], ["cat", "dog"], **options)
    seeds = [(body["messages"][0]["content"][1]["text"], body["seed"]) for body in place.bodies]
    assert len(seeds) == 12
    assert {seed for _, seed in seeds} == {7, 8, 9, 10, 11, 12}
    assert len(found.sizes) == 2


def test_several_pictures_go_with_one_prompt(picture):
    with serving() as place:
        found = asked(place).detect([[picture.resize((40, 20)), picture]], "cat", box_image=1)
    assert [part["type"] for part in place.bodies[0]["messages"][0]["content"]] == [
        *("image_url", "image_url", "text")
    ]
    assert found.sizes.tolist() == [list(SIZE)]


def saved(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FILES = {
    "jpeg": ("RGB", "JPEG", {}, "image/jpeg"),
    "grey jpeg": ("L", "JPEG", {}, "image/jpeg"),
    "png": ("RGB", "PNG", {}, "image/png"),
    "webp": ("RGB", "WEBP", {"lossless": True}, "image/webp"),
    "turned jpeg": ("RGB", "JPEG", {"exif": turned()}, None),
    "cmyk jpeg": ("CMYK", "JPEG", {}, None),
    "alpha png": ("RGBA", "PNG", {}, None),
    "palette png": ("P", "PNG", {}, None),
    "tiff": ("RGB", "TIFF", {}, None),
    "gif": ("L", "GIF", {}, None),
    "bmp": ("RGB", "BMP", {}, None),
}


@pytest.mark.parametrize("name", FILES)
def test_pictures_go_as_their_own_bytes_where_all_read_them_alike(picture, tmp_path, name):
    mode, form, options, mime = FILES[name]
    data = saved(picture.convert(mode), form, **options)
    path = tmp_path / "picture"
    path.write_bytes(data)
    with serving() as place:
        decoder = asked(place)
        found = decoder.detect([path], "cat")
        decoder.detect([decoder.see(PictureBytes(data, "named"))], "cat")
    seen = open_picture(path)
    assert found.sizes.tolist() == [list(seen.size)]
    width, height = seen.size
    y1, x1, y2, x2 = (bin_ / 1024 for bin_ in BOX)
    assert found.xyxy[0] == pytest.approx([x1 * width, y1 * height, x2 * width, y2 * height])
    for body in place.bodies:
        kind, content = sent(body)
        assert kind == (mime or "image/png")
        if mime:
            assert content == data
        else:
            assert np.array_equal(Image.open(io.BytesIO(content)), seen)


def test_sixteen_bits_are_scaled_and_arrays_are_pngs(tmp_path):
    levels = np.arange(0, 60_000, 1000, dtype=np.uint16).reshape(6, 10)
    Image.fromarray(levels).save(tmp_path / "16.png")
    with serving() as place:
        asked(place).detect([tmp_path / "16.png", np.zeros((4, 5, 3), np.uint8)], "cat")
    kinds = {sent(body)[0] for body in place.bodies}
    sizes = {Image.open(io.BytesIO(sent(body)[1])).size for body in place.bodies}
    assert kinds == {"image/png"}
    assert sizes == {(10, 6), (5, 4)}


def test_a_damaged_picture_is_never_sent(picture, tmp_path):
    (tmp_path / "damaged.jpg").write_bytes(saved(picture, "JPEG")[:300])
    with serving() as place:
        decoder = asked(place)
        with pytest.warns(UserWarning, match=r"damaged\.jpg: can't be read as a picture"):
            found = decoder.detect([tmp_path / "damaged.jpg", picture], "cat")
    assert len(place.bodies) == 1
    assert found.image_index.tolist() == [1]


def test_the_key_comes_from_the_environment_and_is_never_told(picture, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    echo = status(403, "bad key sk-secret-123")
    with serving(answers_cat, echo) as place:
        decoder = asked(place, api_key_env="MY_KEY")
        decoder.detect(picture, "cat")
        with pytest.raises(ServerError) as error:
            decoder.detect(picture, "cat")
    assert place.seen[1][1]["Authorization"] == "Bearer sk-secret-123"
    assert "403 Forbidden: bad key ***; the key is read from MY_KEY" in str(error.value)
    assert "secret" not in repr(decoder)


# --- Replies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("score", RECIPES)
def test_scores_are_those_of_the_tokens(picture, score):
    evidence = Evidence(loc=[-0.1] * 4, label=[-0.1], rest=[], end=-3.0)
    with serving() as place:
        found = asked(place).detect(picture, "cat", score=score)
    assert found.scores.tolist() == pytest.approx([RECIPES[score](evidence)])
    assert found.labels == ["cat"]


def test_two_objects_with_white_space_that_tokens_lack(picture):
    """As a server sends whose tokens are decoded one by one."""
    tokens = [*tokens_of(), entry(";", -0.2, ("<eos>", -1.5)), *tokens_of("red", -9.0)]
    tokens[4] |= {"token": "cat", "bytes": list(b"cat")}
    tokens += [entry("star", -0.3)]
    content = f"{CAT} ; {CAT.removesuffix('cat')}red star"
    with serving(replying(completion(content, tokens))) as place:
        found = asked(place).detect(picture, "cat ; red star", score="objectness")
        label = asked(place).detect(picture, "cat ; red star", score="label")
    assert found.labels == ["cat", "red star"]
    assert found.scores.tolist() == pytest.approx([1 - math.exp(-3), 1 - math.exp(-1.5)])
    assert label.scores.tolist() == pytest.approx([math.exp(-0.1), math.exp(-0.4)])


def vllm(content, tokens, finish="stop"):
    """A reply as vLLM's documentation of its OpenAI-compatible server has it."""
    reply = completion(content, tokens, finish)
    message = {"annotations": None, "audio": None, "function_call": None, "tool_calls": []}
    reply["choices"][0]["message"] |= message | {"reasoning_content": None}
    reply["choices"][0] |= {"stop_reason": None, "token_ids": None}
    extra = {"service_tier": None, "system_fingerprint": None, "prompt_logprobs": None}
    return reply | extra | {"kv_transfer_params": None}


def test_vllm_lists_its_end_and_clamps_what_is_impossible(picture):
    tokens = [*tokens_of(end=-9999.0), entry("<eos>", -0.01, ("<eos>", -0.01))]
    with serving(replying(vllm(CAT, tokens))) as place:
        decoder = asked(place)
        (answer,) = decoder.generate(picture, "detect cat")
        found = decoder.read([answer], score="objectness")
    assert answer.finished
    assert answer.token_ids[-1] == 1
    assert found.scores.tolist() == [1.0]


def test_an_answer_at_the_limit_is_not_finished(picture):
    cut = loc_token(1) + loc_token(2)
    tokens = [entry(loc_token(1), -0.1), entry(loc_token(2), -0.1)]
    with serving(replying(vllm(cut, tokens, "length"))) as place:
        (answer,) = asked(place).generate(picture, "detect cat")
    assert not answer.finished
    assert answer.text == cut


@pytest.mark.parametrize("tokens", [None, [], [entry("<", -1.0), entry("loc", -1.0)]])
def test_without_probabilities_objects_have_no_scores(picture, tokens):
    with serving(replying(completion(CAT, tokens))) as place:
        decoder = asked(place)
        for score in RECIPES:
            with pytest.warns(UserWarning, match="sends no log probabilities of its tokens"):
                found = decoder.detect(picture, "cat", score=score)
            assert found.labels == ["cat"]
            assert np.isnan(found.scores).all()


@pytest.mark.parametrize("odd", [None, True, "x", 10**400, [-1], {}, "<loc0001>", "\ud800"])
@pytest.mark.parametrize("key", ["token", "bytes", "logprob", "top_logprobs"])
@pytest.mark.filterwarnings("ignore:.*sends no log probabilities")
def test_odd_entries_of_tokens_raise_nothing(picture, key, odd):
    tokens = [entry(token["token"], -0.1) | {key: odd} for token in tokens_of()]
    with serving(replying(completion(CAT, tokens))) as place:
        found = asked(place).detect(picture, "cat")
    assert found.labels == ["cat"]
    assert 0 <= found.scores[0] <= 1 or np.isnan(found.scores[0])


def test_an_answer_without_loc_tokens_is_told(picture):
    """As of a server that removes special tokens."""
    with serving(replying(completion(" cat", [entry(" cat", -0.1)]))) as place:
        decoder = asked(place)
        with pytest.warns(UserWarning, match=r"'detect cat' has no <loc…> token \('cat'\)"):
            assert len(decoder.detect(picture, "cat")) == 0
        decoder.generate(picture, "caption en")


@pytest.mark.parametrize("content", ["", None])
def test_nothing_found_is_an_empty_answer(picture, content):
    with serving(replying(completion(content, []))) as place:
        found = asked(place).detect(picture, "cat")
    assert len(found) == 0
    assert found.issues == []


def spread(tokens, count):
    """Give every loc token a distribution of so many bins around it, in OpenAI's form."""
    return [wider(token, count) if token["token"].startswith("<loc") else token for token in tokens]


def wider(token, count):
    logits = -0.5 * ((np.arange(LOC_COUNT) - int(token["token"][4:8]) - 0.4) / 3) ** 2
    best = np.argsort(-logits)[:count]
    logs = logits[best] - np.log(np.exp(logits).sum())
    top = [(loc_token(int(b)), float(p)) for b, p in zip(best, logs, strict=True)]
    return entry(token["token"], top[0][1], *top)


def test_sub_bin_boxes_need_the_probabilities_of_the_bins(picture):
    def replies(handler, body):
        assert body["top_logprobs"] == LOC_COUNT
        handler.send(200, completion(CAT, spread(tokens_of(), count[0])))

    count = [LOC_COUNT]
    with serving(replies) as place:
        decoder = asked(place)
        found = decoder.detect(picture, "cat", sub_bin=True)
        y1, x1, y2, x2 = ((bin_ + 0.4) / 1024 for bin_ in BOX)
        width, height = SIZE
        wanted = [x1 * width, y1 * height, x2 * width, y2 * height]
        assert found.xyxy[0] == pytest.approx(wanted, abs=1e-3)
        count[0] = 5
        with pytest.raises(ServerError, match=r"lists 5 top_logprobs.*\(vLLM: --max-logprobs 1024"):
            decoder.detect(picture, "cat", sub_bin=True)


# --- Servers that fail ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble", [status(500), status(503), status(502), status(408), drops, sends("{}" * 99, cut=9)]
)
def test_what_may_pass_is_tried_again(picture, trouble):
    with serving(trouble, trouble, answers_cat) as place:
        assert len(asked(place).detect(picture, "cat")) == 1
    assert len(place.bodies) == 3


def test_a_busy_server_is_waited_for(picture):
    busy = status(429, "busy", Retry_After="0")
    with serving(*[busy] * 9, status(503, "busy", Retry_After="0"), answers_cat) as place:
        assert len(asked(place, retries=0).detect(picture, "cat")) == 1
    assert len(place.bodies) == 11


def test_retry_after_is_seconds_or_a_date():
    assert _seconds_of(None) is _seconds_of("soon") is _seconds_of("nan") is None
    assert _seconds_of("2.5") == 2.5
    assert _seconds_of("1e9") == 600
    assert 20 < _seconds_of(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert _seconds_of(formatdate(time.time() - 30, usegmt=True)) == 0


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (status(401, "who?"), "401 Unauthorized: who?; the key is read from PALIDECODE_API_KEY"),
        (status(404, "no such page"), "404 Not Found: no such page"),
        (status(405), "405 Method Not Allowed: no"),
        (status(308, Location="http://x.example/v1"), "308, it leads to http://x.example/v1"),
        (sends("<html>Hello", "text/html"), "not JSON but text/html; is the address right"),
        (sends('{"choices": ['), "its answer is not JSON; is the address right"),
        (sends("[1]"), "its answer is no JSON object"),
        (sends("{}"), "its answer is no chat completion"),
        (sends('{"choices": []}'), "its answer is no chat completion"),
        (sends('{"choices": [{"message": {"content": 3}}]}'), "content of its answer is no text"),
    ],
)
def test_what_stays_wrong_is_told_at_once(picture, trouble, said):
    with serving(trouble) as place:
        decoder = asked(place)
        with pytest.raises(ServerError) as error:
            decoder.detect(picture, "cat")
    assert len(place.bodies) == 1
    assert said in str(error.value)
    assert str(error.value).startswith(place.url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("code", [400, 413, 415, 422])
def test_a_refused_picture_is_one_that_cannot_be_read(picture, code):
    """The server answers about a grey picture: so it is this picture's fault."""

    def refuses_large(handler, body):
        large = Image.open(io.BytesIO(sent(body)[1])).width > 100
        (status(code, "picture too large") if large else answers_cat)(handler, body)

    with serving(refuses_large) as place:
        decoder = asked(place)
        with pytest.warns(UserWarning, match=rf"picture 2: {place.url}: {code} .*too large"):
            found = decoder.detect([picture, picture.resize((200, 100))], "cat")
    assert found.image_index.tolist() == [0]
    assert found.sizes.tolist() == [list(SIZE), [0, 0]]
    assert len(place.bodies) == 3


def test_a_server_that_refuses_every_request_is_told(picture):
    said = "top_logprobs must be at most 20"
    with serving(status(400, said)) as place, pytest.raises(ServerError, match=f"400 .*{said}"):
        asked(place).detect(picture, "cat")
    assert len(place.bodies) == 2


def test_a_picture_that_always_breaks_the_server_is_left_out(picture):
    def breaks(handler, body):
        large = Image.open(io.BytesIO(sent(body)[1])).width > 100
        (status(500, "boom") if large else answers_cat)(handler, body)

    with serving(breaks) as place:
        decoder = asked(place)
        with pytest.warns(UserWarning, match=r"picture 1: .*500 Internal Server Error: boom"):
            found = decoder.detect([picture.resize((200, 100)), picture], "cat")
    assert found.image_index.tolist() == [1]


def test_a_server_that_hangs_is_told(picture):
    with serving(hangs) as place:
        decoder = asked(place, timeout=0.2, retries=1)
        with pytest.raises(ServerError, match=r"no answer in 0\.2 s \(--timeout\) \(2 tries\)"):
            decoder.detect(picture, "cat")
    assert len(place.bodies) == 3  # and once about a grey picture


def test_a_server_that_is_gone_is_told(picture):
    with serving() as place:
        decoder = asked(place)
    with pytest.raises(ServerError, match=r"no connection \(.*\); is the server running\? \(3 tri"):
        decoder.detect(picture, "cat")


def test_a_server_that_is_not_there_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match="is the server running"):
        PaliDecoder.from_endpoint(f"http://127.0.0.1:{port}/v1", MODEL)


# --- Models and options -----------------------------------------------------------------------


def test_the_model_must_be_one_of_the_server():
    with (
        serving(models=lists_models("a", "b")) as place,
        pytest.raises(ServerError, match="no model 'paligemma'; it serves a, b"),
    ):
        asked(place)
    for list_of_models in (status(404), status(405), status(501)):
        with serving(models=list_of_models) as place:
            assert asked(place).classes == ()
    with serving(models=sends('{"data": 3}')) as place, pytest.raises(ServerError, match="no list"):
        asked(place)


def test_classes_and_codec_are_what_the_server_lists(picture):
    named = lists_models(MODEL, classes=["cat", "dog"], codes="palidecode-demo")
    with serving() as place:
        assert asked(place).classes == ()
        place.models = named  # another server at the same address
        decoder = asked(place)
        decoder.detect(picture)
    assert decoder.classes == ("cat", "dog")
    assert decoder.codec is not None
    assert decoder.codec.id == "palidecode-demo"
    assert place.bodies[0]["messages"][0]["content"][1]["text"] == "detect cat ; dog"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"endpoint": "localhost:8000"}, "endpoint must be an address as http://host:8000/v1"),
        ({"endpoint": "ftp://host/v1"}, "endpoint must be an address"),
        ({"endpoint": "http://host:99999/v1"}, "endpoint must be an address"),
        ({"endpoint": "http://me:secret@host/v1"}, "endpoint must not hold a password"),
        ({"endpoint": "http://host/v1?key=secret"}, "endpoint must end with its path"),
        ({"model": ""}, "model must name a model of the server"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"timeout": 0}, "timeout must be above 0, got 0"),
        ({"timeout": math.nan}, "timeout must be above 0, got nan"),
        ({"retries": -1}, "retries must be 0 or more, got -1"),
        ({"pause": -1}, "pause must be 0 or more, got -1"),
        ({"top_logprobs": -1}, "top_logprobs must be 0 or more, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(InputError, match=said) as error:
        EndpointOptions(**{"endpoint": "http://host/v1/", "model": "m"} | options)
    assert "secret" not in str(error.value).replace("?key=secret", "")


def test_what_only_a_loaded_model_has_is_refused(picture):
    with serving() as place:
        decoder = asked(place)
        for name in ("engine", "tokenizer", "image_config"):
            with pytest.raises(InputError, match="a server answers; no model is loaded here"):
                getattr(decoder, name)
        with pytest.raises(InputError, match="a server has its own grammar"):
            decoder.detect(picture, "cat", grammar=GrammarOptions(max_objects=3))
        with pytest.raises(InputError, match="past_end: a server ends its answers itself"):
            decoder.detect(picture, "cat", past_end=0.1)
    local = PaliDecoder.from_pretrained("demo", engine="onnx")
    with pytest.raises(InputError, match="that was read for a server"):
        local.detect([decoder.see(picture)], "cat")
    with pytest.raises(InputError, match="was shrunk for a model"):
        decoder.detect([local.shrink(picture)], "cat")


def test_the_grammar_is_sent_as_vllm_takes_it(picture):
    with serving() as place:
        decoder = asked(place, vllm_grammar=True)
        decoder.detect(picture, "cat", grammar=GrammarOptions(max_objects=3))
        decoder.detect(picture, "cat", grammar=False)
        decoder.generate(picture, "caption en", grammar=True)
    first, *others = place.bodies
    wanted = lark_grammar("detect cat", GrammarOptions(max_objects=3))
    assert first["structured_outputs"] == {"grammar": wanted}
    assert not any("structured_outputs" in body for body in others)


def test_an_address_ends_without_a_slash():
    assert EndpointOptions("http://host/v1/", "m").endpoint == "http://host/v1"
    assert json.loads(json.dumps(EndpointOptions("http://host/v1/", "m").settings())) == {
        "endpoint": "http://host/v1",
        "model": "m",
        "top_logprobs": 20,
        "vllm_grammar": False,
    }
