"""Addresses of pictures: only public ones, also after redirects and for names that change."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from palidecode.serve import Settings
from palidecode.serve.addresses import download, fetch, is_public
from palidecode.serve.refusals import Refused


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),  # the metadata of cloud machines
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) == public


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to?"))
            self.end_headers()
            return
        self.send_response(200 if self.path == "/picture" else 404)
        self.end_headers()
        self.wfile.write(b"picture" * 10)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Pages) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def get(server, path, host="pictures.example", **more):
    """Download as if the server were in the public network, under a name of it."""
    names = {"pictures.example": ["127.0.0.1"], "inside.example": ["10.0.0.1"]}
    names["half.example"] = ["127.0.0.1", "10.0.0.1"]
    return download(
        f"http://{host}:{server.server_port}{path}",
        more.pop("most", 1000),
        allowed=lambda address: address == "127.0.0.1",
        resolved=lambda host, port: names.get(host, [host]),
        **more,
    )


def test_pictures_are_fetched(server):
    assert get(server, "/picture") == b"picture" * 10
    assert server.asked[0][1]["Host"] == f"pictures.example:{server.server_port}"
    assert get(server, "/to?/picture") == b"picture" * 10


def test_private_addresses_are_refused(server):
    for host, path in (
        ("inside.example", "/picture"),
        ("half.example", "/picture"),
        ("pictures.example", "/to?http://inside.example/picture"),
        ("pictures.example", "/to?http://169.254.169.254/latest"),
    ):
        with pytest.raises(Refused, match="no public address") as error:
            get(server, path, host)
        assert error.value.status == 403
    assert {path for path, _ in server.asked} <= {
        "/to?http://inside.example/picture",
        "/to?http://169.254.169.254/latest",
    }


def test_what_cannot_be_fetched_is_one_line(server):
    for path, said in (
        ("/nowhere", "status 404"),
        ("/to?/to?/to?/to?/picture", "more than 4 redirects"),
        ("/to?file:///etc/passwd", "it isn't http or https"),
    ):
        with pytest.raises(Refused, match=said.replace("?", r"\?")):
            get(server, path)
    with pytest.raises(Refused, match="more than 5 bytes"):
        get(server, "/picture", most=5)


def test_a_token_goes_to_its_host_alone(server):
    other = f"http://127.0.0.1:{server.server_port}/picture"
    get(server, f"/to?{other}", headers={"Authorization": "Token x"})
    assert [("Authorization" in sent) for _, sent in server.asked] == [True, False]


def test_a_name_of_this_machine_is_refused():
    with pytest.raises(Refused, match="no public address"):
        download("http://localhost:1/picture", 10)


def test_addresses_are_fetched_only_if_the_server_may():
    with pytest.raises(Refused, match="fetches no addresses"):
        asyncio.run(fetch("http://93.184.215.14/a.jpg", Settings()))
