"""Label Studio's ML backend protocol, as its SDK's server has it.

The requests are those that Label Studio sends (``api_connector.py`` there, and ``api.py`` of
label-studio-ml): its fields that aren't needed here included. Shapes of the replies are those of
"Label Studio JSON format of annotated tasks".
"""

import base64
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from starlette.testclient import TestClient

from palidecode.files import data_folder
from palidecode.serve import Settings, create_app

FOLDER = data_folder("palidecode.demo") / "scenes"
SCENE = "scene_000004.jpg"
DATA = f"data:image/jpeg;base64,{base64.b64encode((FOLDER / SCENE).read_bytes()).decode()}"
LOCAL = f"/data/local-files/?d={SCENE}"


def config(classes, *tags):
    labels = "".join(f'<Label value="{name}" background="#f00"/>' for name in classes)
    tools = "".join(f'<{tag} name="{tag[:4]}" toName="img">{labels}</{tag}>' for tag in tags)
    return f'<View><Header value="Find"/><Image name="img" value="$photo"/>{tools}</View>'


def predict(client, label_config, *pictures):
    """Ask as Label Studio does."""
    tasks = [
        {
            "id": n,
            "data": {"photo": picture},
            "meta": {},
            "project": 3,
            "created_at": "2026-01-01T00:00:00Z",
            "is_labeled": False,
            "annotations": [],
            "predictions": [],
        }
        for n, picture in enumerate(pictures, 1)
    ]
    body = {
        "tasks": tasks,
        "model_version": None,
        "project": "3.1700000000",
        "label_config": label_config,
        "params": {"login": None, "password": None, "context": None},
    }
    return client.post("/predict", json=body)


def test_a_project_connects(client, decoder):
    assert client.get("/health").json()["status"] == "UP"
    body = {
        "project": "3.1700000000",
        "schema": config(decoder.classes, "RectangleLabels"),
        "hostname": "http://localhost:8080",
        "access_token": "token",
        "extra_params": None,
    }
    reply = client.post("/setup", json=body)
    assert reply.status_code == 200
    assert reply.json()["model_version"].startswith("palidecode ")


def test_rectangles_are_percents_of_the_picture(client, decoder):
    reply = predict(client, config(decoder.classes, "RectangleLabels"), DATA, DATA).json()
    first, second = reply["results"]
    assert {**first} == {**second}
    wanted = decoder.detect(FOLDER / SCENE)
    assert len(first["result"]) == len(wanted) >= 2
    assert first["model_version"] == reply["model_version"]
    for region, label, box, score in zip(
        first["result"], wanted.labels, wanted.xyxy, wanted.scores, strict=True
    ):
        assert region["type"] == "rectanglelabels"
        assert (region["from_name"], region["to_name"]) == ("Rect", "img")
        assert (region["original_width"], region["original_height"]) == (448, 448)
        value = region["value"]
        assert value["rectanglelabels"] == [label]
        x, y = value["x"], value["y"]
        found = np.array([x, y, x + value["width"], y + value["height"]]) * 4.48
        np.testing.assert_allclose(found, np.clip(box, 0, 448), atol=0.01)
        assert region["score"] == pytest.approx(score, abs=1e-4)
    mean = np.mean([region["score"] for region in first["result"]])
    assert first["score"] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(
    ("tags", "kinds"),
    [
        (("PolygonLabels",), {"polygonlabels"}),
        (("BrushLabels",), {"brushlabels"}),
        (("RectangleLabels", "PolygonLabels"), {"polygonlabels"}),
        (("RectangleLabels", "BrushLabels"), {"brushlabels"}),
    ],
)
def test_masks_are_polygons_or_brush_strokes(client, decoder, tags, kinds):
    (result,) = predict(client, config(decoder.classes, *tags), DATA).json()["results"]
    wanted = decoder.segment(FOLDER / SCENE)
    assert len(result["result"]) == len(wanted)
    assert {region["type"] for region in result["result"]} == kinds
    for region in result["result"]:
        value = region["value"]
        if region["type"] == "polygonlabels":
            points = np.array(value["points"])
            assert points.ndim == 2
            assert ((points >= 0) & (points <= 100)).all()
        else:
            assert value["format"] == "rle"
            assert value["rle"][:4] == list((448 * 448 * 4).to_bytes(4))


def test_local_files_are_read_in_their_folder_alone(decoder):
    settings = Settings(images=str(FOLDER))
    with TestClient(create_app(decoder, settings), base_url="http://127.0.0.1") as client:
        labels = config(decoder.classes, "RectangleLabels")
        (result,) = predict(client, labels, LOCAL).json()["results"]
        assert len(result["result"]) >= 2
        for name, said in (("../truth.json", "leads out"), ("none.jpg", "No such file")):
            reply = predict(client, labels, f"/data/local-files/?d={name}")
            assert reply.status_code == 404
            assert said in reply.json()["error"]["message"]


class LabelStudio(BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers.get("Authorization") == "Token secret"
        self.send_response(200 if known and self.path == "/data/upload/3/a.jpg" else 401)
        self.end_headers()
        self.wfile.write((FOLDER / SCENE).read_bytes())

    def log_message(self, *_):
        pass


def test_uploads_are_fetched_from_label_studio_alone(decoder):
    labels = config(decoder.classes, "RectangleLabels")
    with HTTPServer(("127.0.0.1", 0), LabelStudio) as home:
        threading.Thread(target=home.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{home.server_port}"
        settings = Settings(label_studio=url, label_studio_key="secret")
        with TestClient(create_app(decoder, settings), base_url="http://127.0.0.1") as client:
            (result,) = predict(client, labels, "/data/upload/3/a.jpg").json()["results"]
            assert len(result["result"]) >= 2
            reply = predict(client, labels, "http://127.0.0.1:1/data/upload/3/a.jpg")
            assert reply.status_code == 403
            assert "secret" not in predict(client, labels, "/data/upload/4/b.jpg").text
        home.shutdown()


@pytest.mark.parametrize(
    ("label_config", "picture", "said"),
    [
        ("", DATA, "not XML"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><View/>", DATA, "document type"),
        ("<View/>", DATA, "no <Image"),
        (config(["cat"], "Choices"), DATA, "no labels"),
        (config(["a;b"], "RectangleLabels"), DATA, "can't be a label"),
        (config(["cat"], "RectangleLabels"), LOCAL, "--images DIR"),
        (config(["cat"], "RectangleLabels"), 5, "no picture in data.photo"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(client, label_config, picture, said):
    reply = predict(client, label_config, picture)
    message = reply.json()["error"]["message"]
    assert (reply.status_code, "\n" in message) == (400, False)
    assert said in message
