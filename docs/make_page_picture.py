"""Make docs/pictures/serve.webp: ``python -m docs.make_page_picture``.

The picture shows the page of ``palidecode serve`` in the light theme on a desk and in the dark one
on a phone. Needs ``pip install -e '.[test]'`` and Debian's chromium.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import BrowserContext, expect, sync_playwright

from docs.make_report_picture import CHROMIUM, SWITCHES
from palidecode.files import replacing

HERE = Path(__file__).parent
DESK, PHONE = (1280, 900), (390, 900)
GAP = 24


def view(browser: BrowserContext, address: str, size: tuple[int, int], dark: bool) -> Image.Image:
    """Take a screenshot of the first answer; on the desk, with a token pointed at."""
    page = browser.new_page()
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme="dark" if dark else "light")
    page.goto(address)
    expect(page.locator("#state")).to_have_text(re.compile(r"objects · .* s$"), timeout=60_000)
    if dark:
        page.evaluate("scrollTo(0, 0)")
    else:
        page.locator(".chip.loc").nth(5).hover()
    page.wait_for_timeout(300)
    taken = Image.open(io.BytesIO(page.screenshot()))
    page.close()
    return taken.convert("RGB")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "pictures" / "serve.webp")
    args = parser.parse_args()
    command = [sys.executable, "-m", "palidecode", "serve", "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as name,
        sync_playwright() as playwright,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        browser = playwright.chromium.launch_persistent_context(
            Path(name) / "browser", executable_path=CHROMIUM, args=SWITCHES
        )
        shots = [view(browser, address, DESK, False), view(browser, address, PHONE, True)]
        browser.close()
        server.terminate()
    both = Image.new("RGB", (DESK[0] + GAP + PHONE[0], DESK[1]), "white")
    both.paste(shots[0], (0, 0))
    both.paste(shots[1], (DESK[0] + GAP, 0))
    with replacing(args.output, "wb") as file:
        both.save(file, "WEBP", quality=82, method=6)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
