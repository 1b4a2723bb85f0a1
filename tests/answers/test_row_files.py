"""One file of rows in every kind."""

import csv
import gzip
import json
import os
import threading

import pytest

from palidecode import InputError
from palidecode.answers import row_files
from palidecode.answers.row_files import Problem
from palidecode.answers.rows import read_rows
from tests.samples import answer

CAT = answer("cat")
ROWS = [
    {"image": "a.png", "width": 64, "height": 48, "prediction": CAT, "scores": [0.5]},
    {"image": "b.png", "width": 64, "height": 48, "prediction": "", "scores": None},
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(folder, rows, delimiter=","):
    path = folder / "made.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path.read_bytes()


def as_parquet(folder, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


KINDS = {
    "rows.jsonl": lambda folder: lines(ROWS),
    "rows.json": lambda folder: json.dumps(ROWS, indent=1).encode(),
    "lines.json": lambda folder: lines(ROWS),
    "bom.json": lambda folder: b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "rows.jsonl.gz": lambda folder: gzip.compress(lines(ROWS)),
    "rows.json.gz": lambda folder: gzip.compress(json.dumps(ROWS).encode()),
    "rows.csv": lambda folder: as_csv(folder, ROWS),
    "semicolons.csv": lambda folder: as_csv(folder, ROWS, ";"),
    "rows.tsv": lambda folder: as_csv(folder, ROWS, "\t"),
    "comma.tsv": lambda folder: as_csv(folder, [{**row, "a, b": ""} for row in ROWS], "\t"),
    "rows.csv.gz": lambda folder: gzip.compress(as_csv(folder, ROWS)),
    "rows.parquet": lambda folder: as_parquet(folder, ROWS),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_the_same_rows(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(KINDS[name](tmp_path))
    first, second = read_rows(path)
    assert (first.name, first.size, first.answer, first.scores) == ("a.png", (64, 48), CAT, [0.5])
    assert (second.name, second.answer, second.scores) == ("b.png", "", None)


def test_lists_in_cells_are_read_as_python_writes_them(tmp_path):
    rows = [{"outputs": str([CAT]), "size": "[64, 48]", "prompt": "[x"}]
    (tmp_path / "rows.csv").write_bytes(as_csv(tmp_path, rows))
    (row,) = read_rows(tmp_path / "rows.csv")
    assert (row.answer, row.size, row.prompt) == (CAT, (64, 48), "[x")


def test_parquet_may_hold_the_pictures(tmp_path, picture_bytes):
    rows = [{"image": {"bytes": picture_bytes, "path": "a.png"}, "text": CAT}]
    (tmp_path / "rows.parquet").write_bytes(as_parquet(tmp_path, rows))
    (row,) = read_rows(tmp_path / "rows.parquet")
    assert (row.name, row.size) == ("a.png", (30, 20))


@pytest.fixture
def picture_bytes(tmp_path):
    from PIL import Image

    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    return (tmp_path / "a.png").read_bytes()


def test_a_pipe_is_read_too(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(gzip.compress(lines(ROWS)),))
    writer.start()
    assert [row.name for row in read_rows(path)] == ["a.png", "b.png"]
    writer.join()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.json", b'[{"output": "x"}', "not JSON"),
        ("rows.jsonl.gz", gzip.compress(lines(ROWS))[:-9], "can't be read"),
        ("rows.jsonl.gz", b"\x1f\x8b" + bytes(30), "can't be read"),
        ("rows.parquet", b"PAR1" + bytes(30), "can't be read: "),
        ("rows.csv", b"output,width\n\xff,3\n", "can't be read as CSV"),
        ("rows.csv", b"output,output\nx,y\n", "two columns have the same name"),
        ("rows.csv", "output\nx\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("rows.jsonl", lines(ROWS).decode().encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("rows.jsonl", gzip.compress("{}".encode("utf-16")), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_damaged_file_is_one_error_that_names_it(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        list(read_rows(tmp_path / name))
    assert name in str(caught.value)


def test_parquet_without_pyarrow_names_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "rows.parquet").write_bytes(as_parquet(tmp_path, ROWS))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'palidecode\[parquet\]'"):
        list(read_rows(tmp_path / "rows.parquet"))


def test_broken_rows_are_problems_with_their_number(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([ROWS[0], 5, ROWS[1]]))
    (tmp_path / "rows.csv").write_text(f"output,width,height\n{CAT},4,3,5\n{CAT},4,3\n")
    assert list(read_rows(tmp_path / "rows.json"))[1] == Problem(2, "not a JSON object")
    broken, good = read_rows(tmp_path / "rows.csv")
    assert broken == Problem(2, "has more cells than the header")
    assert (good.line, good.size) == (3, (4, 3))


def test_a_key_twice_is_a_problem_of_its_row(tmp_path):
    row = json.dumps(ROWS[0])
    twice = f'{row[:-1]}, "prediction": ""}}'
    aside = f'{row[:-1]}, "more": {{"a": 1, "a": 2}}}}'  # in a key that nothing reads
    (tmp_path / "rows.jsonl").write_text("\n".join([row, twice, aside]))
    (tmp_path / "rows.json").write_text(f"[{row}, {twice}, {aside}]")
    for name in ("rows.jsonl", "rows.json"):
        good, broken, other = read_rows(tmp_path / name)
        assert broken == Problem(2, "has the key 'prediction' twice")
        assert (good.answer, other.answer) == (CAT, CAT)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (f'b.png,4,3,"{CAT}', "can't be read as CSV: unexpected end of data"),
        ("b.png,4,3", "has fewer cells than the header"),
        (f'b.png,4,3,"{CAT}"x', "can't be read as CSV: ',' expected after '\"'"),
    ],
)
def test_a_csv_that_is_cut_has_no_answer_there(tmp_path, last, reason):
    """A part of an answer, or none, would be read as another answer."""
    text = f"image,width,height,output\na.png,4,3,{CAT}\n\n{last}"
    (tmp_path / "rows.csv").write_text(text)
    good, broken = read_rows(tmp_path / "rows.csv")
    assert (good.line, good.answer) == (2, CAT)
    assert broken == Problem(4, reason)


def test_parquet_that_holds_no_text_is_one_error(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    array = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"output": array}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows.parquet: can't be read: .*utf-8"):
        list(read_rows(tmp_path / "rows.parquet"))


def test_what_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "line.csv.gz", "wb") as file:
        file.write(b"output,width,height\n" + b"a" * ((1 << 24) + 1))
    with pytest.raises(InputError, match="a line of more than 16,777,216 characters"):
        list(read_rows(tmp_path / "line.csv.gz"))
    monkeypatch.setattr(row_files, "_LONGEST_ARRAY", 1000)
    for size, refused in ((900, False), (1100, True)):
        text = json.dumps([ROWS[0]]).encode()
        (tmp_path / "rows.json.gz").write_bytes(gzip.compress(text + b" " * (size - len(text))))
        if refused:
            with pytest.raises(InputError, match="unpacks to over 1 GiB; write JSON Lines"):
                list(read_rows(tmp_path / "rows.json.gz"))
        else:
            assert len(list(read_rows(tmp_path / "rows.json.gz"))) == 1
