"""Globs, lists, addresses and videos as sources of pictures, and files of other kinds."""

import io
import json
import threading
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from palidecode import InputError
from palidecode.cli import main
from palidecode.runs import sources
from palidecode.runs.sources import PictureFile, Unread, find_pictures


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder, which is the current one, with pictures and files of other kinds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALIDECODE_CACHE", str(tmp_path / "cache"))
    for name in ("pics/a.png", "pics/deep/b.jpg", "pics/deep/c.jpg", "other/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    for name in ("x.heic", "y.HEIC", "deep/z.pdf", "notes.json", "README"):
        (tmp_path / "pics" / name).touch()
    return tmp_path


def named(*given):
    return [item.name for item in find_pictures(given)]


def test_a_glob_is_matched_here(place):
    assert named("pics/deep/*.jpg") == ["b.jpg", "c.jpg"]
    assert named("pics/**/*.*") == ["a.png", "deep/b.jpg", "deep/c.jpg"]
    assert named("*/*.png") == ["other/d.png", "pics/a.png"]
    with pytest.raises(InputError, match=r"\*\.bmp: no picture matches"):
        named("*.bmp")
    Image.new("RGB", (8, 8)).save(place / "a[1].png")  # a file of that name goes first
    assert named("a[1].png") == ["a[1].png"]


@pytest.mark.parametrize("kind", ["file", "stdin"])
def test_a_list_names_pictures_in_their_common_folder(place, kind, monkeypatch):
    lines = "\ufeffpics/a.png\n\n pics/deep/b.jpg\npics/gone.png\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    (place / "list.txt").write_text(lines)
    given = {"file": "list.txt", "stdin": "-"}[kind]
    assert named(given) == ["a.png", "deep/b.jpg", "gone.png"]
    gone = find_pictures(["list.txt"])[2]
    with pytest.raises(InputError, match=r"gone\.png: no such picture"):
        gone.open()


def test_paths_of_a_list_may_be_relative_to_its_folder(place):
    (place / "pics" / "list.txt").write_text("a.png\ndeep/b.jpg\n")
    found = find_pictures(["pics/list.txt"])
    assert [item.path for item in found] == ["pics/a.png", "pics/deep/b.jpg"]


def test_rows_name_one_picture_or_several(place):
    rows = [
        {"image": "pics/a.png"},
        {"images": ["pics/deep/b.jpg", "pics/a.png"], "box_image": 0},
        {"images": ["pics/a.png", "pics/deep/c.jpg"]},
        {"output": "no picture"},
        {"images": ["pics/a.png", "http://x.example/b.png"], "box_image": 0},
    ]
    lines = [json.dumps(row) for row in rows] + ["{oops"]
    (place / "rows.jsonl").write_text("\n".join(lines))
    one, pair, neither, none, address, broken = find_pictures(["rows.jsonl"])
    assert one == PictureFile("pics/a.png", "a.png")
    both = ("pics/deep/b.jpg", "pics/a.png")
    assert pair == PictureFile("pics/deep/b.jpg", "deep/b.jpg", None, both)
    assert neither.reason.startswith("rows.jsonl: line 3: names 2 pictures: box_image")
    assert (
        none.reason == "rows.jsonl: line 4: needs 'image', a file name, or 'images', a list of them"
    )
    assert "line 5: names an address; rows name files" in address.reason
    assert "line 6: not JSON" in broken.reason
    third = find_pictures(["rows.jsonl"], box_image=1)[2]
    assert (third.path, third.name) == ("pics/deep/c.jpg", "deep/c.jpg")


def test_other_kinds_of_files_are_counted(place):
    skipped = Counter()
    found = find_pictures(["pics"], skipped)
    assert [item.name for item in found] == ["a.png", "deep/b.jpg", "deep/c.jpg"]
    assert skipped == {"HEIC": 2, "PDF": 1}
    (place / "scans").mkdir()
    (place / "scans" / "a.pdf").touch()
    with pytest.raises(InputError, match="scans: no picture in it, only 1 PDF"):
        find_pictures(["scans"])


def test_a_video_says_what_to_do(place):
    (place / "clip.mp4").touch()
    with pytest.raises(InputError, match=r"a video; .*: ffmpeg -i clip\.mp4 -vf fps=2 frames"):
        find_pictures(["clip.mp4"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.avif", "AVIF"), ("a.jp2", "JPEG2000"), ("a.ppm", "PPM"), ("a.jfif", "JPEG")],
)
def test_more_kinds_of_pictures_are_read(tmp_path, name, kind):
    Image.new("RGB", (64, 48), "red").save(tmp_path / name, kind)
    (found,) = find_pictures([tmp_path])
    assert found.open().size == (64, 48)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, asked, *rest):
        self.asked = asked
        super().__init__(*rest)

    def do_GET(self):
        self.asked.append(self.path)
        picture = io.BytesIO()
        Image.new("RGB", (64, 48)).save(picture, "PNG")
        code = {"/gone.png": 404, "/moved.png": 302}.get(self.path, 200)
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "file:///etc/passwd")
        cut = 7 if self.path == "/cut.png" else 0
        self.send_header("Content-Length", str(len(picture.getvalue()) + cut))
        self.end_headers()
        self.wfile.write(picture.getvalue())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """An HTTP server on this machine: its address, and the paths that it was asked for."""
    asked = []
    with HTTPServer(("127.0.0.1", 0), partial(Handler, asked)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join(10)


def test_an_address_is_downloaded_once(place, server):
    address, asked = server
    for _ in range(2):
        (item,) = find_pictures([f"{address}/my%20cat.png?size=3"])
        assert item.name == "my cat.png"
        assert item.open().size == (64, 48)
    assert asked == ["/my%20cat.png?size=3"]
    assert isinstance(item, PictureFile)
    assert (place / "cache") in (place / item.path).parents


def test_addresses_in_a_list_that_can_not_be_read_are_reasons(place, server, monkeypatch):
    address, _ = server
    names = ("gone.png", "moved.png", "cut.png")
    (place / "list.txt").write_text("\n".join(f"{address}/{name}" for name in names))
    found = find_pictures(["list.txt"])
    assert [item.name for item in found] == [*names]
    assert all(isinstance(item, Unread) for item in found)
    for item, said in zip(found, ("404", "file:///etc/passwd", "broke off"), strict=True):
        assert "can't be downloaded" in item.reason
        assert said in item.reason
    monkeypatch.setattr(sources, "_MOST_BYTES", 50)
    (big,) = find_pictures([f"{address}/big.png"])
    assert "it has more than" in big.reason
    assert not (place / "cache").exists()


def test_predict_reads_what_it_can_and_exits_with_1(place, capsys):
    command = ["predict", "pics", "--model", "demo", "--task", "detect", "-o", "coco.json"]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "of 3 pictures in coco.json" in out
    assert "palidecode: loading demo …" in err
    assert "skipped 2 HEIC, 1 PDF: convert them to JPEG or PNG first" in err
