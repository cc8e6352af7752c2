"""`pytest-llmperf load URL`: drive one server without a test."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from pytest_llmperf import atomic
from pytest_llmperf.cli import exit_codes
from pytest_llmperf.errors import ConfigurationError, LLMPerfError

if TYPE_CHECKING:
    from pytest_llmperf.driver import Driven, Job, Team
    from pytest_llmperf.engines.spec import EngineSpec
    from pytest_llmperf.load import Load
    from pytest_llmperf.records import RequestRecord
    from pytest_llmperf.request import Request
    from pytest_llmperf.results import PerfResult
    from pytest_llmperf.workloads import Workload

HELP = "send a load to an OpenAI-compatible server and print what was measured"
_REQUESTS = 100
_REPEAT_NS = 500_000_000
_TTY_CHARACTERS = 79

Made = TypeVar("Made")


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
    what.add_argument(
        "--requests", type=int, metavar="N",
        help=f"how many at most (default: {_REQUESTS}; with --rate and --duration as many as are due in that time)",
    )  # fmt: skip
    what.add_argument("--input-tokens", type=int, default=512, metavar="N", help="of each prompt (default: 512)")
    what.add_argument("--output-tokens", type=int, default=128, metavar="N", help="of each answer (default: 128)")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts and the schedule (default: 0)")
    what.add_argument("--prompts", choices=("ids", "text", "chat"), default="ids", help="how they are sent")
    what.add_argument(
        "--tokenizer", metavar="PATH",
        help="with --prompts text or chat: the model's tokenizer.json or its folder, where the server offers none",
    )  # fmt: skip
    parser.add_argument("--workers", default="1", metavar="N|ray://...", help="processes that send (default: 1)")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="of silence (default: 300)")
    parser.add_argument(
        "--telemetry", default="10", metavar="HZ|off",
        help="samples of this machine's GPUs per second, where the server is on this machine (default: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerate", default="", metavar="RULE,...", help="rules on the hardware whose breach is said, and not failed"
    )
    parser.add_argument("--slo-ttft", type=float, metavar="SECONDS", help="limit for goodput")
    parser.add_argument("--slo-tpot", type=float, metavar="SECONDS", help="limit for goodput")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--output", type=Path, default=Path(".llmperf"), metavar="DIR", help="folder for the records")


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Measure and print; 0 if the run is valid, 1 if not, 2 for a mistake in the arguments."""
    progress = _Progress(sys.stderr)
    try:
        order = _order(arguments)
        result = _measure(order, progress)
    except LLMPerfError as error:
        progress.clear()
        problems = error.problems if isinstance(error, ConfigurationError) else (str(error),)
        sys.stderr.writelines(f"pytest-llmperf load: {_own_words(problem)}\n" for problem in problems)
        return exit_codes.USAGE if isinstance(error, ConfigurationError) else exit_codes.INVALID
    except OSError as error:
        progress.clear()
        sys.stderr.write(f"pytest-llmperf load: {error}\n")
        return exit_codes.USAGE
    except KeyboardInterrupt:
        progress.clear()
        sys.stderr.write(f"interrupted; what had been answered is recorded below {arguments.output}\n")
        return exit_codes.INTERRUPTED
    progress.clear()
    from pytest_llmperf.reports.serving import summary  # noqa: PLC0415 - needs numpy

    out.writelines(f"{_own_words(line)}\n" for line in summary(result))
    out.write(f"records: {order.output}\n")
    written = arguments.json is None or _is_written(arguments.json, result)
    return (0 if result.validity else exit_codes.INVALID) if written else exit_codes.USAGE


def _own_words(text: str) -> str:
    """The options that messages name are called so in pytest; here they have no prefix."""
    return text.replace("--llmperf-", "--")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What was asked for, checked."""

    spec: EngineSpec
    request: Request
    workers: int | str
    timeout_s: float
    telemetry_hz: float | None
    tolerated: frozenset[str]
    api_key: str | None = field(repr=False)
    output: Path


class _Mistakes:
    """Collects what is wrong, so that all of it can be told at once."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def attempt(self, make: Callable[[], Made], option: str = "") -> Made | None:
        """What is made, or None where that is a mistake."""
        try:
            return make()
        except ConfigurationError as error:
            self.problems += [f"{option}: {problem}" if option else problem for problem in error.problems]
            return None


def _order(arguments: argparse.Namespace) -> _Order:
    """Raises `ConfigurationError` listing every mistake."""
    # Only here: `--help` and the other subcommands shall not wait for numpy.
    from pytest_llmperf.clock import timestamp  # noqa: PLC0415
    from pytest_llmperf.option_values import rate_hz, rules, workers  # noqa: PLC0415
    from pytest_llmperf.options import api_key  # noqa: PLC0415
    from pytest_llmperf.request import checked_request  # noqa: PLC0415

    mistakes = _Mistakes()
    mistakes.problems += _contradictions(arguments)
    spec = mistakes.attempt(lambda: _spec(arguments))
    load = mistakes.attempt(lambda: _load(arguments))
    workload = mistakes.attempt(lambda: _workload(arguments))
    team = mistakes.attempt(lambda: workers(arguments.workers), "--workers")
    key = mistakes.attempt(api_key)
    telemetry_hz = mistakes.attempt(lambda: rate_hz(arguments.telemetry), "--telemetry")
    tolerated = mistakes.attempt(lambda: rules(arguments.tolerate), "--tolerate")
    mistakes.problems += _bad_seconds(arguments)
    mistakes.problems += _unwritable(arguments)
    if mistakes.problems or spec is None or team is None:
        raise ConfigurationError(*mistakes.problems)
    slo = {name: limit for name in ("ttft", "tpot") if (limit := getattr(arguments, f"slo_{name}")) is not None}
    request = checked_request(
        workload, load=load, runs=1, warmup_runs=0, cache="as_is", prefill_context=False, slo=slo or None, name=None
    )
    return _Order(
        spec=spec,
        request=request,
        workers=team,
        timeout_s=arguments.timeout,
        telemetry_hz=telemetry_hz,
        tolerated=tolerated or frozenset(),
        api_key=key,
        output=arguments.output / f"load-{timestamp():%Y%m%d-%H%M%S}-{os.getpid()}",
    )


def _contradictions(arguments: argparse.Namespace) -> Iterator[str]:
    if (arguments.concurrency is None) == (arguments.rate is None):
        yield "give either --concurrency N or --rate R"
    if arguments.rate is None and (arguments.constant or arguments.burstiness is not None):
        yield "--constant and --burstiness go with --rate"
    if arguments.constant and arguments.burstiness is not None:
        yield "give --constant or --burstiness, not both"
    if arguments.rate is None and arguments.duration is not None and arguments.requests is None:
        yield "--duration with --concurrency: give --requests, too, more than can be answered in that time"


def _spec(arguments: argparse.Namespace) -> EngineSpec:
    from pytest_llmperf.engines import make_spec  # noqa: PLC0415

    words = {name: getattr(arguments, name) for name in ("url", "model", "prompts", "tokenizer")}
    return make_spec("openai", words)


def _load(arguments: argparse.Namespace) -> Load | None:
    """None where neither of the two was given; both are looked at where there are two."""
    from pytest_llmperf.load import burst, closed_loop, constant, poisson  # noqa: PLC0415

    times = {"ramp_s": arguments.ramp, "warmup_s": arguments.warmup, "duration_s": arguments.duration}
    load: Load | None = None
    if arguments.concurrency is not None:
        load = closed_loop(arguments.concurrency, **times)
    if arguments.rate is None:
        return load
    if arguments.burstiness is not None:
        return burst(arguments.rate, shape=arguments.burstiness, seed=arguments.seed, **times)
    if arguments.constant:
        return constant(arguments.rate, **times)
    return poisson(arguments.rate, seed=arguments.seed, **times)


def _workload(arguments: argparse.Namespace) -> Workload:
    from pytest_llmperf.workloads import single_turn  # noqa: PLC0415

    return single_turn(
        requests=_requests(arguments),
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        seed=arguments.seed,
    )


def _requests(arguments: argparse.Namespace) -> int:
    """As many as were asked for; for a rate and a duration more than can become due, whatever is drawn."""
    if arguments.requests is not None:
        return int(arguments.requests)
    if arguments.rate is None or arguments.duration is None:
        return _REQUESTS
    expected: float = arguments.rate * arguments.duration
    if not 0 <= expected < math.inf:  # the load says what is wrong with them
        return _REQUESTS
    shape = arguments.burstiness if arguments.burstiness is not None and arguments.burstiness > 0 else 1.0
    return math.ceil(expected + 6 * math.sqrt(expected / min(shape, 1.0))) + 10


def _bad_seconds(arguments: argparse.Namespace) -> Iterator[str]:
    for name in ("timeout", "slo_ttft", "slo_tpot"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            yield f"--{name.replace('_', '-')}: expected a positive number of seconds, got {value:g}"


def _unwritable(arguments: argparse.Namespace) -> Iterator[str]:
    """What would only be noticed when all has been measured."""
    problem = atomic.unwritable_folder(arguments.output)
    if problem is not None:
        yield f"--output: {problem}"
    problem = None if arguments.json is None else atomic.unwritable(arguments.json)
    if problem is not None:
        yield f"--json: {problem}"


def _measure(order: _Order, progress: _Progress) -> PerfResult:
    """Raises `EngineError`, and `ConfigurationError` for what the server cannot do."""
    from pytest_llmperf.client import Address, Limits  # noqa: PLC0415
    from pytest_llmperf.clock import RealClock  # noqa: PLC0415
    from pytest_llmperf.driver import team_of  # noqa: PLC0415
    from pytest_llmperf.engines import openai  # noqa: PLC0415
    from pytest_llmperf.engines.base import Surroundings  # noqa: PLC0415
    from pytest_llmperf.hardware import detect, remote  # noqa: PLC0415
    from pytest_llmperf.session import Setting, measure  # noqa: PLC0415
    from pytest_llmperf.telemetry import planned  # noqa: PLC0415

    clock = RealClock()
    surroundings = Surroundings(
        clock=clock,
        log_dir=order.output,
        cache_dir=order.output,
        start_timeout_s=order.timeout_s,
        limits=Limits(silence_s=order.timeout_s),
        api_key=order.api_key,
        progress=progress,
    )
    address = Address.parse(order.spec.url or "")
    hardware = detect() if address.is_loopback else remote(address.host)
    plan = planned(order.telemetry_hz, order.spec, hardware)
    team = team_of(order.workers, clock)
    try:
        setting = Setting(
            test="load",
            hardware_key=hardware.key,
            clock=clock,
            record_dir=order.output,
            progress=_silent,  # the team says more
            team=_Watched(team, progress),
            telemetry=plan if plan is not None and plan.gpus else None,
            tolerated=order.tolerated,
        )
        result = measure(openai.make(order.spec, surroundings), order.request, setting)
    finally:
        team.close()
    _check_client(result)
    return result


def _silent(step: str, detail: str = "", done: float | None = None) -> None:
    del step, detail, done


def _check_client(result: PerfResult) -> None:
    """Say where the figures of a run without a failure cannot be believed all the same."""
    from pytest_llmperf.metrics import METRICS, gated_by_default  # noqa: PLC0415
    from pytest_llmperf.selfcheck import excesses  # noqa: PLC0415

    if not result.validity:
        return
    gated = [METRICS[name] for name in gated_by_default(open_load=result.is_open)]
    reasons = [str(excess) for excess in excesses(gated, result.records)]
    result.validity = result.validity.without(*reasons)


def _is_written(path: Path, result: PerfResult) -> bool:
    """Write the result as JSON; says why if it cannot be."""
    import orjson  # noqa: PLC0415 - only here

    from pytest_llmperf.reports.figures import result_json  # noqa: PLC0415

    try:
        atomic.write(path, orjson.dumps(result_json(result), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    except OSError as error:
        sys.stderr.write(f"pytest-llmperf load: --json: {atomic.why(error, path)}\n")
        return False
    return True


class _Watched:
    """A team, and a line on what it has done so far."""

    def __init__(self, team: Team, progress: _Progress) -> None:
        self._team = team
        self._progress = progress
        self._done = self._failed = self._tokens = 0

    def run(self, job: Job, record: Callable[[RequestRecord], None], check_engine: Callable[[], None]) -> Driven:
        """As the team does."""
        from pytest_llmperf.clock import RealClock, seconds_between  # noqa: PLC0415

        clock = RealClock()
        began_ns = clock.now_ns()

        def show() -> None:
            if not self._progress.is_due:
                return
            passed_s = seconds_between(began_ns, clock.now_ns())
            failed = f", {self._failed} failed" if self._failed else ""
            self._progress(
                f"{self._done} requests done{failed}, {self._tokens / max(passed_s, 1e-9):,.0f} tok/s, {passed_s:.0f} s"
            )

        def counted(row: RequestRecord) -> None:
            record(row)
            self._done += 1
            self._failed += not row.ok
            self._tokens += row.output_tokens or 0
            show()

        def checked() -> None:
            check_engine()
            show()

        return self._team.run(job, counted, checked)

    def close(self) -> None:
        self._team.close()


class _Progress:
    """One line that is rewritten on a terminal; nothing elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        from pytest_llmperf.clock import RealClock  # noqa: PLC0415

        self._stream = stream if stream.isatty() else None
        self._clock = RealClock()
        self._due_ns = 0

    @property
    def is_due(self) -> bool:
        """Whether anybody would see a new line."""
        return self._stream is not None and self._clock.now_ns() >= self._due_ns

    def __call__(self, step: str, detail: str = "", done: float | None = None) -> None:
        del done
        if self._stream is None or not self.is_due:
            return
        self._due_ns = self._clock.now_ns() + _REPEAT_NS
        line = f"{step}, {detail}" if detail else step
        self._stream.write(f"\r\x1b[K{line[:_TTY_CHARACTERS]}")
        self._stream.flush()

    def clear(self) -> None:
        if self._stream is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
