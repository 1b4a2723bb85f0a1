"""A server in a process of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Running:
    """A server that takes requests."""

    process: subprocess.Popen
    url: str

    def stop(self, number=signal.SIGTERM):
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def server(*options: str, port: int = 0) -> Iterator[Running]:
    """Run ``palidecode serve`` with the tiny model, until the block ends."""
    command = [sys.executable, "-m", "palidecode", "serve", "--engine", "onnx", "--port", str(port)]
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            url = re.search(r"http://\S+/", process.stdout.readline())
            assert url, "the server didn't start"
            yield Running(process, url[0])
        finally:
            process.kill()
