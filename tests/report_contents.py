"""Contents of reports, made by hand."""

from __future__ import annotations

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.records import Failure, Phase, RequestRecord
from pytest_llmperf.reports.content import Before, Report, Section
from pytest_llmperf.verdicts import Finding, Judgement, Verdict

KEY = "NVIDIA-GH200-96GB"
TEST = "perf_tests/test_it.py::test_rounds[4]"
HOSTILE = '<script>alert(1)</script> \x1b[31m **b** | `c` @me #1 </pre> $x$ & "q" \u202e'


def finding(metric="ttft_p50", verdict=Verdict.PASS, **words):
    known = {
        "baseline": 0.1,
        "now": 0.12,
        "change": 0.2,
        "interval": (0.15, 0.25),
        "p": 1e-9,
        "detectable": 0.05,
        "base_runs": 5,
        "new_runs": 5,
    }
    return Finding(metric=METRICS[metric], verdict=verdict, **{**known, **words})


def section(verdict=Verdict.PASS, name=TEST, **words):
    findings = words.pop("findings", (finding(verdict=verdict),))
    judgement = Judgement(verdict=verdict, findings=findings, against="0001_main.json")
    known = {
        "name": name,
        "test": name,
        "hardware_key": KEY,
        "judgement": judgement,
        "values": {METRICS["ttft_p50"]: (0.119, 0.12, 0.121)},
        "figures": figures(),
        "about": {"workload": "multi_round", "load": "round_robin()", "engine": "vllm", "model": "m"},
    }
    return Section(**{**known, **words})


def figures(p50=0.12):
    """As a result file has them."""
    ttft = {"count": 30, "mean": p50, "p50": p50, "p90": 1.1 * p50, "p95": 1.2 * p50, "p99": 1.5 * p50}
    return {
        "ttft": ttft,
        "itl": {name: value / 10 for name, value in ttft.items()},
        "output_throughput": 120.0,
        "request_throughput": 2.0,
        "duration_s": 15.0,
        "requests": 30,
        "errors": {},
        "by_round": [{"ttft": ttft}, {"ttft": ttft}],
        "cache": {"hit_rate": 0.9, "tiers": {"gpu": 90, "recomputed": 10}},
        "load": {"offered": 2.0, "shed": 0},
        "ceiling": {"prefill": 0.41, "assumptions": "a model on a part"},
        "client": {"error_bounds": {"ttft_p50": 0.0002}},
        "runs": [{"ttft_p50": 0.99 * p50}, {"ttft_p50": p50}, {"ttft_p50": 1.01 * p50}],
        "validity": [],
        "doubts": [],
    }


def before():
    return Before(name="0001_main.json", figures=figures(0.1))


def report(*sections, **words):
    return Report(**{"source": "now.json", "sections": sections, **words})


def request(place, *, ok=True, run=0):
    sent = 20_000_000 * place
    at = [sent + 100_000_000 + 10_000_000 * k for k in range(8)] if ok else []
    return RequestRecord(
        run=run,
        phase=Phase.MEASURED,
        session=0,
        turn=place % 2,
        released_ns=sent,
        sent_ns=sent,
        end_ns=at[-1] if at else sent + 5,
        arrivals=Arrivals(at, [1] * len(at), [0] * len(at)),
        new_tokens=1,
        input_tokens=10,
        output_tokens_asked=8,
        prompt_tokens=10,
        output_tokens=8 if ok else None,
        cached_tokens=5,
        failure=None if ok else Failure("timeout", HOSTILE),
    )
