"""Engines that are used through their Python interface, without a server.

The engine and the sender of its requests share one process, which is not pytest's. Loading an engine rewrites the
environment, starts processes and threads, and takes a Python that has it; pytest's own work would take turns with the
engine's event loop; and an engine that dies would take pytest with it. A worker process has none of this, can be
stopped and started like a server, has a log, and needs nothing of ours in its Python.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pytest_llmperf.engines.base import Engine, Surroundings
from pytest_llmperf.engines.host import ProcessHost, Recipe, served_name
from pytest_llmperf.engines.in_process.server import InProcessEngine, InProcessServer
from pytest_llmperf.engines.spec import EngineSpec

_WORKER = str(Path(__file__).with_name("worker.py"))


def worker_command(python: str, kind: str, port: int) -> list[str]:
    """The command line of a worker, up to the engine's own arguments."""
    return [python, _WORKER, kind, str(port)]


def in_process(recipe: Recipe, spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """An engine in a worker process that follows the recipe, not yet started."""
    if recipe.empty is not None:
        recipe = replace(recipe, empty=InProcessServer.reset)
    return InProcessEngine(spec, ProcessHost(recipe, spec, surroundings), served_name(spec), surroundings)
