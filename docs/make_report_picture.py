"""Make docs/pictures/report.png: ``python -m docs.make_report_picture [report/index.html]``.

The picture shows the numbers in the light theme and the gallery in the dark one. Without a
report, one of the bundled model on held-out scenes is made first. Needs
``pip install -e '.[test]'`` and Debian's chromium.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import BrowserContext, sync_playwright

from palidecode.cli import main as palidecode
from palidecode.files import replacing
from training.scenes.draw import HELD_OUT_SEED, write_scenes

HERE = Path(__file__).parent
CHROMIUM = "/usr/bin/chromium"
SWITCHES = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
WIDTH, HEIGHT = 1000, 1160
GAP = 24


def example(folder: Path) -> Path:
    """Write the report of the bundled model on 300 held-out scenes."""
    scenes, predictions = folder / "scenes", folder / "predictions.json"
    write_scenes(scenes, HELD_OUT_SEED, 300, 224)
    model = ["--model", "demo", "--task", "segment", "--dtype", "float32", "--batch-size", "32"]
    palidecode(["predict", str(scenes), *model, "-o", str(predictions), "--json"])
    files = [str(scenes / "instances.json"), str(predictions)]
    shown = ["--iou-type", "both", "--images", str(scenes), "--bootstrap", "1000"]
    palidecode(["evaluate", *files, *shown, "-o", str(folder / "report"), "--json"])
    return folder / "report" / "index.html"


def view(browser: BrowserContext, page: Path, scheme: str, section: str) -> Image.Image:
    """Take a screenshot of a section."""
    opened = browser.new_page()
    opened.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    opened.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    opened.goto(page.resolve().as_uri())
    tabs = opened.locator("[role=tab]")
    if tabs.count():
        tabs.last.click()
        tabs.last.blur()
    if section != "numbers":
        opened.locator("select[data-filter=order]").last.select_option("mistake")
        opened.locator("nav").get_by_text(section).click()
    opened.wait_for_timeout(300)
    taken = Image.open(io.BytesIO(opened.screenshot()))
    opened.close()
    return taken.convert("RGB")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", help="a report's index.html")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "pictures" / "report.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        page = args.page or example(Path(name))
        browser = playwright.chromium.launch_persistent_context(
            Path(name) / "browser", executable_path=CHROMIUM, args=SWITCHES
        )
        shots = [view(browser, page, "light", "numbers"), view(browser, page, "dark", "Gallery")]
        browser.close()
    both = Image.new("RGB", (2 * WIDTH + GAP, HEIGHT), "white")
    both.paste(shots[0], (0, 0))
    both.paste(shots[1], (WIDTH + GAP, 0))
    small = both.resize((both.width * 4 // 5, both.height * 4 // 5), Image.Resampling.LANCZOS)
    with replacing(args.output, "wb") as file:
        small.quantize(256, kmeans=2).save(file, "PNG", optimize=True)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
