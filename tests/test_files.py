import errno
import fcntl
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from palidecode import InputError
from palidecode.files import inside, open_picture, picture_size, read_json, replacing, whole_png


def test_replacing_shows_only_whole_files(tmp_path):
    path = tmp_path / "new" / "out.txt"
    with replacing(path) as file:
        file.write("é")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "é"
    assert os.listdir(path.parent) == ["out.txt"]


def test_replacing_keeps_the_old_file_when_something_breaks(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(str(1 / 0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_replacing_says_what_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path, tmp_path / "file" / "below.txt", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"can't be written|is a folder"), replacing(target):
            pass


def parts(folder):
    return sorted(path.name for path in folder.glob(".*"))


def test_what_a_killed_process_left_is_deleted_and_nobody_elses(tmp_path):
    code = "import os, sys; from palidecode.files import replacing\n"
    code += "with replacing(sys.argv[1]) as file: file.write('x'); os.kill(os.getpid(), 9)"
    path = tmp_path / "out.txt"
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -9
    (left,) = parts(tmp_path)
    others = [".out.txt.elsewhere.part", ".out.txt.123.part"]
    for name in others:
        (tmp_path / name).write_text("another machine's")
    with replacing(path) as file, replacing(path) as second:
        file.write("first")
        second.write("second, and longer")
        assert len(parts(tmp_path)) == 4
    assert path.read_text() == "first"
    assert parts(tmp_path) == sorted(others)
    assert left not in others


def test_an_unfinished_file_that_is_a_link_is_not_followed(tmp_path):
    with replacing(tmp_path / "out.txt"):
        (name,) = parts(tmp_path)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "mine")
    with replacing(tmp_path / "out.txt") as file:
        file.write("new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "out.txt").read_text() == "new"


def test_without_locks_two_files_never_mix(tmp_path, monkeypatch):
    def flock(number, how):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "out.txt"
    with replacing(path) as file, replacing(path) as second:
        file.write("first")
        second.write("second, and longer")
    assert path.read_text() == "first"
    assert parts(tmp_path) == []


def test_names_of_255_bytes_are_written(tmp_path):
    path = tmp_path / ("x" * 255)
    with replacing(path) as file:
        file.write("x")
    assert path.read_text() == "x"


def test_a_damaged_png_is_seen(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    data = path.read_bytes()
    assert whole_png(path)
    for damaged in (b"", data[:-20], bytes(len(data)), data[:1000] + bytes(len(data) - 1000)):
        path.write_bytes(damaged)
        assert not whole_png(path)
    assert not whole_png(tmp_path / "nothing.png")


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "a/../../x", "link/x.png", "a\0b"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"leads out|not a usable"):
        inside(folder, name)


def test_paths_inside_the_folder_are_found(tmp_path):
    assert inside(tmp_path, "a/../b.png") == (tmp_path / "b.png").resolve()


@pytest.mark.parametrize("name", ["turned.png", "turned.jpg", "turned.tif"])
def test_exif_rotation_is_applied_to_size_and_pixels(tmp_path, name):
    image = Image.new("RGB", (30, 20), "red")
    image.paste("blue", (0, 0, 15, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    image.save(tmp_path / name, exif=exif)
    assert picture_size(tmp_path / name) == (20, 30)
    upright = open_picture(tmp_path / name)
    assert upright.size == (20, 30)
    red, _, blue = upright.getpixel((15, 3))
    assert blue > red + 200


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    name = "x.tif" if mode in ("CMYK", "F") else "x.png"
    level = 255 if mode == "1" else 200
    grey = Image.fromarray(np.full((4, 6), level, np.uint8))
    if mode == "I;16":
        grey = Image.fromarray(np.full((4, 6), level * 257, np.uint16))
    else:
        grey = grey.convert(mode)
    grey.save(tmp_path / name)
    found = open_picture(tmp_path / name)
    assert (found.mode, found.size) == ("RGB", (6, 4))
    assert np.abs(np.asarray(found).astype(int) - level).max() <= 1


@pytest.mark.parametrize(("values", "level"), [([0, 0.5, 1], 128), ([0, 127.6, 255], 128)])
def test_grey_floats_are_scaled(values, level):
    image = Image.fromarray(np.array([values], np.float32))
    assert image.mode == "F"
    assert np.asarray(open_picture(image))[0, :, 0].tolist() == [0, level, 255]


@pytest.mark.parametrize("value", [-0.5, 256.0, 65_535.0, np.nan, np.inf])
def test_grey_floats_of_another_scale_are_refused(tmp_path, value):
    image = Image.fromarray(np.array([[0, 0.5, value]], np.float32))
    image.save(tmp_path / "x.tif")
    for picture in (image, tmp_path / "x.tif"):
        with pytest.raises(InputError, match=r"floats must be in \[0, 1\] or \[0, 255\], got "):
            open_picture(picture)


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "x.png")
    assert open_picture(tmp_path / "x.png").getpixel((0, 0)) == (255, 255, 255)


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


@pytest.mark.parametrize("side", [11_000, 60_000])  # Pillow warns of the first, refuses the second
def test_decompression_bombs_are_refused(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    for read in (picture_size, open_picture):
        with pytest.raises(InputError, match="too many pixels"):
            read(path)


def test_broken_pictures_are_named(tmp_path):
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(data.getvalue()[:600])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert picture_size(tmp_path / "cut.jpg") == (64, 64)
    for name in ("cut.jpg", "text.jpg", "empty.jpg", "missing.jpg", "."):
        with pytest.raises(InputError, match="picture"):
            open_picture(tmp_path / name)


def test_json_that_can_not_be_read_is_named(tmp_path):
    for name, content in (("bad", b"{1"), ("latin", b'"\xe9"'), ("deep", b"[" * 200_000)):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_json(path)
    with pytest.raises(InputError, match="can't be read"):
        read_json(tmp_path / "missing")
