"""Result files of many nights, as `--llmperf-save-baseline` would have left them."""

from __future__ import annotations

import json
import math
import os
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.result_file import SCHEMA_VERSION

KEY = "NVIDIA-GH200-96GB"
TEST = "perf_tests/test_it.py::test_rounds[4]"
COMPARABLE = {"workload": "0123456789abcdef", "load": "round_robin()", "cache": "as_is", "engine": "vllm"}
FIRST = datetime(2026, 1, 1, 3, tzinfo=timezone.utc)
# Ten quiet nights: their noise is some 0.8 %.
QUIET = (0.004, -0.006, 0.009, -0.003, 0.001, -0.008, 0.005, -0.001, 0.007, -0.004)


def levels(*segments):
    """Quiet nights around levels: `(0.1, 10), (0.12, 5)` are ten at 0.1 and five at 0.12."""
    plain = [level for level, count in segments for _ in range(count)]
    return [level * math.exp(QUIET[night % len(QUIET)]) for night, level in enumerate(plain)]


def row(value, *, metric="ttft_p50", test=TEST, name=None, version=None, **changed):
    """One benchmark with three runs around a value in the metric's own unit."""
    measurement = test if name is None else f"{test}::{name}"
    stored = METRICS[metric].stored(value)
    return {
        "fullname": f"{measurement}::{metric}",
        "stats": {"data": [stored * 0.99, stored, stored / 0.99]},
        "extra_info": {
            "llmperf": {
                "measurement": measurement,
                "metric": metric,
                "comparable": COMPARABLE | changed,
                "engine_words": {},
                "provenance": {"test": test, "engine": {} if version is None else {"version": version}},
            }
        },
    }


def commit_of(night):
    """Forty digits, another for each night."""
    return f"{night:02x}" * 20


def document(*rows, night=0, key=KEY, date=None, commit=None):
    """A file of the given night; `date` and `commit` in place of that night's."""
    return {
        "machine_info": {"llmperf": {"schema_version": SCHEMA_VERSION, "hardware_key": key}},
        "commit_info": {"id": commit_of(night) if commit is None else commit, "dirty": False},
        "benchmarks": list(rows),
        "datetime": (FIRST + timedelta(days=night)).isoformat() if date is None else date,
    }


def save(folder, content, name):
    """Write one file, whatever is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def save_nights(folder, values, **words):
    """One file a night, oldest first."""
    return [
        save(folder, document(row(value, **words), night=night), f"{night + 1:04d}_main.json")
        for night, value in enumerate(values)
    ]


class Repository:
    """A real git repository of one's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments, at=FIRST):
        """Run git as nobody in particular, on the given day."""
        who = {
            f"GIT_{role}_{what}": "nobody@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        when = {f"GIT_{role}_DATE": at.isoformat() for role in ("AUTHOR", "COMMITTER")}
        alone = {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            ["git", *arguments], cwd=self.folder, env=alone | who | when, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self, night=0):
        """Everything that lies there; returns the commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", f"night {night}", at=FIRST + timedelta(days=night))
        return self.git("rev-parse", "HEAD")
