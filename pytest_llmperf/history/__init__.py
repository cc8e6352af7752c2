"""Stored results over time: series of nights, the steps in them, and how git finds what made a step."""

from pytest_llmperf.history.bisect import Answer, Recipe, answer, bisection
from pytest_llmperf.history.files import Reading, committed_files, stored_files
from pytest_llmperf.history.series import Night, Series, StoredFile, series_of
from pytest_llmperf.history.steps import FEWEST_NIGHTS, Step, noise, steps_in

__all__ = [
    "FEWEST_NIGHTS",
    "Answer",
    "Night",
    "Reading",
    "Recipe",
    "Series",
    "Step",
    "StoredFile",
    "answer",
    "bisection",
    "committed_files",
    "noise",
    "series_of",
    "steps_in",
    "stored_files",
]
