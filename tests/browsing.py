"""A real browser: Debian's chromium, without a screen and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import BrowserContext, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium(folder: Path) -> Iterator[BrowserContext]:
    """Start the browser with its data in a folder; expectations have time on a busy machine."""
    assert CHROMIUM.exists(), f"these tests need {CHROMIUM}: apt-get install chromium"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder,
            executable_path=CHROMIUM,
            args=SWITCHES,
            viewport={"width": 1280, "height": 900},
        )
        expect.set_options(timeout=20_000)
        yield context
        expect.set_options(timeout=5_000)
        context.close()
