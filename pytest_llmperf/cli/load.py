"""`pytest-llmperf load URL`: drive one server without a test."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pytest_llmperf.errors import ConfigurationError, LLMPerfError

if TYPE_CHECKING:
    from pytest_llmperf.load import Load
    from pytest_llmperf.results import PerfResult

HELP = "send a load to an OpenAI-compatible server and print what was measured"
EXIT_INVALID = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_REPEAT_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to send, how fast, and where to write."""
    parser.add_argument("url", metavar="URL", help="base URL of the server, such as http://localhost:8000")
    parser.add_argument("--model", help="the model to ask for (default: the only one that the server has)")
    how = parser.add_argument_group("load; one of --concurrency and --rate")
    how.add_argument("--concurrency", type=int, metavar="N", help="N requests at a time, the next as one ends")
    how.add_argument("--rate", type=float, metavar="R", help="R requests per second on average, sent when they are due")
    how.add_argument(
        "--burstiness", type=float, metavar="K",
        help="with --rate: gamma-distributed gaps of this shape; 1 is Poisson (the default), less is burstier",
    )  # fmt: skip
    how.add_argument("--constant", action="store_true", help="with --rate: equal gaps")
    how.add_argument("--ramp", type=float, default=0.0, metavar="SECONDS", help="reach the load gradually")
    how.add_argument("--warmup", type=float, default=0.0, metavar="SECONDS", help="then send so long unmeasured")
    how.add_argument("--duration", type=float, metavar="SECONDS", help="send nothing after this time")
    what = parser.add_argument_group("requests")
    what.add_argument("--requests", type=int, default=100, metavar="N", help="how many (default: 100)")
    what.add_argument("--input-tokens", type=int, default=512, metavar="N", help="of each prompt (default: 512)")
    what.add_argument("--output-tokens", type=int, default=128, metavar="N", help="of each answer (default: 128)")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts and the schedule (default: 0)")
    what.add_argument("--prompts", choices=("ids", "text", "chat"), default="ids", help="how they are sent")
    parser.add_argument("--workers", default="1", metavar="N|ray://...", help="processes that send (default: 1)")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="of silence (default: 300)")
    parser.add_argument("--slo-ttft", type=float, metavar="SECONDS", help="limit for goodput")
    parser.add_argument("--slo-tpot", type=float, metavar="SECONDS", help="limit for goodput")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--output", type=Path, default=Path(".llmperf"), metavar="DIR", help="folder for the records")


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Measure and print; 0 if the run is valid, 1 if not, 2 for a mistake in the arguments."""
    progress = _Progress(sys.stderr)
    try:
        result = _measure(arguments, progress)
    except LLMPerfError as error:
        progress.clear()
        problems = error.problems if isinstance(error, ConfigurationError) else (str(error),)
        sys.stderr.writelines(f"pytest-llmperf load: {problem}\n" for problem in problems)
        return EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_INVALID
    except KeyboardInterrupt:
        progress.clear()
        sys.stderr.write(f"interrupted; what had been answered is recorded below {arguments.output}\n")
        return EXIT_INTERRUPTED
    progress.clear()
    from pytest_llmperf.reports.serving import summary  # noqa: PLC0415 - needs numpy

    out.writelines(f"{line}\n" for line in summary(result))
    if arguments.json is not None:
        _write(arguments.json, result)
    return 0 if result.validity else EXIT_INVALID


def _measure(arguments: argparse.Namespace, progress: _Progress) -> PerfResult:
    """Raises `ConfigurationError` listing every mistake, or `EngineError`."""
    # Only here: `--help` and the other subcommands shall not wait for numpy.
    from pytest_llmperf.client import Address, Limits  # noqa: PLC0415
    from pytest_llmperf.clock import RealClock, timestamp  # noqa: PLC0415
    from pytest_llmperf.driver import team_of  # noqa: PLC0415
    from pytest_llmperf.engines import openai  # noqa: PLC0415
    from pytest_llmperf.engines.base import Surroundings, parse_spec  # noqa: PLC0415
    from pytest_llmperf.hardware import detect, remote  # noqa: PLC0415
    from pytest_llmperf.metrics import METRICS, gated_by_default  # noqa: PLC0415
    from pytest_llmperf.options import API_KEY_VARIABLE, workers  # noqa: PLC0415
    from pytest_llmperf.results import Validity  # noqa: PLC0415
    from pytest_llmperf.selfcheck import excesses  # noqa: PLC0415
    from pytest_llmperf.session import Setting, checked_request, measure  # noqa: PLC0415
    from pytest_llmperf.workloads import single_turn  # noqa: PLC0415

    clock = RealClock()
    words = {"url": arguments.url, "model": arguments.model, "prompts": arguments.prompts}
    spec = parse_spec("openai", words, openai.WORDS, openai.REQUIRED)
    load = _load(arguments)
    workload = single_turn(
        requests=arguments.requests,
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        seed=arguments.seed,
    )
    slo = {name: limit for name in ("ttft", "tpot") if (limit := getattr(arguments, f"slo_{name}")) is not None}
    request = checked_request(
        workload, load=load, runs=1, warmup_runs=0, cache="as_is", prefill_context=False, slo=slo or None, name=None
    )
    output = arguments.output / f"load-{timestamp():%Y%m%d-%H%M%S}-{os.getpid()}"
    surroundings = Surroundings(
        clock=clock,
        log_dir=output,
        cache_dir=output,
        start_timeout_s=arguments.timeout,
        limits=Limits(silence_s=arguments.timeout),
        api_key=os.environ.get(API_KEY_VARIABLE, "").strip() or None,
        progress=progress,
    )
    address = Address.parse(arguments.url)
    hardware = detect() if address.is_loopback else remote(address.host)
    team = team_of(workers(arguments.workers), clock)
    try:
        setting = Setting(
            test="load",
            hardware_key=hardware.key,
            clock=clock,
            record_dir=output,
            progress=progress,
            team=team,
        )
        result = measure(openai.make(spec, surroundings), request, setting)
    finally:
        team.close()
    if result.validity:
        gated = [METRICS[name] for name in gated_by_default(open_load=request.load.is_open)]
        result.validity = Validity(tuple(map(str, excesses(gated, result.records))))
    return result


def _load(arguments: argparse.Namespace) -> Load:
    from pytest_llmperf.load import burst, closed_loop, constant, poisson  # noqa: PLC0415

    problems = list(_contradictions(arguments))
    if problems:
        raise ConfigurationError(*problems)
    times = {"ramp_s": arguments.ramp, "warmup_s": arguments.warmup, "duration_s": arguments.duration}
    if arguments.concurrency is not None:
        return closed_loop(arguments.concurrency, **times)
    if arguments.constant:
        return constant(arguments.rate, **times)
    if arguments.burstiness is not None:
        return burst(arguments.rate, shape=arguments.burstiness, seed=arguments.seed, **times)
    return poisson(arguments.rate, seed=arguments.seed, **times)


def _contradictions(arguments: argparse.Namespace) -> Iterator[str]:
    if (arguments.concurrency is None) == (arguments.rate is None):
        yield "give either --concurrency N or --rate R"
    if arguments.rate is None and (arguments.constant or arguments.burstiness is not None):
        yield "--constant and --burstiness go with --rate"
    if arguments.constant and arguments.burstiness is not None:
        yield "give --constant or --burstiness, not both"


def _write(path: Path, result: PerfResult) -> None:
    """Write the result as JSON; a place that cannot be written to does not lose the summary."""
    import orjson  # noqa: PLC0415 - only here

    from pytest_llmperf.reports.figures import result_json  # noqa: PLC0415

    try:
        path.write_bytes(orjson.dumps(result_json(result), option=orjson.OPT_INDENT_2))
    except OSError as error:
        sys.stderr.write(f"--json: {error}\n")


class _Progress:
    """One line that is rewritten on a terminal; nothing elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        from pytest_llmperf.clock import RealClock  # noqa: PLC0415

        self._stream = stream if stream.isatty() else None
        self._clock = RealClock()
        self._said_ns = 0

    def __call__(self, step: str, detail: str = "") -> None:
        from pytest_llmperf.clock import seconds_between  # noqa: PLC0415

        now_ns = self._clock.now_ns()
        if self._stream is None or (self._said_ns and seconds_between(self._said_ns, now_ns) < _REPEAT_S):
            return
        self._said_ns = now_ns
        self._stream.write(f"\r\x1b[K{step}{', ' + detail if detail else ''}")
        self._stream.flush()

    def clear(self) -> None:
        if self._stream is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
