import hashlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from palidecode.codec import load_codec
from palidecode.codec.fetch import fetch, verify
from palidecode.codec.weights import GOOGLE_FILE
from palidecode.errors import WeightsError

CONTENT = np.random.default_rng(0).bytes(300_000)
EXPECTED = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
HALF = 150_000


class Server(ThreadingHTTPServer):
    """Serves CONTENT; the attributes say how it misbehaves."""

    content = CONTENT
    break_after = ()  # bytes after which one answer after the other breaks off
    ranges = True
    status = 0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/vae-oid.npz"
        self.asked = []  # the Range header of each request


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.asked.append(wanted)
        start = int(wanted[len("bytes=") : -1]) if wanted and server.ranges else 0
        if server.status or start >= len(server.content):
            self.send_error(server.status or 416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if len(server.asked) <= len(server.break_after):
            body = body[: server.break_after[len(server.asked) - 1]]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "folder" / "w.npz"


@pytest.fixture
def part(target):
    """Path of an unfinished download; the folder exists."""
    target.parent.mkdir(parents=True)
    return target.with_name("w.npz.part")


def files(target):
    return {path.name: path.stat().st_size for path in target.parent.glob("*")}


def test_fetch_writes_the_checked_file_and_nothing_else(server, target):
    assert fetch(target, url=server.url, **EXPECTED) == target
    assert target.read_bytes() == CONTENT
    assert files(target) == {"w.npz": len(CONTENT)}


def test_fetch_goes_to_the_cache_by_default(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PALIDECODE_CACHE", str(tmp_path))
    assert fetch(url=server.url, **EXPECTED) == tmp_path / GOOGLE_FILE


def test_a_file_that_is_there_is_not_fetched_again(server, target):
    for _ in range(2):
        fetch(target, url=server.url, **EXPECTED)
    assert len(server.asked) == 1
    target.write_bytes(CONTENT[:-1] + b"?")
    fetch(target, url=server.url, **EXPECTED)
    assert target.read_bytes() == CONTENT


def test_broken_connections_are_taken_up_where_they_broke_off(server, target):
    server.break_after = (100_000, 50_000)
    fetch(target, url=server.url, **EXPECTED)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_what_came_is_kept_for_the_next_run(server, target):
    server.break_after = (100_000, 50_000)
    with pytest.raises(WeightsError, match=r"150000 of 300000 bytes .*; run it again"):
        fetch(target, url=server.url, attempts=2, **EXPECTED)
    assert files(target) == {"w.npz.part": HALF}
    fetch(target, url=server.url, **EXPECTED)
    assert server.asked[-1] == "bytes=150000-"
    assert files(target) == {"w.npz": len(CONTENT)}


def test_a_server_without_ranges_starts_again(server, target, part):
    server.ranges = False
    part.write_bytes(CONTENT[:HALF])
    fetch(target, url=server.url, **EXPECTED)
    assert target.read_bytes() == CONTENT


def test_a_complete_part_is_not_asked_for_again(server, target, part):
    part.write_bytes(CONTENT)
    fetch(target, url=server.url, **EXPECTED)
    assert server.asked == []
    assert files(target) == {"w.npz": len(CONTENT)}


def test_a_part_that_is_too_long_is_thrown_away(server, target, part):
    part.write_bytes(CONTENT + b"more")
    fetch(target, url=server.url, **EXPECTED)
    assert server.asked == [None]


@pytest.mark.parametrize(
    "content",
    [bytes(len(CONTENT)), CONTENT + bytes(500_000), CONTENT[:-1] + b"?"],
    ids=["other bytes", "too many", "one byte"],
)
def test_another_file_is_refused_and_not_kept(server, target, content):
    server.content = content
    with pytest.raises(WeightsError, match=r"not the expected file .*and was deleted"):
        fetch(target, url=server.url, **EXPECTED)
    assert files(target) == {}


def test_a_part_of_another_file_is_not_kept(server, target, part):
    part.write_bytes(bytes(HALF))
    with pytest.raises(WeightsError, match="not the expected file"):
        fetch(target, url=server.url, **EXPECTED)
    assert files(target) == {}
    fetch(target, url=server.url, **EXPECTED)
    assert target.read_bytes() == CONTENT


def test_a_range_beyond_the_servers_file_starts_again(server, target, part):
    """The server's file is shorter than the part: going on makes no sense."""
    part.write_bytes(CONTENT[:HALF])
    server.content = CONTENT[: HALF - 1]
    with pytest.raises(WeightsError, match="broke off after 149999 of 300000"):
        fetch(target, url=server.url, attempts=2, **EXPECTED)
    assert server.asked == ["bytes=150000-", None]


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 3), (500, 3)])
def test_error_answers_are_told_and_leave_nothing(server, target, status, requests):
    server.status = status
    with pytest.raises(WeightsError, match=f"{server.url}: can't be downloaded.*{status}"):
        fetch(target, url=server.url, **EXPECTED)
    assert len(server.asked) == requests
    assert files(target) == {}


def test_an_error_answer_keeps_what_is_there(server, target, part):
    part.write_bytes(CONTENT[:HALF])
    server.status = 503
    with pytest.raises(WeightsError, match="PALIDECODE_WEIGHTS"):
        fetch(target, url=server.url, **EXPECTED)
    assert files(target) == {"w.npz.part": HALF}


def test_an_unreachable_server_is_a_weights_error(target, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as closed:
        url = closed.url
    with pytest.raises(WeightsError, match="can't be downloaded: Connection refused"):
        fetch(target, url=url, **EXPECTED)
    assert files(target) == {}


def test_a_folder_that_cannot_be_made_is_a_weights_error(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="can't be written"):
        fetch(tmp_path / "file" / "w.npz", url=server.url, **EXPECTED)


def test_progress_counts_up_to_the_whole_and_goes_on_after_a_break(server, target):
    server.break_after = (100_000,)
    seen = []
    fetch(target, url=server.url, progress=lambda *now: seen.append(now), **EXPECTED)
    done = [now for now, _ in seen]
    assert done == sorted(done)
    assert 100_000 in done
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert Counter(whole for _, whole in seen).keys() == {len(CONTENT)}


class Published:
    """A codec that gives the published fields back, or whatever `change` makes of them."""

    id = "published"

    def __init__(self, golden, change=lambda fields: fields):
        self.codes = golden["codes"]
        self.fields = change(golden["fields"].astype(np.float32))

    def decode(self, codes):
        assert (codes == self.codes).all()
        return self.fields


@pytest.fixture
def golden(shared_data):
    with np.load(shared_data / "golden_masks.npz") as file:
        return dict(file)


def test_verify_passes_what_decodes_like_google_up_to_scale(golden):
    found = verify(Published(golden, lambda fields: fields / 99 - 1))
    assert found.passed
    assert found.correlations == pytest.approx([1] * 5)


def test_verify_fails_when_one_field_is_another(golden):
    swapped = Published(golden, lambda fields: fields[[0, 1, 2, 4, 3]])
    assert not verify(swapped).passed
    assert verify(swapped).correlations[:3] == pytest.approx([1] * 3)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_verify_fails_fields_that_say_nothing(golden, value):
    def blank(fields):
        fields[3] = value
        return fields

    found = verify(Published(golden, blank))
    assert not found.passed
    assert found.correlations[3] == 0


def test_verify_fails_random_weights(random_weights):
    found = verify(load_codec(random_weights))
    assert not found.passed
    assert len(found.correlations) == 5
