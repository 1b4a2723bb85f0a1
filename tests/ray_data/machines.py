"""Machines of a Ray cluster, all on this one: each with a Ray of its own, or a network, too."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from palidecode.runs.journal import shards_folder
from tests.ray_data.samples import running

# Of Ray: no usage reports, no tokens, and 5 seconds without a head instead of 60.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_AUTH_MODE": "disabled",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "OMP_NUM_THREADS": "1",
}
NETWORK = "10.213.7"
LINKS = os.name == "posix" and os.geteuid() == 0 and shutil.which("ip") is not None


class Machine:
    """A machine of a cluster: `ray start`, with one CPU.

    Parameters
    ----------
    folder : path
        Of Ray's files; its name must be short, and is in every process's command line.
    head : str, optional
        Address of the head; without it this is one.
    number : int
        The last byte of its address, in a network namespace; 0 for none.
    environment : mapping, optional
        More than `ENVIRONMENT`.
    """

    def __init__(self, folder, head=None, number=0, port=0, environment=None):
        self.folder, self.inside = folder, ["ip", "netns", "exec", f"pd{number}"] if number else []
        ip = f"{NETWORK}.{number}" if number else "127.0.0.1"
        words = ["-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
        # Two machines of one network must not ask for the same ports.
        words += ["--min-worker-port", "0", "--max-worker-port", "0"]
        words += ["--dashboard-agent-listen-port", "0", "--include-log-monitor", "false"]
        words += ["--object-store-memory", str(100 << 20), "--node-ip-address", ip]
        if head is None:
            self.address = f"{ip}:{port or free_port()}"
            words += ["--head", "--port", self.address.rpartition(":")[2]]
            words += ["--include-dashboard", "false", "--temp-dir", str(folder)]
        else:
            self.address = head
            words += ["--address", head]
        self._log = folder.with_suffix(f".{number}.log" if number else f".{len(words)}.log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.inside, sys.executable, *words],
                stdout=log,
                stderr=log,
                env=os.environ | ENVIRONMENT | (environment or {}),
                start_new_session=True,
            )
        self._wait()

    def _wait(self):
        """Wait until the machine has joined."""
        for _ in range(600):
            assert self.process.poll() is None, self._log.read_text()
            if "Ray runtime started" in self._log.read_text():
                return
            time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def kill(self):
        """Kill all that runs on it, as a power cut does."""
        doomed = descendants(self.process.pid)
        for pid in doomed:
            end(pid)
        self.process.wait()
        return doomed


def end(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def descendants(root):
    """A process and all that it has started."""
    children = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append(int(path.name))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def processes_of(folder):
    """Processes that name a folder in their command line or environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            said = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in said and int(path.name) != os.getpid() and running(path.name):
            found.append(int(path.name))
    return found


@contextmanager
def network(*numbers):
    """Network namespaces, each with an address, joined by a bridge."""

    def ip(*words):
        subprocess.run(["ip", *map(str, words)], check=True)

    with ExitStack() as stack:
        ip("link", "add", "pdbridge", "type", "bridge")
        stack.callback(ip, "link", "del", "pdbridge")
        ip("link", "set", "pdbridge", "up")
        for number in numbers:
            space, device = f"pd{number}", f"pdlink{number}"
            ip("netns", "add", space)
            stack.callback(ip, "netns", "del", space)
            ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", space)
            stack.callback(ip, "link", "del", device)  # a namespace ends later than its name
            ip("link", "set", device, "master", "pdbridge", "up")
            ip("-n", space, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield


def cut(number, seconds):
    """Take a machine's cable out for a while."""
    for state, pause in (("down", seconds), ("up", 0)):
        subprocess.run(["ip", "link", "set", f"pdlink{number}", state], check=True)
        time.sleep(pause)


class Command:
    """`palidecode … --ray ADDRESS`, with its shards."""

    started: ClassVar[list[subprocess.Popen]] = []  # ended by a fixture where a test fails

    def __init__(self, machine, words, *more):
        self.output = Path(words[-1])
        ray = ["--ray", machine.address]
        self.process = subprocess.Popen(
            [*machine.inside, sys.executable, "-m", "palidecode", *words, *more, *ray],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
        )

        self.started.append(self.process)

    def wait_for(self, shards):
        while len(list(shards_folder(self.output).glob("*.json"))) < shards:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
        assert self.process.poll() is None

    def end(self):
        """Its exit code, and what it says on stderr, without the progress of a slow machine."""
        _, said = self.process.communicate(timeout=200)
        lines = said.splitlines(keepends=True)
        lines = [line for line in lines if not re.search(r": (decod|segment)ing: \d", line)]
        return self.process.returncode, "".join(lines)
