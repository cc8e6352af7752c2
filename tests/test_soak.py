"""The soak of `benchmarks/soak`, for half a minute: that it counts what it says it counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real_time

FOLDER = Path(__file__).parents[1] / "benchmarks" / "soak"
MOST_BYTES = 8192
"""A request may take in memory for good; an hour's slope is measured by the soak itself. It is some 1.1 KB."""


@pytest.mark.exhaustive
@pytest.mark.timeout(150)
def test_half_a_minute(tmp_path):
    """Nothing is unaccounted for, by the client's records and the server's own count; records are all that stays."""
    out = tmp_path / "soak.json"
    command = [sys.executable, str(FOLDER / "soak.py"), "--minutes", "0.5", "--every", "0.5", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=140)

    assert out.is_file(), done.stderr
    measured = json.loads(out.read_bytes())
    accounts, samples = measured["accounts"], measured["samples"]
    assert measured["validity"]["valid"]
    assert 0 < accounts["sent"] == accounts["completed"] == measured["server_counted"]
    assert (0, 0, 0) == (accounts["failed"], accounts["shed"], accounts["twice"])
    grown = samples[-1]["client_rss"] - samples[len(samples) // 4]["client_rss"]
    assert measured["let_go_bytes"] <= measured["held_bytes"]
    assert grown < MOST_BYTES * (samples[-1]["records"] - samples[len(samples) // 4]["records"])
    assert all(f"{name}_error_bound" in run for run in measured["runs"] for name in ("ttft_p50", "tpot_p50"))
