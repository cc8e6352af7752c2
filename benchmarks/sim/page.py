"""Writes the tables and the plot of `docs/simulation.md`.

    python benchmarks/sim/page.py            write them
    python benchmarks/sim/page.py --check    say whether they are up to date; exit code 1 if not
    python benchmarks/sim/page.py --check --json FILE    and how far each published figure is missed

Each table stands between `<!-- NAME: made by benchmarks/sim/page.py -->` and `<!-- end -->`; what is outside is
written by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import calibration
import kubeai
import kv_offload
import llmperf
from rows import Row, comparison, table

from pytest_llmperf.engines.sim.settings import Settings
from pytest_llmperf.hardware import PARTS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "simulation.md"
PLOT = DOCS / "simulation-users.svg"
_BLOCK = re.compile(r"(<!-- (\w+): made by benchmarks/sim/page\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def constants() -> str:
    """Every constant of the simulation."""
    lines = []
    for item in dataclasses.fields(Settings):
        unit, default = item.metadata["unit"], item.default
        shown = f"{default:g}" if isinstance(default, (int, float)) else str(default)
        lines.append((f"`{item.name}`", shown, "" if unit == "1" else unit.replace("|", "or"), item.metadata["source"]))
    return table(("constant", "value", "unit", "source"), lines)


def parts() -> str:
    """The peaks of every part."""
    lines = []
    for part in PARTS:
        figures = [part.bandwidth, part.flops_16bit, part.flops_fp8, part.host_link, part.gpu_link]
        sources = dict.fromkeys(figure.source for figure in figures if figure is not None)
        fp8 = "none" if part.flops_fp8 is None else f"{part.flops_fp8.value / 1e12:g}"
        lines.append(
            (
                f"`{part.name}`", part.key, f"{part.memory_mib:,}", f"{part.bandwidth.value / 1e12:g}",
                f"{part.flops_16bit.value / 1e12:g}", fp8, f"{part.host_link.value / 1e9:g}",
                f"{part.gpu_link.value / 1e9:g}", "; ".join(sources),
            )
        )  # fmt: skip
    header = ("part", "key", "MiB", "TB/s", "16-bit TFLOP/s", "FP8 TFLOP/s", "host link, GB/s", "GPU link, GB/s",
              "sources")  # fmt: skip
    return table(header, lines)


COMPARED: dict[str, Callable[[], Sequence[Row]]] = {
    "calibration": calibration.rows,
    "users": kv_offload.rows,
    "gain": kv_offload.gain_rows,
    "kubeai": kubeai.rows,
    "llmperf": llmperf.rows,
}
BLOCKS: dict[str, Callable[[], str]] = {
    "parts": parts,
    "constants": constants,
    "by_users": kv_offload.by_users,
    "by_length": kv_offload.by_length,
    "hits": kubeai.hit_rates,
    "capacities": llmperf.capacities,
    **{name: lambda rows=rows: comparison(rows()) for name, rows in COMPARED.items()},  # type: ignore[misc]
}


def judged() -> list[dict[str, object]]:
    """Of each published experiment: how many of its figures are met, and which are not."""
    verdicts: list[dict[str, object]] = []
    for name, rows in COMPARED.items():
        met = {row.what: abs(row.deviation) <= row.tolerance + 1e-9 for row in rows()}
        worst = max((row for row in rows() if row.tolerance), key=lambda row: abs(row.deviation))
        missed = [what for what, is_met in met.items() if not is_met]
        found = f"{sum(met.values())} of {len(met)}; the largest deviation is {worst.deviation:+.0%} ({worst.what})"
        verdicts.append(
            {
                "what": f"the published figures of `{name}` are met within what is allowed of each",
                "found": "; missed: ".join([found, *([", ".join(missed)] if missed else [])]),
                "ok": not missed,
            }
        )
    return verdicts


def written(page: str) -> str:
    """The page with every table anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n\n{found[3]}", page)


def plot() -> None:
    """TTFT and ten rounds by users, for both parts."""
    import matplotlib as mpl  # noqa: PLC0415 - not to check the tables

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "llmperf"
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    users = list(kv_offload.USERS)
    for part, name, mark in (("h100", "H100 80 GB, PCIe 5", "o-"), ("gh200", "GH200 96 GB, NVLink-C2C", "s-")):
        points = [kv_offload.point(part, number) for number in users]
        left.plot(users, [1e3 * point.ttft_s for point in points], mark, label=name)
        right.plot(users, [point.e2e_s for point in points], mark, label=name)
    left.set(xlabel="users", ylabel="TTFT of a turn, ms", ylim=(0, None), title="One user after another")
    right.set(xlabel="users", ylabel="ten rounds, s", ylim=(0, None), title="All users of a round at once")
    for axes in (left, right):
        axes.set_xticks(users)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.json:
        arguments.json.write_text(json.dumps({"verdicts": judged()}, indent=1), encoding="utf-8")
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    if arguments.check:
        if after != before:
            print(f"{PAGE.name} is not what the simulation gives now; write it with python {sys.argv[0]}")
        return int(after != before)
    PAGE.write_text(after, encoding="utf-8")
    plot()
    return 0


if __name__ == "__main__":
    sys.exit(main())
