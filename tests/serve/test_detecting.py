"""``/v1/detect`` and ``/v1/segment`` against the same model asked directly."""

import base64
import json

import numpy as np
import pytest

from palidecode import to_coco
from palidecode.files import data_folder
from palidecode.prompts import write_prompt

SCENE = "scene_000004.jpg"
FILE = data_folder("palidecode.demo") / "scenes" / SCENE
DATA = FILE.read_bytes()


def options_of(**options):
    return {"options": json.dumps(options)}


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_the_ways_to_send_a_picture_find_the_same(client, decoder, task):
    base64_text = base64.b64encode(DATA).decode()
    prompt = write_prompt(task, decoder.classes)
    names = ";".join(decoder.classes)
    replies = [
        client.post(f"/v1/{task}", files={"image": ("a.jpg", DATA)}, data={"prompt": prompt}),
        client.post(f"/v1/{task}", files={"image": DATA}, data={"classes": names}),
        client.post(f"/v1/{task}", files={"image": DATA}),
        client.post(f"/v1/{task}", json={"scene": SCENE, "classes": list(decoder.classes)}),
        client.post(f"/v1/{task}", json={"image": base64_text, "prompt": prompt}),
        client.post(f"/v1/{task}", json={"image": f"data:image/jpeg;base64,{base64_text}"}),
    ]
    first, *others = [reply.json() for reply in replies]
    for other in others:
        assert {**other, "seconds": 0} == {**first, "seconds": 0}
    wanted = getattr(decoder, task)(FILE, prompt)
    assert len(wanted) >= 2
    assert first["prompt"] == prompt
    assert [item["label"] for item in first["objects"]] == wanted.labels
    found = [item["box"] for item in first["objects"]]
    np.testing.assert_allclose(found, wanted.xyxy, atol=1e-2)
    assert all((item["mask"] is not None) == (task == "segment") for item in first["objects"])


def test_masks_as_rle_and_boxes_alone(client, decoder):
    wanted = decoder.segment(FILE)
    reply = client.post("/v1/segment", json={"scene": SCENE, "options": {"segmentation": "rle"}})
    assert [item["mask"] for item in reply.json()["objects"]] == wanted.to_rle()
    reply = client.post("/v1/segment", json={"scene": SCENE, "options": {"segmentation": "none"}})
    assert {item["mask"] for item in reply.json()["objects"]} == {None}


def test_coco_is_that_of_the_library(client, decoder):
    reply = client.post("/v1/segment?format=coco", json={"scene": SCENE})
    wanted = to_coco(decoder.segment(FILE), categories=decoder.classes, file_names=[SCENE])
    found = reply.json()
    assert found["images"] == wanted["images"]
    assert found["categories"] == wanted["categories"]
    assert len(found["annotations"]) == len(wanted["annotations"]) > 1
    for one, other in zip(found["annotations"], wanted["annotations"], strict=True):
        assert one["category_id"] == other["category_id"]
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
        assert one["segmentation"]


def test_min_score_leaves_objects_out(client, decoder):
    scores = sorted(decoder.detect(FILE).scores.tolist())
    between = (scores[0] + scores[-1]) / 2
    body = {"scene": SCENE, "options": {"min_score": between}}
    found = [item["score"] for item in client.post("/v1/detect", json=body).json()["objects"]]
    np.testing.assert_allclose(sorted(found), [s for s in scores if s >= between], atol=1e-4)
    dataset = client.post("/v1/detect?format=coco", json=body).json()
    assert len(dataset["annotations"]) == len(found) < len(scores)


BAD = [
    ({"json": {}}, 400, "which picture"),
    ({"json": {"scene": SCENE, "image": "aGFsbG8="}}, 400, "which picture"),
    ({"json": {"scene": "../model/config.json"}}, 404, "no scene"),
    ({"json": {"image": "%%%"}}, 400, "not base64"),
    ({"json": {"image": base64.b64encode(b"no picture").decode()}}, 400, "can't be read as a pict"),
    ({"json": {"image": base64.b64encode(DATA[:2000]).decode()}}, 400, "can't be read as a pictur"),
    ({"json": {"url": "http://example.org/a.jpg"}}, 403, "fetches no addresses"),
    ({"json": {"scene": SCENE, "prompt": "segment cat"}}, 400, "asks to segment"),
    ({"json": {"scene": SCENE, "prompt": "cat", "classes": ["dog"]}}, 400, "not both"),
    ({"json": {"scene": SCENE, "classes": ["a<b"]}}, 400, "can't be a label"),
    ({"json": {"scene": SCENE, "classes": []}}, 400, "nothing to ask"),
    ({"json": {"scene": SCENE, "colour": 1}}, 400, "colour"),
    ({"json": {"scene": SCENE, "options": {"top_p": 2}}}, 400, "top_p must be in"),
    ({"json": {"scene": SCENE, "options": {"score": "best"}}}, 400, "best"),
    ({"json": {"scene": SCENE, "options": {"divisor": 7}}}, 400, "divisor must be"),
    ({"json": {"scene": SCENE, "options": {"max_new_tokens": 2000}}}, 400, "at most 1024"),
    ({"json": {"scene": SCENE, "model": "other"}}, 404, "no model 'other'"),
    ({"json": {"scene": SCENE, "prompt": "x " * 9000}}, 400, "exceed the model's"),
    ({"json": [1]}, 400, "the body"),
    ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "the body"),
    ({"content": b"x"}, 415, "send multipart/form-data or JSON"),
    ({"files": {"image": DATA}, "data": options_of(colour=1)}, 400, "colour"),
    ({"files": {"image": DATA}, "data": {"colour": "1"}}, 400, "form field 'colour'"),
    ({"files": {"prompt": DATA}}, 400, "form field 'prompt' is a file"),
    (
        {"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        400,
        "which picture",
    ),
    (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "the form can't be read",
    ),
]


@pytest.mark.parametrize(("request_", "status", "said"), BAD)
def test_bad_requests_are_one_line(client, request_, status, said):
    reply = client.post("/v1/detect", **request_)
    message = reply.json()["error"]["message"]
    assert (reply.status_code, "\n" in message) == (status, False), message
    assert said in message


def test_without_a_model_nothing_is_detected(bare):
    reply = bare.post("/v1/detect", json={"scene": SCENE})
    assert reply.status_code == 503
    assert "--model" in reply.json()["error"]["message"]
