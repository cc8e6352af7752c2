"""Take the pictures of the README: `LLMPERF_TEST_CHROMIUM=/usr/bin/chromium python scripts/screenshots.py [FOLDER]`.

Needs `pip install playwright` and a Chromium. Shows the example of `scripts/report_example.py`, made anew, or that of a
folder where it lies already.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import report_example
from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
Shot = tuple[Literal["light", "dark"], int, str | None]
SHOTS: tuple[Shot, ...] = (("light", 920, None), ("dark", 1050, ".measurement:has-text('test_chat')"))
"""By theme: how high, and from which part on."""
WIDTH = 1180
COLOURS = 128
"""Of a picture: it has few, and a quarter of the bytes."""
LONGEST = 250_000
"""Bytes of a picture that a page is read with."""


def main(folder: Path) -> None:
    """Write `docs/report-light.png` and `docs/report-dark.png`. Raises `OSError` where there is no Chromium."""
    page = folder / "report.html"
    if not page.is_file():
        report_example.main(folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("LLMPERF_TEST_CHROMIUM"))
        for scheme, height, part in SHOTS:
            shown = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)
            shown.goto(page.resolve().as_uri())
            _take(shown, part, DOCS / f"report-{scheme}.png")
        browser.close()


def _take(shown: Any, part: str | None, path: Path) -> None:
    """What is seen at first, or from where a part begins."""
    if part is not None:
        shown.locator(part).first.evaluate("one => one.scrollIntoView()")
    shown.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes")  # noqa: T201 - a script
    if size > LONGEST:
        raise SystemExit(f"{path} has {size:,} bytes, more than {LONGEST:,}: lower WIDTH or COLOURS")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch))
