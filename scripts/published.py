"""Write the figures that others published as results: `python scripts/published.py [FOLDER]`.

Each table says whose figures they are and in which words they were given; a figure is one run, without a spread.
They are for setting beside what was measured: no hardware key names their folder, so that no gate reads them. A
measurement is called as the performance test that repeats it. Statements on two parts or two ways are ratios,
`ratio:<what>_<one>_over_<other>`, with `_at_least` or `_at_most` where a bound was stated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmperf.foreign.document import Figure, Measurement, document
from pytest_llmperf.foreign.imported import digest
from pytest_llmperf.judged import Provenance
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.result_file import write

FOLDER = Path(__file__).resolve().parents[1] / "baselines" / "published"
RATIO = "ratio:"
MS = 1e-3

_ROUTING = "perf_tests/test_prefix_routing.py::test_prefix_routing"
_KV_OFFLOAD = "perf_tests/test_kv_offload.py::test_kv_offload"
_RECOMPUTE = "perf_tests/test_offload_or_recompute.py::test_offload_or_recompute"
_MULTIPLE_CHOICE = "perf_tests/test_llmperf_tasks.py::test_multiple_choice"
_KNOWLEDGE_GRAPH = "perf_tests/test_llmperf_tasks.py::test_knowledge_graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Figures of one measurement, as somebody published them.

    `test`: the performance test that repeats it. `name`: which of its measurements, or under which conditions.
    `figures`: metric or ratio to value, in base units. `apart`: what is near to a metric and not it.
    """

    test: str
    name: str
    source: str
    stated: str
    load: str
    engine: str
    model: str
    figures: Mapping[str, float]
    apart: Mapping[str, float] = field(default_factory=dict)
    doubts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Publication:
    """What goes into one file: statements on one hardware."""

    hardware_key: str
    statements: Sequence[Statement]


# KubeAI: eight L4, Llama 3.1 8B, by a changed `vllm bench serve`. s, requests/s, tok/s out, tok/s in and out, then ms:
# TTFT, TPOT and gaps between chunks, each mean, median, p99.
_KUBEAI_FILE = "KubeAI, benchmarks of prefix-aware load balancing, the runs' own output"
_KUBEAI_PAGE = "KubeAI, docs/benchmarks/prefix-aware-load-balancing.md, 2f32ef4"
_KUBEAI_COLUMNS = (
    "duration", "request_throughput", "output_throughput", "total_throughput",
    "ttft_mean", "ttft_p50", "ttft_p99", "tpot_mean", "tpot_p50", "tpot_p99",
    "chunk_gap_mean", "chunk_gap_p50", "chunk_gap_p99",
)  # fmt: skip
_KUBEAI = {
    (1600, "least_loaded"): (
        153.02, 52.28, 3976.28, 47476.29, 10579.01, 11501.96, 15514.10, 212.39, 202.98, 613.06, 193.34, 92.65, 747.65,
    ),
    (1600, "prefix_hash"): (
        110.00, 72.73, 5531.31, 66043.15, 196.13, 184.29, 492.33, 78.51, 81.50, 117.36, 79.20, 70.36, 249.71,
    ),
    (3200, "least_loaded"): (
        152.43, 52.48, 3991.56, 47658.74, 24147.86, 25580.61, 46021.48, 211.98, 201.97, 598.14, 192.94, 93.29, 721.71,
    ),
    (3200, "prefix_hash"): (
        111.37, 71.84, 5463.50, 65233.60, 213.92, 188.53, 838.35, 78.73, 82.17, 122.60, 78.49, 70.32, 242.44,
    ),
    (8000, "least_loaded"): (
        152.59, 52.43, 3987.46, 47609.83, 39163.80, 40140.70, 78489.26, 214.09, 205.62, 623.61, 194.44, 90.36, 725.95,
    ),
    (8000, "prefix_hash"): (
        107.89, 74.15, 5639.40, 67333.71, 237.06, 219.27, 619.65, 79.99, 81.76, 124.28, 79.90, 71.31, 303.14,
    ),
}  # fmt: skip
_KUBEAI_LAPTOP = {
    (800, "least_loaded"): (
        61.05, 65.52, 4590.26, 59009.24, 2231.80, 2155.21, 4817.80, 104.06, 88.70, 376.29, 84.95, 63.46, 458.48,
    ),
    (800, "prefix_hash"): (
        54.59, 73.28, 5133.92, 65998.07, 2070.03, 2231.71, 4154.17, 72.12, 71.51, 124.11, 69.03, 57.13, 311.42,
    ),
}  # fmt: skip
# Of the page only: mean TTFT in ms, tok/s in and out.
_KUBEAI_SUMMARIES = {
    (800, "round_robin"): (1319.77, 45409.81),
    (800, "least_loaded"): (817.18, 45866.16),
    (800, "prefix_hash"): (280.20, 69407.79),
    (1600, "round_robin"): (10365.29, 46250.51),
    (3200, "round_robin"): (27183.41, 46460.74),
    (8000, "round_robin"): (48587.55, 46510.40),
}
_AT_CLIENT = "TTFT counts from when the client's limit of open requests let a request go"


def _kubeai() -> Iterator[Statement]:
    for (concurrency, policy), row in _KUBEAI.items():
        yield _kubeai_run(concurrency, policy, row, policy, "8000 requests", (_AT_CLIENT,))
    for (concurrency, policy), (ttft_ms, total) in _KUBEAI_SUMMARIES.items():
        yield _kubeai_statement(
            concurrency,
            policy,
            source=_KUBEAI_PAGE,
            stated="8000 requests, mean TTFT and total throughput only",
            figures={"ttft_mean": ttft_ms * MS, "total_throughput": total},
            doubts=(_AT_CLIENT,),
        )
    for (concurrency, policy), row in _KUBEAI_LAPTOP.items():
        doubts = (_AT_CLIENT, "its author distrusts it: it went through a port-forward from a laptop")
        yield _kubeai_run(concurrency, policy, row, f"{policy}, through a port-forward", "4000 requests", doubts)


def _kubeai_run(
    concurrency: int, policy: str, row: Sequence[float], name: str, stated: str, doubts: Sequence[str]
) -> Statement:
    given = {
        column: value * (MS if column.startswith(("ttft", "tpot", "chunk")) else 1)
        for column, value in zip(_KUBEAI_COLUMNS, row, strict=True)
    }
    return _kubeai_statement(
        concurrency,
        name,
        source=_KUBEAI_FILE,
        stated=f"{stated}, {'with' if policy == 'prefix_hash' else 'without'} prefix-aware load balancing",
        figures={metric: value for metric, value in given.items() if metric in METRICS},
        apart={metric: value for metric, value in given.items() if metric not in METRICS},
        doubts=doubts,
    )


def _kubeai_statement(concurrency: int, name: str, **words: Any) -> Statement:
    return Statement(
        test=f"{_ROUTING}[{concurrency}]",
        name=name,
        load=f"{800 if concurrency == 8000 else 200} requests/s as the client was told, at most {concurrency} open",
        engine="vllm",
        model="Meta-Llama-3.1-8B-Instruct-FP8",
        **words,
    )


_TENSORRT_LLM = "TensorRT-LLM, benchmarks/python/kv_cache_offload/README.md, 16d2467ea8"
_GH200_ARTICLE = "NVIDIA, article on GH200 and multi-turn Llama 3, in summary"
_GH200_OVER_H100 = (
    Statement(
        test=_KV_OFFLOAD,
        name="more than 7 users",
        source=_TENSORRT_LLM,
        stated="GH200 delivers a 1.9x improvement in TTFT and approximately 3x in runtime over 10 rounds",
        load="round_robin() by its text, round_robin(barrier=True) by its code",
        engine="tensorrt_llm",
        model="Llama-3.1-70B",
        figures={f"{RATIO}ttft_h100_over_gh200": 1.9, f"{RATIO}duration_h100_over_gh200": 3.0},
        doubts=("its TTFT is the latency of one engine iteration, one sample of a process, and not of a request",),
    ),
    Statement(
        test=_KV_OFFLOAD,
        name="multi-turn Llama 3",
        source=_GH200_ARTICLE,
        stated="TTFT faster by up to 2x than on x86 servers with H100, in multi-turn interactions",
        load="not stated",
        engine="not stated",
        model="Llama 3",
        figures={f"{RATIO}ttft_h100_over_gh200_at_most": 2.0},
        doubts=("without lengths, dtype, batch size or engine",),
    ),
)

_CONNECTOR = "vLLM, article on its offloading connector, 2026-01-08, read in part"
_OFFLOAD_ON_H100 = (
    Statement(
        test=_RECOMPUTE,
        name="Llama 3 70B",
        source=_GH200_ARTICLE,
        stated="KV cache offloading faster by up to 14x than computing again, on H100",
        load="not stated",
        engine="not stated",
        model="Llama 3 70B",
        figures={f"{RATIO}ttft_recomputed_over_restored_at_most": 14.0},
        doubts=("without lengths, dtype or engine",),
    ),
    Statement(
        test=_RECOMPUTE,
        name="Llama 3.1 8B, one request",
        source=_CONNECTOR,
        stated="TTFT lower by 2x to 22x, by the prompt's length",
        load="closed_loop(1)",
        engine="vllm",
        model="Llama-3.1-8B",
        figures={
            f"{RATIO}ttft_recomputed_over_restored_at_least": 2.0,
            f"{RATIO}ttft_recomputed_over_restored_at_most": 22.0,
        },
    ),
    Statement(
        test=_RECOMPUTE,
        name="Llama 3.1 8B, 10000 requests of 512 tokens",
        source=_CONNECTOR,
        stated="up to 9x throughput",
        load="not stated",
        engine="vllm",
        model="Llama-3.1-8B",
        figures={f"{RATIO}throughput_restored_over_recomputed_at_most": 9.0},
    ),
    Statement(
        test=_RECOMPUTE,
        name="vLLM 0.12.0 over what was before",
        source=_CONNECTOR,
        stated="TTFT lower by up to 4x, throughput 5x",
        load="not stated",
        engine="vllm",
        model="Llama-3.1-8B",
        figures={
            f"{RATIO}ttft_before_over_0.12.0_at_most": 4.0,
            f"{RATIO}throughput_0.12.0_over_before_at_most": 5.0,
        },
    ),
)

_LMCACHE = (
    Statement(
        test=_RECOMPUTE,
        name="LMCache with vLLM",
        source="LMCache, arXiv 2510.09665, abstract",
        stated="up to 15x throughput",
        load="not stated",
        engine="vllm",
        model="not stated",
        figures={f"{RATIO}throughput_restored_over_recomputed_at_most": 15.0},
    ),
)


def _llmperf(test: str, gpus: str, least: float, most: float, doubts: Sequence[str] = ()) -> Statement:
    """One comparison of LLMPerf; it shows execution times in pictures only."""
    name = f"{RATIO}requests_a100_over_rtx4090"
    words = f"{least:g}x" if least == most else f"{least:g}x to {most:g}x"
    return Statement(
        test=test,
        name=gpus,
        source="LLMPerf, Emerging-AI, README",
        stated=f"an A100 processed {words} more requests than a 4090",
        load="Poisson arrivals for 15 minutes, rates not stated",
        engine="not stated",
        model="Qwen2-7B" if gpus == "one GPU" else "Qwen2-72B-AWQ",
        figures={name: least} if least == most else {f"{name}_at_least": least, f"{name}_at_most": most},
        doubts=("that execution times were equal is not stated", *doubts),
    )


_OTHER_MODEL = ("the section announces Qwen2-72B-AWQ, the sentence says Qwen2-7B",)
_A100_OVER_RTX4090 = (
    _llmperf(_MULTIPLE_CHOICE, "one GPU", 1.6, 1.6),
    _llmperf(_KNOWLEDGE_GRAPH, "one GPU", 2.0, 3.0),
    _llmperf(_MULTIPLE_CHOICE, "four GPUs", 1.6, 1.6, _OTHER_MODEL),
    _llmperf(_KNOWLEDGE_GRAPH, "four GPUs", 3.0, 4.0, _OTHER_MODEL),
)

PUBLICATIONS = {
    "kubeai": Publication("published-8x-l4", tuple(_kubeai())),
    "gh200_over_h100": Publication("published-gh200-over-h100", _GH200_OVER_H100),
    "offload_on_h100": Publication("published-h100", _OFFLOAD_ON_H100),
    "lmcache": Publication("published-not-stated", _LMCACHE),
    "llmperf": Publication("published-a100-over-rtx4090", _A100_OVER_RTX4090),
}
"""File, without its suffix: what goes into it."""


def main() -> int:
    """Write all files; returns the exit code."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, publication in PUBLICATIONS.items():
        measurements = [_measurement(statement, publication.hardware_key) for statement in publication.statements]
        write(document(measurements, publication.hardware_key), folder / f"{name}.json")
    return 0


def _measurement(statement: Statement, hardware_key: str) -> Measurement:
    provenance = Provenance(
        test=statement.test,
        name=statement.name,
        hardware_key=hardware_key,
        workload="published",
        workload_digest=digest({"source": statement.source, "test": statement.test, "load": statement.load}),
        load=statement.load,
        open_load=False,
        cache="as_is",
        engine_kind=statement.engine,
        engine_identity={"model": statement.model},
        engine_words={"kind": statement.engine, "model": statement.model},
        engine={},
    )
    return Measurement(
        provenance=provenance,
        figures=[_figure(statement, name, value) for name, value in statement.figures.items()],
        about={"published": {"source": statement.source, "stated": statement.stated}},
        result={
            "runs": [dict(statement.figures)],
            **({"apart": [dict(statement.apart)]} if statement.apart else {}),
            "doubts": list(statement.doubts),
        },
    )


def _figure(statement: Statement, name: str, value: float) -> Figure:
    metric = None if name.startswith(RATIO) else METRICS[name]
    return Figure(
        metric=name,
        unit="ratio" if metric is None else metric.unit,
        inverted=metric is not None and metric.higher_is_better,
        values=[value],
        comparable={"published": statement.source},
    )


if __name__ == "__main__":
    sys.exit(main())
