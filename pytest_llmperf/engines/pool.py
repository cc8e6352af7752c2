"""Engines shared by the tests that ask for the same one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pytest_llmperf.engines import make_engine
from pytest_llmperf.engines.base import Engine, Surroundings
from pytest_llmperf.engines.spec import EngineSpec


class EnginePool:
    """One engine per distinct specification, stopped when the last test that wants it is done."""

    def __init__(self, surroundings: Surroundings, wanted: Iterable[EngineSpec]) -> None:
        """`wanted`: the specification of each test that is going to run, once per test."""
        self._surroundings = surroundings
        self._wanted = Counter(wanted)
        self._engines: dict[EngineSpec, Engine] = {}

    def get(self, spec: EngineSpec) -> Engine:
        """The engine of this specification, made on first need and started by its first user."""
        if spec not in self._engines:
            self._engines[spec] = make_engine(spec, self._surroundings)
        return self._engines[spec]

    def make(self, spec: EngineSpec) -> Engine:
        """An engine that is shared with nobody; its maker stops it."""
        return make_engine(spec, self._surroundings)

    def release(self, spec: EngineSpec) -> None:
        """One test that wanted this specification is done."""
        self._wanted[spec] -= 1
        if self._wanted[spec] <= 0 and spec in self._engines:
            self._engines.pop(spec).stop()

    @property
    def on_devices(self) -> list[Engine]:
        """The engines that may be up on this machine's devices."""
        return [engine for engine in self._engines.values() if engine.is_ours and not engine.is_simulated]

    def rest(self) -> None:
        """Stop those; the next user of each starts it again."""
        for engine in self.on_devices:
            engine.stop()

    def stop_all(self) -> None:
        """Stop whatever still runs."""
        while self._engines:
            _, engine = self._engines.popitem()
            engine.stop()
