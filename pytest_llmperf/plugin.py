"""pytest hooks and fixtures, a few lines each.

Loaded in every pytest run of every environment that has the package installed, so it imports
pytest, the standard library and two small modules of ours; the rest is imported when a session has
performance tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.options import Options, add_options, read_options

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path
    from typing import Any

    from pytest_llmperf.engines import Engine
    from pytest_llmperf.fixture import LLMPerf
    from pytest_llmperf.hardware import Hardware
    from pytest_llmperf.lifecycle import Lifecycle
    from pytest_llmperf.merging import Merged

OPTIONS_KEY = pytest.StashKey[Options]()
LIFECYCLE_KEY = pytest.StashKey["Lifecycle"]()
MERGED_KEY = pytest.StashKey["Merged"]()
MISTAKES_KEY = pytest.StashKey[str]()

# The parts' names stand in hardware/parts.py, too, which is not imported here; a test compares them.
PART_MARKS = ("gh200", "h100", "h200", "a100", "l4", "l40s", "rtx4090", "b200", "gb200")
MARKS = (
    "llm_engine(kind, **specification): the engine that the fixture llm_engine starts or reaches",
    "llm_gate(metric=NAME, detect=0.1, min_effect=0): gate this metric; a PASS could have seen a change of `detect`",
    "gpu(count=N, memory_gib=N, nvlink_c2c=BOOL, compute_capability=N, nvlink=BOOL): needs such GPUs; skips elsewhere",
    *(f"{part}: needs this GPU; skips where it is not" for part in PART_MARKS),
)
FIXTURES = frozenset({"llm_engine", "llm_engine_factory", "llm_perf", "gpu"})


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    for line in MARKS:
        config.addinivalue_line("markers", line)
    try:
        config.stash[OPTIONS_KEY] = read_options(config)
    except ConfigurationError as error:
        raise pytest.UsageError(*error.problems) from None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Show measuring tests to pytest-benchmark as benchmarks while it applies `--benchmark-only`."""
    measuring = [item for item in items if "llm_perf" in _fixtures_of(item)]
    for item in measuring:
        _fixtures_of(item).append("benchmark")
    yield
    for item in measuring:
        _fixtures_of(item).remove("benchmark")
    if measuring and hasattr(measuring[0].config, "workerinput"):
        from pytest_llmperf.reports import benchmark  # noqa: PLC0415 - only for sessions with performance tests

        benchmark.warn_of_xdist(measuring[0].config, any("benchmark" in _fixtures_of(item) for item in items))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Plan what is going to run, before the reporter asks for a header.

    Nothing is imported for a session without performance tests.
    """
    concerned = [item for item in session.items if _is_ours(item)]
    if concerned:
        from pytest_llmperf.lifecycle import Lifecycle  # noqa: PLC0415

        config = session.config
        try:
            config.stash[LIFECYCLE_KEY] = Lifecycle(config, config.stash[OPTIONS_KEY], concerned)
        except ConfigurationError as error:
            if not hasattr(config, "workerinput"):
                raise pytest.UsageError(*error.problems) from None
            for item in concerned:  # xdist turns a worker's usage error into an internal one without a text
                item.stash[MISTAKES_KEY] = str(error)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    lifecycle = config.stash.get(LIFECYCLE_KEY, None)
    return [] if lifecycle is None else lifecycle.header()


def pytest_runtest_setup(item: pytest.Item) -> None:
    mistakes = item.stash.get(MISTAKES_KEY, None)
    if mistakes is not None:
        pytest.fail(mistakes, pytrace=False)
    lifecycle = item.config.stash.get(LIFECYCLE_KEY, None)
    if lifecycle is not None:
        lifecycle.check_hardware(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lifecycle = item.config.stash.get(LIFECYCLE_KEY, None)
    if lifecycle is not None:
        lifecycle.complete_report(item, call, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    result = yield
    lifecycle = item.config.stash.get(LIFECYCLE_KEY, None)
    if lifecycle is not None:
        lifecycle.test_done(item, nextitem)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Stop the engines and settle the verdicts, however the loop has ended."""
    error: BaseException | None = None
    try:
        return (yield)
    except BaseException as raised:
        error = raised
        raise
    finally:
        lifecycle = session.config.stash.get(LIFECYCLE_KEY, None)
        if lifecycle is not None:
            lifecycle.finish(session, error)
        merged = _merged(session.config)
        if merged is not None:
            merged.finish(session)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Let others write what they write, pytest-benchmark its JSON: a signal that comes meanwhile is told afterwards."""
    lifecycle = session.config.stash.get(LIFECYCLE_KEY, None)
    if lifecycle is None:
        return (yield)
    with lifecycle.interruption.put_off():
        result = yield
    if lifecycle.interruption.is_noted:
        session.exitstatus = pytest.ExitCode.INTERRUPTED
    return result


def pytest_unconfigure(config: pytest.Config) -> None:
    lifecycle = config.stash.get(LIFECYCLE_KEY, None)
    if lifecycle is not None:
        lifecycle.interruption.restore()


@pytest.hookimpl(wrapper=True, trylast=True, specname="pytest_sessionfinish")
def pytest_files_of_others(session: pytest.Session) -> Generator[None, object, object]:
    """Let no file that another plugin cannot write, such as the JUnit file, keep the verdicts from the terminal."""
    lifecycle = session.config.stash.get(LIFECYCLE_KEY, None)
    if lifecycle is None:
        return (yield)
    try:
        return (yield)
    except OSError as error:
        lifecycle.not_written(f"a file of pytest's could not be written: {error}")
        return None


@pytest.hookimpl(trylast=True, specname="pytest_sessionfinish")
def pytest_headers_of_errors(session: pytest.Session) -> None:
    """Once all reports are counted and written, say in the terminal what is an error of a measurement."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_ours = LIFECYCLE_KEY in session.config.stash or MERGED_KEY in session.config.stash
    if is_ours and reporter is not None:
        from pytest_llmperf.reports import outcome  # noqa: PLC0415 - only for sessions with performance tests

        outcome.name_phases(reporter)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker of xdist hands over at its end."""
    config, output = node.config, getattr(node, "workeroutput", {})
    if "llmperf" in output:
        from pytest_llmperf import merging  # noqa: PLC0415 - only for sessions with performance tests

        config.stash.setdefault(MERGED_KEY, merging.Merged(config.stash[OPTIONS_KEY])).take(output)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    lifecycle = config.stash.get(LIFECYCLE_KEY, None)
    if lifecycle is not None:
        lifecycle.describe_machine(machine_info)
    merged = _merged(config)
    if merged is not None:
        merged.describe_machine(machine_info)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lifecycle = config.stash.get(LIFECYCLE_KEY, None)
    if lifecycle is not None:
        lifecycle.summarise(terminalreporter)
        return
    merged = _merged(config)
    if merged is not None:
        merged.summarise(terminalreporter, config.get_terminal_writer().fullwidth)
        return
    options = config.stash.get(OPTIONS_KEY, None)
    if options is not None and (options.report or options.markdown):
        terminalreporter.write_line("llmperf: no report was written, as no performance test was run here")


@pytest.fixture
def llm_engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of the `llm_engine` mark, shared by the tests with equal marks, started on first use."""
    return _lifecycle(request).suite.engine_of(request.node.nodeid)


@pytest.fixture
def llm_engine_factory(request: pytest.FixtureRequest) -> Generator[Callable[..., Engine], None, None]:
    """`llm_engine_factory(kind, **specification)` returns a started engine of this test's own."""
    with _lifecycle(request).suite.engine_factory() as factory:
        yield factory


@pytest.fixture
def llm_perf(request: pytest.FixtureRequest) -> LLMPerf:
    """Measure a workload on an engine, record it, and judge it."""
    from pytest_llmperf.fixture import LLMPerf  # noqa: PLC0415

    return LLMPerf(_lifecycle(request), request.node)


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest) -> Hardware:
    """What NVML found on this machine: `gpus`, each with its fields, `key`, and in `problem` why there is none."""
    return _lifecycle(request).suite.hardware


@pytest.fixture(scope="session")
def tiny_llama(request: pytest.FixtureRequest) -> Path:
    """The folder of a small random-weight Llama with tokenizer, made on first use and cached."""
    from pytest_llmperf.engines import tiny_llama as model  # noqa: PLC0415

    return model.ensure(request.config.stash[OPTIONS_KEY].cache)


def _lifecycle(request: pytest.FixtureRequest) -> Lifecycle:
    lifecycle = request.config.stash.get(LIFECYCLE_KEY, None)
    if lifecycle is None:
        msg = f"{request.fixturename} was not among any test's arguments when the session was planned; name it there"
        raise ConfigurationError(msg)
    return lifecycle


def _merged(config: pytest.Config) -> Merged | None:
    return config.stash.get(MERGED_KEY, None)


def _fixtures_of(item: pytest.Item) -> list[str]:
    """Names of the fixtures that a test uses; items of other plugins may have none."""
    names: list[str] = getattr(item, "fixturenames", [])
    return names


def _is_ours(item: pytest.Item) -> bool:
    marked = any(mark.name == "gpu" or mark.name in PART_MARKS for mark in item.iter_markers())
    return marked or not FIXTURES.isdisjoint(_fixtures_of(item))
