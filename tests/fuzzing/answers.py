"""Answers: text, token ids, streams and batches of them; JSONL rows; run-length encoding."""

from __future__ import annotations

import json
import random
import warnings
from itertools import groupby

import numpy as np

from palidecode.answers.batch import parse_batch
from palidecode.answers.parsing import IssueKind, ParseResult, format_objects, parse
from palidecode.answers.row_files import Problem
from palidecode.answers.rows import read_rows
from palidecode.answers.stream import StreamParser
from palidecode.coco.writing import to_coco
from palidecode.errors import InputError
from palidecode.geometry.boxes import loc_to_xyxy
from palidecode.geometry.rle import check_rle, rle_to_crop, rle_to_window
from palidecode.runs.answers import AnswerDecoder, decode_rows
from palidecode.vocab import loc_token, seg_token
from tests.fuzzing import Target, folder, refused, written
from tests.fuzzing.mutation import TEXTS, change_bytes, change_rows
from tests.samples import CODES, answer

_WORDS = (" cat", "dog", " ;", "\n", " ", "<loc", ";", "<0x41>", "", "<loc0000>", "é", "<eos>")
_FEWEST_PER_OBJECT = 12  # letters: the box or the mask alone takes more


def _texts() -> list[bytes]:
    cat, boat = answer("cat"), answer("sail boat", (1, 2, 1023, 1000), CODES)
    texts = [cat, boat, f"{cat} ; {boat}<eos>", f"{boat} ; {boat}", "", f"Sure! {cat[:-8]}"]
    texts += [
        f"{cat}\n{boat}",
        f"<bos>{cat}<eos>{boat}",
        boat[:80],
        "<loc0001> <loc0002>",
        "<seg000>",
    ]
    return [text.encode() for text in texts]


def change_answer(rng: random.Random, data: bytes) -> bytes:
    """Whole tokens as often as bytes."""
    if rng.random() < 0.4:
        return change_bytes(rng, data)
    text = _text_of(data)
    pieces = [
        loc_token(rng.randrange(1024)),
        seg_token(rng.randrange(128)),
        "<loc1024>",
        "<seg128>",
    ]
    piece = rng.choice((*pieces, *pieces, " ; ", ";", "<eos>", "<pad>", "<bos>", "\n", *TEXTS))
    place = rng.randrange(len(text) + 1)
    stop = place + rng.choice((0, 0, 1, 9, 40))
    made = text[:place] + piece * rng.choice((1, 1, 4, 16, 17)) + text[stop:]
    return made.encode("utf-8", "surrogatepass")[: 1 << 16]


def _text_of(data: bytes) -> str:
    for how in ("strict", "surrogatepass"):
        try:
            return data.decode("utf-8", how)
        except UnicodeDecodeError:
            pass
    return data.decode("latin-1")


def run_text(data: bytes) -> None:
    """Whole, in a stream cut where the data says, and in a batch: the same; and back to text."""
    text = _text_of(data)
    result = parse(text)
    _check_objects(result, len(text), text)
    stream, objects, place = StreamParser(), [], 0
    steps = [byte % 23 for byte in data[:64]] or [1]
    while place < len(text):
        step = steps[place % len(steps)]
        objects += stream.feed(text[place : place + step])
        place += max(step, 1) if step else 0
        if not step:
            objects += stream.feed(text[place : place + 1])
            place += 1
    objects += stream.close()
    assert ParseResult(tuple(objects), stream.issues) == result
    clean = answer("cat")
    _check_batch(parse_batch([clean, text, clean]), result)
    _check_back(result)


def _check_objects(result: ParseResult, length: int, text: str | None = None) -> None:
    assert len(result.objects) * _FEWEST_PER_OBJECT <= max(length, 0) * (
        1 if text is not None else 12
    )
    last = 0
    for item in result.objects:
        start, stop = item.span
        assert last <= start < stop <= length
        last = stop
        assert item.loc is None or (len(item.loc) == 4 and all(0 <= v < 1024 for v in item.loc))
        assert item.seg is None or (len(item.seg) == 16 and all(0 <= v < 128 for v in item.seg))
        assert item.loc is not None or item.seg is not None
        if text is not None:
            assert item.label in text[start:stop]
        assert item.label == item.label.strip()
        assert not set(item.label) & set(";\n")
    for kind, (start, stop), said in result.issues:
        assert isinstance(kind, IssueKind)
        assert 0 <= start <= stop <= length
        assert text is None or said == text[start:stop]
    locs = [item.loc for item in result.objects if item.loc is not None]
    boxes = loc_to_xyxy(np.array(locs, np.int16).reshape(-1, 4), (640, 480))
    assert np.isfinite(boxes).all()


def _check_batch(batch: object, result: ParseResult, row: int = 1) -> None:
    mine = np.flatnonzero(batch.answer_index == row)  # type: ignore[attr-defined]
    boxed = [item for item in result.objects if item.loc is not None]
    assert [tuple(loc) for loc in batch.loc[mine].tolist()] == [item.loc for item in boxed]  # type: ignore[attr-defined]
    assert [batch.labels[place] for place in mine.tolist()] == [item.label for item in boxed]  # type: ignore[attr-defined]
    codes = [
        tuple(c) if m else None
        for c, m in zip(batch.codes[mine].tolist(), batch.has_mask[mine], strict=True)
    ]  # type: ignore[attr-defined]
    assert codes == [item.seg for item in boxed]
    assert tuple(issue for number, issue in batch.issues if number == row) == result.issues  # type: ignore[attr-defined]


def _check_back(result: ParseResult) -> None:
    """Formatted objects parse to the same objects and to no further issues."""
    try:
        text = format_objects(result.objects)
    except InputError:
        return
    again = parse(text)
    assert [item[:3] for item in again.objects] == [item[:3] for item in result.objects]
    kinds = {issue.kind for issue in again.issues}
    own = {IssueKind.DUPLICATE, IssueKind.EMPTY_BOX, IssueKind.INVERTED_BOX, IssueKind.MISSING_LOC}
    assert kinds <= own


def _detokenize(ids: list[int]) -> str:
    return "".join(_WORDS[token % len(_WORDS)] for token in ids)


def run_ids(data: bytes) -> None:
    """Token ids: sixteen bits each, the special ones often; whole, in a stream and in a batch."""
    special = (*range(256_000, 256_004), 257_023, 257_024, 257_151, 257_152, 0, 1, 2, -1, 3, 108)
    ids = [
        special[low % len(special)] if high & 1 else (256_000 + (low << 2) if high & 2 else low)
        for high, low in zip(data[::2], data[1::2], strict=False)
    ]
    for detokenize in (None, _detokenize):
        result = parse(ids, detokenize=detokenize)
        _check_objects(result, len(ids))
        stream = StreamParser(detokenize=detokenize)
        objects = []
        for _, part in groupby(range(len(ids)), lambda place: place // (1 + len(data) % 7)):
            objects += stream.feed([ids[place] for place in part])
        objects += stream.close()
        assert ParseResult(tuple(objects), stream.issues) == result
        whole = [256_000, 256_000, 256_009, 256_009, 7]
        _check_batch(parse_batch([whole, ids, whole], detokenize=detokenize), result)


def _rows() -> list[bytes]:
    text = f"{answer('cat')} ; {answer('boat', (1, 2, 900, 1000), CODES)}"
    rows: list[dict[str, object]] = [
        {
            "image": "a.jpg",
            "width": 64,
            "height": 48,
            "output": text,
            "prompt": "segment cat ; boat",
        },
        {
            "size": [64, 48],
            "output": answer(""),
            "prompt": "detect cat",
            "scores": [0.5],
            "codec": "x",
        },
        {
            "image": "a.jpg",
            "size": [64, 48],
            "token_ids": [256_000, 256_000, 256_512, 256_512, 7, 1],
        },
        {"image": "b", "image_size_wh": [9, 9], "suffix": answer("cat"), "prefix": "detect cat"},
    ]
    return [
        "\n".join(json.dumps(row) for row in part).encode() for part in (rows, rows[:1], rows[1:2])
    ]


def run_rows(data: bytes) -> None:
    """A file of answers to COCO: every row is in it or is a problem with its line."""
    path = written("answers.jsonl", data)
    options = AnswerDecoder(detokenize=_detokenize, label_from_prompt=True)
    images, rows = folder() if data[:1] == b"#" else None, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the truth instead of answers
        if refused(lambda: rows.extend(read_rows(path, images, (32, 32)))) is not None:
            return  # which key has the answers isn't clear
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines))
    assert len(lines) == sum(bool(line.strip()) for line in data.split(b"\n"))
    for used, found, problems in decode_rows(rows, options, 3):
        assert all(isinstance(problem, Problem) and problem.reason for problem in problems)
        assert np.isfinite(found.xyxy).all()
        assert not np.isinf(found.scores).any()
        dataset = to_coco(found, file_names=[row.name for row in used], segmentation="none")
        json.dumps(dataset, allow_nan=False)


def _run_lengths() -> list[bytes]:
    return [b"\x04\x035141O14", b"\x10\x0c\x60\x30", b"\x40\x30" + b"`0ng1@1O" * 9, b"\x01\x011"]


def run_rle(data: bytes) -> None:
    """Compressed counts: what is let through is what pycocotools may be given."""
    width, height, counts = (data[0] if data else 1), (data[1] if len(data) > 1 else 1), data[2:]
    for given in (counts, counts.decode("latin-1"), list(counts)):
        rle = {"size": [height, width], "counts": given}
        if refused(check_rle, rle) is None:
            checked = check_rle(rle)
            crop = rle_to_crop(checked)
            assert crop.x0 + crop.mask.shape[1] <= width
            assert crop.y0 + crop.mask.shape[0] <= height
            window = rle_to_window(checked, [0, 0, width, height])
            assert window.sum() == crop.mask.sum()


TARGETS = {
    "parser": Target(run_text, _texts, change_answer, 1500),
    "ids": Target(
        run_ids,
        lambda: [bytes(range(1, 120)), bytes([1, 0, 1, 1, 1, 2, 1, 3, 0, 7] * 6)],
        change_bytes,
        400,
    ),
    "rows": Target(run_rows, _rows, change_rows, 700),
    "rle": Target(run_rle, _run_lengths, change_bytes, 1500),
}
