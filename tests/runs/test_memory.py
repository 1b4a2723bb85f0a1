"""The memory of a run does not grow with the size of its pictures."""

import subprocess
import sys

import pytest
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]
SIDE, PICTURES = 5000, 10  # 75 MB each, opened


def test_a_batch_of_large_pictures_is_shrunk_picture_by_picture(tmp_path):
    for number in range(PICTURES):
        name = f"{number}.png"
        Image.new("RGB", (SIDE, SIDE), (number, 90, 200)).save(tmp_path / name, compress_level=1)
    # `ru_maxrss` begins with the memory of the process that started this one.
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from palidecode.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.partition('VmHWM:')[2].split()[0])\n"
        "sys.exit(code)"
    )
    asked = ["predict", str(tmp_path), "--model", "demo", "--task", "detect", "--quiet"]
    asked += ["--batch-size", str(PICTURES), "-o", str(tmp_path / "coco.json")]
    done = subprocess.run(
        [sys.executable, "-c", code, *asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1]) * 1024
    assert peak < 600e6  # 200 MB without pictures; all of them take 750 MB more
