"""Hosts, origins, the key and the limits of a server."""

import base64
import io
import json
import logging

import pytest
from PIL import Image
from starlette.testclient import TestClient

from palidecode.serve import Settings, create_app

URL = "http://127.0.0.1:8000"


def asking(base_url=URL, decoder=None, **settings):
    return TestClient(create_app(decoder, Settings(**settings)), base_url=base_url)


def message(reply):
    error = reply.json()["error"]
    assert "\n" not in error["message"]
    return error["message"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("192.168.1.5:8000", 200),  # no name leads there but its own
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:80", 403),
        ("", 403),
    ],
)
def test_a_name_that_leads_here_is_refused(host, status):
    reply = asking().get("/v1/info", headers={"Host": host})
    assert reply.status_code == status
    if status == 403:
        assert "--allow-origin HOST" in message(reply)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        (URL, 200),
        ("http://127.0.0.1:8001", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_another_page_may_not_ask(origin, status):
    headers = {} if origin is None else {"Origin": origin}
    reply = asking().get("/v1/info", headers=headers)
    assert reply.status_code == status
    assert "access-control-allow-origin" not in reply.headers


def test_a_page_and_a_host_that_were_allowed_may():
    client = asking(allow_origin=("https://good.example", "box.local"))
    headers = {"Origin": "https://good.example"}
    reply = client.get("/v1/info", headers=headers)
    assert reply.headers["access-control-allow-origin"] == "https://good.example"
    asked = {**headers, "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/stream", headers=asked).status_code == 204
    assert client.get("/v1/info", headers={"Host": "box.local:80"}).status_code == 200
    assert client.get("/v1/info", headers={"Origin": "https://bad.example"}).status_code == 403


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("", 401),
        ("Bearer wrong", 401),
        ("Bearer sesam", 200),
        ("bearer sesam", 200),
        (f"Basic {base64.b64encode(b'user:sesam').decode()}", 200),
        (f"Basic {base64.b64encode(b'sesam:user').decode()}", 401),
        ("Basic %%%", 401),
    ],
)
def test_the_key_is_asked_for(given, status):
    client = asking(api_key="sesam")
    headers = {"Authorization": given}
    assert client.get("/v1/info", headers=headers).status_code == status
    assert client.get("/metrics", headers=headers).status_code == status
    assert client.get("/").status_code == 200


def test_a_body_that_is_too_large_is_refused():
    client = asking(max_body=1000)
    body = json.dumps({"answers": "x" * 1000, "sizes": [1, 1]})
    reply = client.post("/v1/decode", content=body)
    assert reply.status_code == 413
    assert "1,000 bytes" in message(reply)

    def pieces():
        for _ in range(30):
            yield b"x" * 100

    assert client.post("/v1/decode", content=pieces()).status_code == 413


def test_a_picture_of_too_many_pixels_is_refused(decoder):
    file = io.BytesIO()
    Image.new("RGB", (200, 100)).save(file, "PNG")
    with asking(decoder=decoder, max_pixels=10_000) as client:
        reply = client.post(
            "/v1/stream", files={"image": file.getvalue()}, data={"prompt": "detect cat"}
        )
    assert reply.status_code == 413
    assert "200×100 pixels" in message(reply)


def test_a_line_of_log_has_no_contents(caplog):
    client = asking()
    with caplog.at_level(logging.INFO, logger="palidecode.serve.access"):
        client.post("/v1/decode?secret=1", json={"answers": "secret", "sizes": [1, 1]})
        client.get("/secret")
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/decode", 200),
        ("other", 404),
    ]
    assert "secret" not in caplog.text


def test_requests_are_counted():
    client = asking()
    client.get("/v1/info")
    client.get("/nowhere")
    text = client.get("/metrics").text
    assert 'palidecode_requests_total{path="/v1/info",status="200"} 1.0' in text
    assert 'palidecode_requests_total{path="other",status="404"} 1.0' in text
    assert 'palidecode_request_seconds_count{path="/v1/info"} 1.0' in text


def test_a_server_that_stops_takes_no_requests():
    client = asking()
    client.app.state.traffic.closing = True
    reply = client.get("/v1/info")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")


def test_an_answer_is_as_long_as_the_server_lets_it_be(decoder):
    with asking(decoder=decoder, max_new_tokens=9) as client:
        body = {"scene": "scene_000004.jpg", "options": {"grammar": False, "temperature": 5}}
        reply = client.post("/v1/detect", json=body)
        assert (reply.status_code, reply.json()["finished"]) == (200, False)
