"""The HTML report: one file that needs nothing else, no network and no script to be read."""

from pytest_llmperf.reports.html.page import page

__all__ = ["page"]
