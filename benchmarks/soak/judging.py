"""What a soak has to show, judged on what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

MIB = 2**20
UNACCOUNTED_MIB_PER_HOUR = 32.0
"""Beyond the records that are kept. A night of eight hours may so take a quarter of a GiB that nobody can explain."""
FOR_GOOD_MIB = 48.0
"""What measuring and judging take once: libraries that are imported for it, pools, buffers."""
STAYS_SHARE = 0.2
"""Of the records' memory: what an allocator cannot return, as something that lives on lies in between."""
DRIFT_SHARE_PER_HOUR = 0.01
"""Of the metric: a fifth of what the client's error may be at most before a run is INVALID."""


def judge(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """One verdict for each promise: what, whether it holds, what was found."""
    return [
        _accounted(measured["accounts"], measured["server_counted"]),
        _valid(measured),
        *_memory(measured),
        _let_go(measured),
        *(_drift(name, measured) for name in ("scheduled_ttft_p50", "tpot_p50")),
    ]


def _verdict(what: str, found: str, *, ok: bool) -> dict[str, Any]:
    return {"what": what, "ok": bool(ok), "found": found}


def _accounted(accounts: dict[str, Any], server_counted: int) -> dict[str, Any]:
    sums = accounts["records"] == accounts["completed"] + accounts["failed"] and not accounts["twice"]
    ok = sums and accounts["completed"] == server_counted and accounts["sent"] + accounts["shed"] >= accounts["records"]
    found = (
        f"{accounts['sent']:,} sent = {accounts['completed']:,} completed + {accounts['failed']:,} failed + "
        f"{accounts['shed']:,} shed; the server counted {server_counted:,} successes"
    )
    return _verdict("sent = completed + failed + shed", found, ok=ok)


def _valid(measured: dict[str, Any]) -> dict[str, Any]:
    reasons = [*measured["validity"]["reasons"], *measured["client_excesses"]]
    return _verdict("the run is valid", "; ".join(reasons) or "valid", ok=not reasons)


def _memory(measured: dict[str, Any]) -> list[dict[str, Any]]:
    samples = measured["samples"]
    hours, records, client, server = (_by_run(samples, name) for name in ("s", "records", "client_rss", "server_rss"))
    hours = [seconds / 3600 for seconds in hours]
    grown = slope(hours, [resident / MIB for resident in client])
    each = slope(records, client)
    per_hour = (records[-1] - records[0]) / (hours[-1] - hours[0])
    kept = measured["kept_bytes_per_record"] * per_hour / MIB
    server_grown = slope(hours, [resident / MIB for resident in server])
    return [
        _verdict(
            f"the client's memory beyond its records grows by less than {UNACCOUNTED_MIB_PER_HOUR:g} MiB an hour",
            f"{grown[0] - kept:+.1f} ± {grown[1]:.1f} MiB/h: {grown[0]:+.1f} MiB/h in all, {each[0]:,.0f} ± "
            f"{each[1]:,.0f} bytes a request, of which the {per_hour:,.0f} records an hour that are kept take "
            f"{kept:.1f} MiB/h ({measured['kept_bytes_per_record']:,.0f} bytes each)",
            ok=grown[0] + grown[1] - kept < UNACCOUNTED_MIB_PER_HOUR,
        ),
        _verdict(
            f"the server's memory grows by less than {UNACCOUNTED_MIB_PER_HOUR:g} MiB an hour",
            f"{server_grown[0]:+.1f} ± {server_grown[1]:.1f} MiB/h",
            ok=server_grown[0] + server_grown[1] < UNACCOUNTED_MIB_PER_HOUR,
        ),
    ]


def _let_go(measured: dict[str, Any]) -> dict[str, Any]:
    """What was kept for the result goes with it; what measuring takes once and for all stays."""
    began, held, left = (measured[name] / MIB for name in ("began_bytes", "held_bytes", "let_go_bytes"))
    kept = measured["kept_bytes_per_record"] * measured["accounts"]["records"] / MIB
    most = began + FOR_GOOD_MIB + STAYS_SHARE * kept
    return _verdict(
        "memory returns when the result is let go",
        f"{began:.1f} MiB before the first request, {held:.1f} with the result, {left:.1f} without it; its records "
        f"took {kept:.1f}, and up to {most:.1f} MiB is granted",
        ok=left < most,
    )


def _by_run(samples: list[dict[str, Any]], name: str) -> list[float]:
    """The mean of each run but the first, in which memory is taken for good: pools, caches, the first connections."""
    runs = sorted({sample["run"] for sample in samples})[1:]
    return [float(np.mean([sample[name] for sample in samples if sample["run"] == run])) for run in runs]


def _drift(name: str, measured: dict[str, Any]) -> dict[str, Any]:
    runs = measured["runs"]
    hours = [number * measured["run_s"] / 3600 for number in range(len(runs))]
    shares = [run[f"{name}_error_bound"] / run[name] for run in runs]
    found, error = slope(hours, shares)
    return _verdict(
        f"the error bound of {name} drifts by less than {DRIFT_SHARE_PER_HOUR:.0%} of it an hour",
        f"{found:+.3%} ± {error:.3%} an hour, in {len(runs)} runs from {min(shares):.2%} to {max(shares):.2%}",
        ok=found - error < DRIFT_SHARE_PER_HOUR and max(shares) < 0.05,
    )


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of the line, and half its 95 % interval."""
    line = stats.linregress(x, y)
    return float(line.slope), float(line.stderr * stats.t.ppf(0.975, len(x) - 2))
