"""A local Ray, and answers and pictures for it, every tenth broken."""

from __future__ import annotations

import json
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from palidecode import ray_data
from palidecode.cli import main
from palidecode.codec.weights import DEMO_ID
from palidecode.runs.journal import FAILURES
from tests.runtime.tiny_models import one_thread, write_folder
from tests.samples import answer

ANSWERS, PICTURES, BATCH = 240, 44, 4
WORKERS = {"concurrency": 2, "num_cpus": 0.5}
ASK = {"dtype": "float32", "batch_size": BATCH, "max_new_tokens": 40}
WORDS = ["--dtype", "float32", "--batch-size", str(BATCH), "--max-new-tokens", "40"]

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc"),
    # Ray's advice for runs that have fewer shards than workers, where Datasets run by themselves.
    pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors:UserWarning"),
]


def ray_processes(session):
    """Titles of the processes of a Ray session, and their ids."""
    found, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    own = {pid for pid, title in found.items() if session in title}
    # Workers write their title over all that would name their session.
    workers = {pid for pid, parent in parents.items() if parent in own}
    return {pid: found[pid] for pid in own | workers}


def gone(processes, patience=1800):
    """Wait until the processes end by themselves, for `patience` tenths of a second."""
    left = list(processes)
    for _ in range(patience):
        left = [pid for pid in left if running(pid)]
        if not left:
            return True
        time.sleep(0.1)
    return False


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="session")
def orphans():
    """Processes of a Ray whose driver was killed: Ray takes a minute until it notices."""
    processes = {}
    yield processes
    assert gone(processes), processes


@pytest.fixture(scope="session")
def cluster():
    """Ray with two CPUs; nothing of it is left afterwards."""
    import ray.data

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own start
        for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_BACKEND_LOG_LEVEL", "fatal")):
            patch.setenv(name, value)
        patch.delenv("PALIDECODE_WEIGHTS", raising=False)
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=200 << 20,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        session = Path(ray._private.worker._global_node.get_session_dir_path()).name
        with one_thread():
            yield session
        processes = ray_processes(session)
        assert len(processes) > 1
        ray.shutdown()
    assert gone(processes), processes


@pytest.fixture(scope="session")
def place(tmp_path_factory, cluster):
    """Answers and pictures, every tenth broken, a tiny model, and what one machine makes of it."""
    folder = tmp_path_factory.mktemp("ray")
    model = write_folder(folder / "model")
    (model / "palidecode.json").write_text(json.dumps({"codes": DEMO_ID}))
    rng = np.random.default_rng(6)
    lines = []
    for number in range(ANSWERS):
        objects = [
            answer(
                f"thing {rng.integers(9)}",
                rng.integers(0, 1024, 4).tolist(),
                rng.integers(0, 128, 16).tolist(),
            )
            for _ in range(rng.integers(4))
        ]
        # Some pictures have several answers, also far apart.
        row = {"image": f"{number % 200:03}.png", "width": 320, "height": 240}
        lines.append(json.dumps({**row, "output": " ; ".join(objects)}))
        if number % 10 == 3:
            lines[-1] = lines[-1][:30]
        if number % 70 == 9:
            lines.append("")
    (folder / "answers.jsonl").write_text("\n".join(lines))
    (folder / "pictures" / "more").mkdir(parents=True)
    for number in range(PICTURES):
        path = folder / "pictures" / ("more" if number % 5 else "") / f"{number:03}.png"
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)
        if number % 10 == 3:
            path.write_bytes(path.read_bytes()[:200])
    one = folder / "one"
    one.mkdir()
    assert main(decode_words(folder, one / "decoded.json")) == 1
    assert main(predict_words(folder, one / "predicted.json")) == 1
    return folder


def decode_words(place, output):
    words = ["decode", place / "answers.jsonl", "--weights", DEMO_ID, "--segmentation", "rle"]
    return [str(word) for word in [*words, "--batch-size", "8", "-o", output]]


def predict_words(place, output):
    words = ["predict", place / "pictures", "--model", place / "model", "--segmentation", "rle"]
    return [str(word) for word in [*words, *WORDS, "--prompt", "segment cat ; dog", "-o", output]]


def one(place, name):
    """The file of the single machine, and what failed there."""
    return (place / "one" / f"{name}.json").read_bytes(), failures(place / "one", name)


def failures(folder, name):
    rows = map(json.loads, (folder / FAILURES).read_text().splitlines())
    return [{**row, "output": ""} for row in rows if row["output"] == f"{name}.json"]


def decoded(place, source=None, **options):
    source = place / "answers.jsonl" if source is None else source
    given = {"weights": DEMO_ID, "batch_size": 8, "shard_size": 16, **WORKERS, **options}
    return ray_data.decode(source, **given)


def predicted(place, source=None, **options):
    source = place / "pictures" if source is None else source
    given = {"prompt": "segment cat ; dog", "shard_size": 8, **ASK, **WORKERS, **options}
    return ray_data.predict(source, model=place / "model", **given)


MAKE = {"decoded": decoded, "predicted": predicted}
WORDS_OF = {"decoded": decode_words, "predicted": predict_words}


def printed(capsys):
    """The JSON of a command; Ray prints what it has to say of killed workers before it."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def same(place, folder, name):
    assert (folder / f"{name}.json").read_bytes() == one(place, name)[0]
    assert failures(folder, name) == one(place, name)[1]
    assert {path.name for path in folder.iterdir()} <= {f"{name}.json", FAILURES}


def pictures_of(place):
    folder = place / "pictures"
    return sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*.png"))
