"""Seeded changes of sound inputs, each made so that it gets past the first check of its format."""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import random
import struct
import zipfile
import zlib
from typing import Any

NUMBERS = (
    *(0, 1, -1, 2, 127, 128, 255, 256, 1023, 1024, 65535, 65536, 1 << 29, (1 << 31) - 1, 1 << 31),
    *(1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63), 10**30, 10**400),
    *(0.5, -0.0, 1e-300, 1e9, 1e38, 1e39, 1e300, math.inf, -math.inf, math.nan),
)
TEXTS = (
    *(
        "",
        " ",
        "a",
        "\0",
        "\n",
        "\r",
        ";",
        " ; ",
        "<",
        "<eos>",
        "<loc0000>",
        "<loc1024>",
        "<seg000>",
    ),
    *("..", "../x", "/etc/passwd", ".", "a/../../b", "x" * 300, "\ud800", "\udcff", "é", "e\u0301"),
    *(
        "\u202e",
        "\u2581",
        "\u2028",
        "猫",
        "😀",
        "</script>",
        "'\"><img src=x onerror=a()>",
        "{{7*7}}",
    ),
    *("NaN", "1e400", "-1", "0x10", "١", "[@BOS@]", "%s%n", "~", "|O", ">f4", "<f8"),
)
_PIECES = (
    b"\0",
    b"\xff" * 8,
    b"\n",
    b"}",
    b"[",
    b"{",
    b'"',
    b"<loc0000>",
    b"<seg000>",
    b"<eos>",
    b" ; ",
)
_LONGEST = 1 << 16


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bits flipped, pieces cut, doubled, moved or repeated, numbers put in."""
    found = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        place = rng.randrange(len(found) + 1)
        stop = min(len(found), place + rng.choice((1, 1, 2, 4, 16, 64)))
        how = rng.randrange(9)
        if how == 0 and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif how == 1 and place < len(found):
            found[place] = rng.randrange(256)
        elif how == 2:
            del found[place:stop]
        elif how == 3:
            found[place:place] = found[place:stop] * rng.choice((1, 2, 50))
        elif how == 4:
            found[place:stop] = rng.choice(_PIECES) * rng.choice((1, 1, 1, 20))
        elif how == 5:
            found[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif how == 6:
            number = rng.choice((0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 64) - 1))
            order = rng.choice("<>")
            raw = struct.pack(order + "Q", number)
            width = rng.choice((1, 2, 4, 8))
            found[place : place + width] = raw[:width] if order == "<" else raw[-width:]
        elif how == 7:
            del found[place:]
        else:
            start = rng.randrange(len(found) + 1)
            found[place:place] = found[start : start + rng.randrange(1, 64)]
        found = found[:_LONGEST] or bytearray(b"\0")
    return bytes(found)


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Values of a JSON text swapped for hostile ones, dropped, doubled, nested or moved."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(rng, data)
    if rng.random() < 0.05:
        return change_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = changed_value(rng, value)
    return as_json(value)


def as_json(value: Any) -> bytes:
    """Keep lone surrogates as escapes, and write NaN and Infinity as Python reads them."""
    try:
        return json.dumps(value).encode("ascii")
    except RecursionError:
        return b"[" * 5000


def change_rows(rng: random.Random, data: bytes) -> bytes:
    """JSON Lines: one of the rows is changed."""
    rows = data.split(b"\n")
    place = rng.randrange(len(rows))
    rows[place] = change_json(rng, rows[place])
    if rng.random() < 0.2:
        rows.insert(rng.randrange(len(rows) + 1), rng.choice(rows))
    return b"\n".join(rows)


def changed_value(rng: random.Random, value: Any) -> Any:
    """The same with one place in it changed."""
    parents = list(_parents(value))
    if not parents:
        return hostile(rng, value)
    parent, key = rng.choice(parents)
    how = rng.random()
    if how < 0.1:
        del parent[key]
    elif how < 0.2 and isinstance(parent, list):
        parent[key:key] = [parent[key]] * rng.choice((1, 2, 40))
    elif how < 0.3:
        other, place = rng.choice(parents)
        parent[key] = json.loads(json.dumps(other[place]))
    elif how < 0.35 and isinstance(parent, dict):
        parent[rng.choice(TEXTS)] = parent[key]
    else:
        parent[key] = hostile(rng, parent[key])
    return value


def _parents(value: Any) -> Any:
    keys = (
        value.keys()
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    for key in list(keys):
        yield value, key
        yield from _parents(value[key])


def hostile(rng: random.Random, value: Any) -> Any:
    """Something else in the place of a value, more often of its own kind."""
    kind = (
        type(value) if rng.random() < 0.6 else rng.choice((int, str, list, dict, type(None), bool))
    )
    if kind in (int, float):
        small = isinstance(value, (int, float)) and abs(value) < 1 << 53
        near = value + rng.choice((-1, 1, 0.5)) if small else 3
        return rng.choice((*NUMBERS, near, near, near))
    if kind is str:
        text = value if isinstance(value, str) else "a"
        cut = rng.randrange(len(text) + 1)
        new = rng.choice(TEXTS)
        return rng.choice((new, new, text[:cut] + new + text[cut:], text[:cut], text * 3))
    if kind is list:
        return rng.choice(
            ([], [value], [[]], [None], [value] * 3, [hostile(rng, 1) for _ in range(4)])
        )
    if kind is dict:
        return rng.choice(({}, {"a": value}, {"": None}, {"id": value}))
    return rng.choice((None, True, False))


def change_npz(rng: random.Random, data: bytes) -> bytes:
    """An archive with one member changed, renamed, doubled or packed; its checksums fit."""
    if rng.random() < 0.2:
        return change_bytes(rng, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # what was changed before is no archive any more
        return change_bytes(rng, data)
    if members:
        place = rng.randrange(len(members))
        name, content = members[place]
        how = rng.random()
        if how < 0.7:
            members[place] = name, _change_npy(rng, content)
        elif how < 0.8:
            members[place] = rng.choice(TEXTS).replace("\0", "") or name, content
        elif how < 0.9:
            del members[place]
        else:
            members.append((name + "x.npy", content))
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for number, (name, content) in enumerate(members):
            said = name.encode("utf-8", "replace").decode() or str(number)
            # Of no date: the same round is the same bytes on every day.
            archive.writestr(zipfile.ZipInfo(said), content, archive.compression)
    return out.getvalue()


def _change_npy(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return change_bytes(rng, data)
    sizes = (0, 1, 2, 3, 1 << 20, 1 << 40, (1 << 63) - 1, -1)
    shape = tuple(rng.choice(sizes) for _ in range(rng.randrange(5)))
    kinds = ("<f4", "<f8", "<f2", "|V2", "<u2", "|O", "<i8", "|S3", "<M8[s]", "|b1", "(2,)<f4")
    header: Any = {
        "descr": rng.choice(kinds),
        "fortran_order": rng.choice((True, False)),
        "shape": shape,
    }
    if rng.random() < 0.2:
        header = rng.choice(
            ("{", "[[[[", "{'descr': __import__('os')}", "(" * 300, "{'a': 1}", "''", "1")
        )
    text = (repr(header) + "\n").encode()
    version = rng.choice((1, 1, 2, 3))
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data[128:]


def change_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change a file's header, sometimes with a wrong length."""
    if rng.random() < 0.2 or len(data) < 9:
        return change_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    header = change_json(rng, data[8 : 8 + length])
    said = (
        len(header)
        if rng.random() < 0.9
        else rng.choice((0, 1, len(header) * 2, 1 << 40, (1 << 64) - 1))
    )
    return struct.pack("<Q", said) + header + data[8 + length :]


def change_png(rng: random.Random, data: bytes) -> bytes:
    """A PNG with a chunk changed, doubled, moved or dropped; its checksums fit."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not data.startswith(b"\x89PNG") or not chunks or rng.random() < 0.2:
        return change_bytes(rng, data)
    number = rng.randrange(len(chunks))
    kind, body = chunks[number]
    how = rng.random()
    if how < 0.7:
        chunks[number] = kind, change_bytes(rng, body)
    elif how < 0.8:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[number])
    elif how < 0.9:
        del chunks[number]
    else:
        chunks[number] = (
            rng.choice((b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf", b"iCCP", b"zTXt")),
            body,
        )
    out = data[:8]
    for kind, body in chunks:
        out += (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )
    return out


def change_pickle(rng: random.Random, data: bytes) -> bytes:
    """Opcodes put in, taken out and moved, those that call something among them."""
    try:
        places = [place for _, _, place in pickletools.genops(data)]
    except Exception:  # damaged: any bytes will do
        return change_bytes(rng, data)
    if rng.random() < 0.2:
        return change_bytes(rng, data)
    place = rng.choice(places)
    op = rng.choice(pickletools.opcodes)
    argument = b""
    if op.arg is not None:
        raw = rng.choice((b"\0", b"\1", b"\xff")) * 8
        argument = (
            raw[: op.arg.n] if op.arg.n > 0 else rng.choice((b"os\nsystem\n", b"1\n", raw + b"a"))
        )
    made = rng.choice(
        (op.code.encode("latin-1") + argument, pickle.dumps(rng.choice(TEXTS[:16]))[2:-1])
    )
    if rng.random() < 0.3:
        other = places.index(place)
        stop = places[min(other + rng.randrange(1, 4), len(places) - 1)]
        return data[:place] + rng.choice((b"", data[place:stop] * 3)) + data[stop:]
    return data[:place] + made + data[place:]
