"""docs/hardware.md says what the code does."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

from pytest_llmperf.hardware import Gpu, Hardware
from pytest_llmperf.hardware.requirements import Requirement

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "hardware.md"


def test_its_tables_are_up_to_date():
    """Parts with their keys and marks, and the doctor's rules."""
    done = subprocess.run(
        [sys.executable, "scripts/hardware_page.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_every_field_of_the_fingerprint_is_explained():
    """A field that is added is added to the page, too."""
    text = PAGE.read_text(encoding="utf-8")
    names = [field.name for kind in (Gpu, Hardware) for field in dataclasses.fields(kind)]

    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_word_of_the_gpu_mark_is_explained():
    """With an example of its value."""
    text = PAGE.read_text(encoding="utf-8")
    words = [field.name for field in dataclasses.fields(Requirement) if field.name != "parts"]

    assert [word for word in words if f"| `{word}=" not in text] == []
