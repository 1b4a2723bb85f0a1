"""A server in its own process: signals, clients that go away, half-sent and slow requests."""

import json
import signal
import socket
import time
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import httpx2
import pytest

from palidecode.cli import main
from tests.serve.running import server

pytestmark = pytest.mark.slow

LONG = {
    "scene": "scene_000004.jpg",
    "prompt": "detect cat",
    "options": {"max_new_tokens": 1024, "temperature": 100.0, "grammar": False},
}
"""With the default seed this random answer goes to its limit, over a second."""
SHORT = {"scene": "scene_000004.jpg", "prompt": "cat"}
HEAD = b"POST /v1/decode HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def running():
    with server("--timeout", "30", "--max-body", "200000") as made:
        yield made


def place(running):
    parts = urlsplit(running.url)
    return parts.hostname, parts.port


@contextmanager
def begun(running, body=LONG):
    """Yield the lines of a streamed answer, of which the first was read."""
    with httpx2.stream("POST", f"{running.url}v1/stream", json=body, timeout=60) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "event: start"
        yield lines


def answered(running):
    """Ask a short question, and return the status; 0 if nothing listens."""
    try:
        return httpx2.post(f"{running.url}v1/detect", json=SHORT, timeout=30).status_code
    except httpx2.TransportError:
        return 0


def in_progress(running):
    lines = httpx2.get(f"{running.url}metrics").text.splitlines()
    name = "palidecode_answers_in_progress "
    return float(next(line.removeprefix(name) for line in lines if line.startswith(name)))


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


def test_a_client_that_goes_away_stops_the_work(running):
    with begun(running):
        assert in_progress(running) == 1
    wait_for(lambda: in_progress(running) == 0)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{running.url}v1/detect", json=LONG, timeout=0.05)
    wait_for(lambda: in_progress(running) == 0)
    assert answered(running) == 200


def test_half_a_body_and_then_nothing(running):
    with socket.create_connection(place(running)) as client:
        client.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
    assert answered(running) == 200


def test_many_idle_connections_leave_the_others(running):
    with ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(socket.create_connection(place(running)))
            client.sendall(HEAD)  # never more
        assert answered(running) == 200


def test_a_body_that_comes_slowly_is_given_up():
    with (
        server("--body-timeout", "0.3") as running,
        socket.create_connection(place(running), 30) as client,
    ):
        client.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read_leaves_the_others(running):
    body = json.dumps(LONG).encode()
    with socket.create_connection(place(running)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        head = HEAD.replace(b"decode", b"stream") + b"Content-Type: application/json\r\n"
        client.sendall(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        wait_for(lambda: in_progress(running) == 1)
        assert answered(running) == 200
        wait_for(lambda: in_progress(running) == 0)


def test_sigterm_ends_running_requests_and_refuses_new_ones():
    with server() as running, begun(running) as lines:
        running.process.send_signal(signal.SIGTERM)
        wait_for(lambda: answered(running) == 503)
        *_, end, whole = [line for line in lines if line]
        assert end == "event: end"
        assert json.loads(whole.removeprefix("data: "))["finished"] is False  # it is LONG
        assert running.process.wait(60) == 0


def test_a_second_signal_ends_at_once():
    with server() as running, begun(running):
        running.process.send_signal(signal.SIGINT)
        wait_for(lambda: answered(running) == 503)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(60) == -signal.SIGINT


def test_killed_and_started_again_it_serves_on_the_same_port():
    with server() as running, begun(running):
        port = place(running)[1]
        running.process.kill()
        running.process.wait(60)
    with server(port=port) as again:
        assert place(again)[1] == port
        assert answered(again) == 200


def test_a_port_in_use_is_one_line(running, capsys):
    port = place(running)[1]
    assert main(["serve", "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"127.0.0.1:{port}" in line
    assert "--port 0" in line
