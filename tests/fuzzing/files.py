"""Files of other tools, files of rows, pages, and the files that a run leaves."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from palidecode.cli import main
from palidecode.coco.detections import from_coco
from palidecode.ray_data.sources import answers_of, records_of
from palidecode.runs.answers import DecodeJob, DecodeOptions
from palidecode.runs.journal import FAILURES, write_failures
from tests.fuzzing import Target, folder, refused
from tests.fuzzing.answers import _rows
from tests.fuzzing.guard import watched
from tests.fuzzing.mutation import NUMBERS, TEXTS, change_bytes, change_json, change_rows
from tests.samples import answer

SIZE = (8, 6)
_KINDS = ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt")


@cache
def place() -> Path:
    """A folder of two pictures, and one of outputs."""
    made = folder() / "files"
    (made / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", SIZE).save(made / "images" / name)
    (made / "dataset.json").write_bytes(_datasets()[0])
    from_coco(made / "dataset.json")  # msgspec runs code of its own once
    return made


def command(*words: object) -> tuple[int, str]:
    """A command's exit code, and its stderr, which reports no defect."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with (
        # A page's template is code of our own.
        nullcontext() if words[0] == "view" else watched(place()),
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        code = main([str(word) for word in words])
    said = err.getvalue()
    assert code in (0, 1, 2), code
    assert "please report" not in said, said
    assert "PALIDECODE_DEBUG" not in said, said
    if code == 2:
        assert said.count("palidecode: ") >= 1, said
    return code, said


def sound_coco(path: Path, *, crowd: bool = True) -> None:
    """The numbers of a COCO dataset can be used."""
    dataset = json.loads(path.read_text(), parse_constant=lambda text: 1 / 0)
    sizes = {image["id"]: (image["width"], image["height"]) for image in dataset["images"]}
    names = {category["id"] for category in dataset["categories"]}
    for row in dataset["annotations"]:
        width, height = sizes[row["image_id"]]
        assert row["category_id"] in names
        assert all(map(math.isfinite, [*row["bbox"], row["area"]])), row
        assert min(*row["bbox"][2:], row["area"]) >= 0, row
        assert min(width, height) > 0


# -- rows --------------------------------------------------------------------------------


def _row_files() -> list[bytes]:
    """Files of each kind, after a byte that says which."""
    rows = [json.loads(line) for line in _rows()[0].splitlines()]
    table = io.StringIO()
    columns = ["image", "width", "height", "output", "prompt"]
    writer = csv.DictWriter(table, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    found = [b"\x00" + part for part in _rows()]
    found += [b"\x01" + json.dumps(rows).encode(), b"\x01" + _rows()[0]]
    found += [b"\x02" + table.getvalue().encode()]
    found += [b"\x03" + table.getvalue().replace(",", "\t").encode(), b"\x04" + _rows()[0]]
    chat = {"choices": [{"message": {"content": answer("cat")}}]}
    batch = {"custom_id": "a.png", "response": {"body": chat}, "size": [9, 9]}
    return [*found, b"\x00" + json.dumps(batch).encode()]


def _change_file(rng: random.Random, data: bytes) -> bytes:
    kind, rest = data[:1] or b"\0", data[1:]
    how = rng.random()
    if how < 0.05:
        return kind + rest.decode("latin-1").encode(rng.choice(("utf-16", "utf-16-le", "utf-32")))
    if how < 0.1:
        return kind + b"\xef\xbb\xbf" + rest
    if how < 0.15:
        packed = gzip.compress(rest, mtime=0)
        return kind + rng.choice((packed, packed[: rng.randrange(len(packed))], packed * 2))
    if how < 0.2:
        return kind + b"[" * 3000 + rest
    if how < 0.25:
        word = rng.choice((b"problem", b"line", b"bytes", b"error", b"size", b"path"))
        return kind + rest.replace(b'"prompt"', b'"' + word + b'"').replace(b"prompt", word)
    change = change_json if kind == b"\1" else change_rows
    return kind + (change_bytes if kind in b"\2\3" else change)(rng, rest)


def run_row_files(data: bytes) -> None:
    """Rows are the same through Ray's sources; the command ends in order, its file is sound."""
    name = _KINDS[(data[0] if data else 0) % len(_KINDS)]
    path = place() / name
    path.write_bytes(data[1:])
    options = DecodeOptions(size=(32, 32))
    alone: list[object] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = refused(lambda: alone.extend(DecodeJob(options).items(path)))
        parts: list[object] = []

        def through_ray() -> None:
            source, reader = answers_of(path, options)
            job = DecodeJob(options, reader)
            for part in source.shards(3, job.columns):
                assert part is not None
                parts.extend(map(job.item, records_of(part)))

        refusal = refused(through_ray)
    if said is None and refusal is None:
        assert repr(parts) == repr(alone)
    output = place() / "coco.json"
    output.unlink(missing_ok=True)
    code, err = command("decode", path, "-o", output, "--size", "32x32", "--no-journal")
    assert (code == 2) == (not output.exists()), (code, err)
    if output.exists():
        sound_coco(output)


# -- formats -----------------------------------------------------------------------------

_VOC = """<annotation><filename>a.png</filename><size><width>8</width><height>6</height>
<depth>3</depth></size><object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin>
<ymin>2</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>"""
_CVAT = """<annotations><version>1.1</version><meta><task><labels><label><name>cat</name></label>
</labels></task></meta><image id="0" name="a.png" width="8" height="6"><box label="cat" xtl="1"
ytl="2" xbr="5" ybr="6" occluded="0"/><polygon label="cat" points="1,1;4,1;4,4"/></image>
</annotations>"""
_ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
_LAUGHS = f'<!DOCTYPE a [<!ENTITY e0 "ha">{_ENTITIES}]>'
_YOLO = "names: [cat, dog]\n\x00" + "0 0.5 0.5 0.25 0.5\n1 0.5 0.5 0.5 0.5 0.9\n0 0 0 1 0 1 1 0 1\n"


def _change_text(rng: random.Random, data: bytes) -> bytes:
    """Numbers and texts between tags, quotes and spaces swapped for hostile ones."""
    if rng.random() < 0.3:
        return change_bytes(rng, data)
    text = data.decode("latin-1")
    places = [n for n, letter in enumerate(text) if letter in "<>\"' ;,\n:"] or [0]
    start = rng.choice(places)
    stop = next((place for place in places if place > start), len(text))
    new = rng.choice((str(rng.choice(NUMBERS)), rng.choice(TEXTS), "&e9;", "&#0;", "&x;"))
    made = text[: start + 1] + new + text[stop:]
    if rng.random() < 0.05:
        made = _LAUGHS + made
    return made.encode("utf-8", "surrogatepass")


def _read(kind: str, make: Callable[[Path, bytes], Path]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        base = place() / kind
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        source = make(base, data)
        output = place() / "coco.json"
        output.unlink(missing_ok=True)
        more = ["--images", place() / "images"] if kind == "yolo" else []
        code, err = command("convert", source, "--from", kind, "--to", "coco", "-o", output, *more)
        assert (code == 2) == (not output.exists()), (code, err)
        if output.exists():
            sound_coco(output)

    return run


def _voc(base: Path, data: bytes) -> Path:
    (base / "a.xml").write_bytes(data)
    return base


def _cvat(base: Path, data: bytes) -> Path:
    (base / "a.xml").write_bytes(data)
    return base / "a.xml"


def _yolo(base: Path, data: bytes) -> Path:
    config, _, rows = data.partition(b"\0")
    (base / "data.yaml").write_bytes(config)
    (base / "a.txt").write_bytes(rows)
    return base


# -- COCO to other formats and to a page -------------------------------------------------


def _datasets() -> list[bytes]:
    images = [
        {"id": 1, "file_name": "a.png", "width": 8, "height": 6},
        {"id": 2, "file_name": "sub/b.png", "width": 8, "height": 6},
    ]
    rle = {"size": [6, 8], "counts": [0, 3, 45]}
    rows = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 8, 6], "score": 0.5},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [0, 0, 1, 3], "segmentation": rle},
        {"id": 4, "image_id": 2, "category_id": 2, "segmentation": [[1, 1, 4, 1, 4, 4]]},
    ]
    rows[3]["bbox"] = [1, 1, 3, 3]
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    info = {"model": "m", "prompts": ["detect cat"], "description": "d"}
    data = {"info": info, "images": images, "annotations": rows, "categories": names}
    return [json.dumps(data).encode()]


def run_convert(data: bytes) -> None:
    """Every format is written inside its folder, and read again where there is a reader."""
    path = place() / "dataset.json"
    path.write_bytes(data)
    for kind in ("yolo", "yolo-seg", "voc", "cvat", "labelstudio", "createml", "csv"):
        output = place() / "converted"
        shutil.rmtree(output, ignore_errors=True)
        output.unlink(missing_ok=True) if output.is_file() else None
        code, _ = command("convert", path, "--to", kind, "-o", output)
        if code == 2:
            assert not output.is_file()
            continue
        if kind in ("labelstudio", "createml"):
            json.loads(output.read_text(), parse_constant=lambda text: 1 / 0)
        if kind in ("voc", "cvat"):
            back = place() / "back.json"
            back.unlink(missing_ok=True)
            code, err = command("convert", output, "--from", kind, "--to", "coco", "-o", back)
            assert code != 2, err
            sound_coco(back)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.odd: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append("")
        elif tag in ("img", "iframe", "object", "embed", "link", "base", "form"):
            self.odd.append(tag)
        self.odd += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts[-1] += data


def run_view(data: bytes) -> None:
    """The page has its own two scripts and no element from the data."""
    path = place() / ("dataset.json" if data[:1] == b"{" else "answers.jsonl")
    path.write_bytes(data)
    output = place() / "page"
    shutil.rmtree(output, ignore_errors=True)
    code, _ = command("view", path, "--images", place() / "images", "-o", output)
    if code != 2:
        page = _Page()
        page.feed((output / "index.html").read_text())
        assert not page.odd, page.odd
        assert len(page.scripts) == 2
        json.loads(page.scripts[0], parse_constant=lambda text: 1 / 0)


def _answers() -> list[bytes]:
    rows = [
        {"image": "a.png", "output": f"{answer('cat')} ; x", "prompt": "detect cat"},
        {"image": "sub/b.png", "token_ids": [256_000, 256_000, 256_512, 256_512, 7]},
    ]
    return ["\n".join(map(json.dumps, rows)).encode(), *_datasets()]


def _change_page(rng: random.Random, data: bytes) -> bytes:
    return (change_json if b'"images"' in data else change_rows)(rng, data)


# -- failures ----------------------------------------------------------------------------


def _failures() -> list[bytes]:
    rows = [{"output": name, "line": 3, "reason": "r"} for name in ("a.json", "b.json", "a.json")]
    return ["".join(json.dumps(row) + "\n" for row in rows).encode()]


def _of(line: bytes) -> object:
    """The output that a line names; None for a line that isn't JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return (isinstance(row, dict) and row.get("output")) or ""


def run_failures(data: bytes) -> None:
    """Rows of other outputs stay; a last line that was cut goes."""
    home = place() / "failures"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    (home / FAILURES).write_bytes(data)
    *lines, last = data.split(b"\n")
    lines += [last] * (_of(last) is not None)
    write_failures(home / "a.json", [{"line": 7, "reason": "new"}])
    *kept, new, end = (home / FAILURES).read_bytes().split(b"\n")
    assert end == b""
    assert json.loads(new) == {"output": "a.json", "line": 7, "reason": "new"}
    assert kept == [line for line in lines if _of(line) != "a.json"]
    write_failures(home / "a.json", [])
    assert (home / FAILURES).exists() == bool(kept)


TARGETS = {
    "row_files": Target(run_row_files, _row_files, _change_file, 200),
    "voc": Target(_read("voc", _voc), lambda: [_VOC.encode()], _change_text, 80),
    "cvat": Target(_read("cvat", _cvat), lambda: [_CVAT.encode()], _change_text, 80),
    "yolo": Target(_read("yolo", _yolo), lambda: [_YOLO.encode()], _change_text, 80),
    "convert": Target(run_convert, _datasets, change_json, 25),
    "view": Target(run_view, _answers, _change_page, 60),
    "failures": Target(run_failures, _failures, change_rows, 100),
}
