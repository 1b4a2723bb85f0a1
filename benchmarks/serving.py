"""Throughput, latency and memory of ``palidecode serve`` on loopback, with the tiny model.

python benchmarks/serving.py
python benchmarks/serving.py --requests 500    # a shorter run
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
from measure import Cell, Table, Target, at_least, at_most, report

CLIENTS = (1, 8, 32)
ROUND = 400  # requests of each number of clients
SCENES = 12


@dataclass
class Load:
    """Seconds of each request, and the statuses."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    elapsed: float = 0.0


@contextmanager
def serving() -> Iterator[tuple[int, int]]:
    """Run the server; yield its port and the id of its process."""
    command = [sys.executable, "-m", "palidecode", "serve", "--engine", "onnx", "--port", "0", "-q"]
    command += ["--batch-size", "32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found, f"the server didn't start: {line}"
        try:
            yield int(found[1]), process.pid
        finally:
            process.terminate()


def ask(port: int, clients: int, requests: int) -> Load:
    """Send requests from some clients, each of which waits for its answer."""
    load, numbers, lock = Load(), count(), threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while (number := next(numbers)) < requests:
            task = ("detect", "segment")[number % 2]
            body = json.dumps({"scene": f"scene_{number % SCENES:06}.jpg"})
            began = time.perf_counter()
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/v1/{task}", body, headers)
            reply = connection.getresponse()
            reply.read()
            with lock:
                load.seconds.append(time.perf_counter() - began)
                load.statuses[reply.status] += 1
        connection.close()

    began = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.elapsed = time.perf_counter() - began
    return load


def resident(process: int) -> float:
    """Return a process's resident memory in MB."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * 4096 / 1e6


def throughput(port: int) -> tuple[Table, list[Target]]:
    """Measure requests a second and their seconds by the number of clients."""
    ask(port, 4, 48)  # starts sessions, encodes the pictures
    rows: list[list[Cell]] = []
    rates = {}
    errors = 0
    for clients in CLIENTS:
        load = ask(port, clients, ROUND)
        rates[clients] = len(load.seconds) / load.elapsed
        parts = np.percentile(load.seconds, [50, 95, 99]) * 1000
        rows.append([clients, rates[clients], *map(float, parts)])
        errors += sum(load.statuses.values()) - load.statuses[200]
    columns = ("clients", "requests/s", "p50, ms", "p95, ms", "p99, ms")
    note = (
        f"{ROUND} requests each, `detect` and `segment` of all classes in turns, pictures of the "
        "demo. Server and clients share the machine's cores."
    )
    gain = rates[CLIENTS[-1]] / rates[1]
    targets = [
        at_least(f"{CLIENTS[-1]} clients", gain, 2.5, "× one client's requests/s"),
        at_most("requests that fail", errors, 0, "of all"),
    ]
    return Table("Requests", columns, rows, note), targets


def memory(port: int, process: int, requests: int) -> tuple[Table, list[Target]]:
    """Measure the server's memory while it answers many requests."""
    rows: list[list[Cell]] = []
    failed = 0
    for part in range(1, 6):
        load = ask(port, CLIENTS[-1], requests // 5)
        failed += sum(load.statuses.values()) - load.statuses[200]
        rows.append([part * requests // 5, resident(process)])
    sizes = [float(row[1] or 0) for row in rows]
    targets = [
        at_most(
            f"memory after {requests:,} requests", sizes[-1] / sizes[0], 1.1, "× after a fifth"
        ),
        at_most(f"of {requests:,} requests fail", failed, 0, "of all"),
    ]
    title = f"Memory of the server, {CLIENTS[-1]} clients"
    return Table(title, ("requests", "resident, MB"), rows), targets


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=5000, help="of the memory's measurement")
    given = parser.parse_args()
    with serving() as (port, process):
        parts = [throughput(port), memory(port, process, given.requests)]
    report("serving", [table for table, _ in parts], [t for _, targets in parts for t in targets])


if __name__ == "__main__":
    main()
