"""The documentation as a site: the pages of this folder as they are, and the order in which they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmperf import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "pytest-llmperf"
author = "the authors of pytest-llmperf"
version = release = __version__
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"pytest-llmperf {__version__}"
html_copy_source = False
myst_heading_anchors = 4

PAGES = {
    "To begin": ("first-test", "nightly", "branches", "verdicts"),
    "In detail": (
        "reference",
        "workloads",
        "engines",
        "simulation",
        "serve",
        "client",
        "telemetry",
        "hardware",
        "gate",
        "history",
        "results",
        "report",
        "reliability",
        "mutants",
    ),
    "The project": ("numbers", "not-yet", "extending", "design", "licences"),
}
"""The navigation. It stands here, so that the pages are plain Markdown wherever they are read."""


def _with_contents(_: Sphinx, page: str, source: list[str]) -> None:
    """Sphinx wants its table of contents in the first page."""
    if page == "index":
        parts = (_toctree(title, pages) for title, pages in PAGES.items())
        source[0] = "\n\n".join([source[0], *parts])


def _toctree(title: str, pages: tuple[str, ...]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _with_contents)
