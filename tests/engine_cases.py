"""Every engine as the tests of the contract have it: how it is made, and what it can."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes import no_progress
from real_vllm import MARKS, START_TIMEOUT_S
from real_vllm import WORDS as VLLM_WORDS
from stub_engine import installed

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines import make_engine, make_spec, tiny_llama
from pytest_llmperf.engines.base import TOKEN_IDS, Answer, Engine, Generation, Surroundings
from pytest_llmperf.engines.in_process.server import InProcessEngine, InProcessServer
from pytest_llmperf.engines.sim.plan import planned
from pytest_llmperf.engines.sim.serving import SimServer, exact_event_loop

_WAIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One engine. What it cannot is said, so that a test of it skips where it has to."""

    kind: str
    words: dict[str, Any] = field(default_factory=dict)
    is_stub: bool = False
    """Its program is a stub of ours, which starts at once."""
    is_ours: bool = True
    replicas: int = 1
    counts: bool = True
    empties: bool = True
    times: bool = False
    """Whether it says how it timed a request."""
    times_apart: bool = False
    """Whether it says so of requests that it does not name."""
    has_text: bool = True
    marks: tuple[Any, ...] = ()

    @property
    def has_process(self) -> bool:
        return self.kind not in ("sim", "openai")


CASES = {
    "sim": Case(kind="sim", words={"part": "gh200", "model": "tiny-llama"}, has_text=False),
    "openai": Case(kind="openai", is_ours=False, empties=False),
    "vllm": Case(kind="vllm", is_stub=True, times=True),
    "vllm-in-process": Case(kind="vllm", words={"in_process": True}, is_stub=True, times=True),
    "sglang": Case(kind="sglang", is_stub=True),
    "tensorrt_llm": Case(kind="tensorrt_llm", is_stub=True, empties=False, times_apart=True),
    "tensorrt_llm-in-process": Case(
        kind="tensorrt_llm", words={"in_process": True}, is_stub=True, counts=False, empties=False, times=True
    ),
    "fleet": Case(kind="fleet", words={"replicas": 2}, is_stub=True, replicas=2, times=True, has_text=False),
    "real-vllm": Case(kind="vllm", words=VLLM_WORDS, times=True, marks=tuple(MARKS)),
    "real-vllm-in-process": Case(kind="vllm", words={**VLLM_WORDS, "in_process": True}, times=True, marks=tuple(MARKS)),
}


def cases(wanted: Callable[[Case], bool] = lambda case: True) -> list[Any]:
    """The names of the cases that are wanted, as parameters."""
    long = pytest.mark.timeout(START_TIMEOUT_S)
    return [
        pytest.param(name, marks=[*case.marks, *([long] if case.marks else [])], id=name)
        for name, case in CASES.items()
        if wanted(case)
    ]


def surroundings(folder: Path, **words: Any) -> Surroundings:
    given = {
        "clock": RealClock(),
        "log_dir": folder / "log",
        "cache_dir": folder / "cache",
        "start_timeout_s": START_TIMEOUT_S,
        "limits": Limits(silence_s=20.0),
        "api_key": None,
        "progress": no_progress,
    }
    return Surroundings(**{**given, **words})


@contextlib.contextmanager
def made(name: str, folder: Path, around: Surroundings | None = None, **words: Any) -> Iterator[Engine]:
    """An engine, not yet started; stopped afterwards."""
    case, around = CASES[name], around or surroundings(folder)
    with contextlib.ExitStack() as stack:
        given = {**case.words, **words}
        if case.is_stub:
            python = installed(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            given = {"model": str(tiny_llama.ensure(around.cache_dir)), "max_model_len": 2048, **given}
            given = {"executable": python, "prefix_caching": True, **given}
            if case.kind == "fleet":
                given["router"] = str(Path(python).parent / "vllm-router")
        if case.kind == "openai":
            given = {"url": stack.enter_context(embedded_server()), **given}
        engine = make_engine(make_spec(case.kind, given), around)
        stack.callback(engine.stop)
        yield engine


@contextlib.contextmanager
def embedded_server() -> Iterator[str]:
    """The simulated engine in real time, in a thread: its URL."""
    spec = make_spec("sim", {"part": "gh200", "model": "tiny-llama"})
    server = SimServer(spec, planned(spec), "1.2.3")
    loop = exact_event_loop()
    url = loop.run_until_complete(server.start("127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield url
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(_WAIT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_WAIT_S)
        loop.close()


def prompt(seed: object, tokens: int) -> list[int]:
    """Ids that no other seed has."""
    return random.Random(str(seed)).choices(TOKEN_IDS, k=tokens)


def answer(source: Any, ids: list[int], output_tokens: int = 3, *, ids_back: bool = True) -> Answer:
    """The answer to one request. `source`: an engine, or what has a connector."""
    clock = getattr(source, "clock", None) or RealClock()
    channel = source.connector().open(clock)
    try:
        channel.open(1)
        channel.send(5, channel.encode(Generation(ids, output_tokens, return_token_ids=ids_back)))
        replies: list[Any] = []
        while not replies:
            channel.poll(1.0)
            replies += channel.ended()
        found: Answer = replies[0].read()
        return found
    finally:
        channel.close()


def as_text(engine: Any, around: Surroundings) -> Any:
    """The same running engine, sent texts: what has a connector and tells how lengths were found."""
    if isinstance(engine, InProcessEngine):
        server = InProcessServer(engine.server.address, around, "text")
        server.connect(engine.model)
        return server
    other = make_engine(make_spec("openai", {"url": engine.url, "prompts": "text"}), around)
    other.start()
    return other
