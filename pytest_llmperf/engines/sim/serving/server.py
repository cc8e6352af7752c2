"""The routes of the simulated engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from pytest_llmperf.clock import timestamp
from pytest_llmperf.engines.sim.blocks import Ids
from pytest_llmperf.engines.sim.engine import fleet_of
from pytest_llmperf.engines.sim.noise import Noise
from pytest_llmperf.engines.sim.plan import Plan
from pytest_llmperf.engines.sim.serving.answers import Answer
from pytest_llmperf.engines.sim.serving.exposition import CONTENT_TYPE, Exposition
from pytest_llmperf.engines.sim.serving.http import Connection, Reply, Request, error_body
from pytest_llmperf.engines.sim.serving.live import Live, Running
from pytest_llmperf.engines.sim.serving.orders import (
    Order,
    RefusalError,
    check_model,
    conversation,
    parse_object,
    token_list,
)
from pytest_llmperf.engines.sim.serving.text import ids_of, text_of
from pytest_llmperf.engines.spec import EngineSpec

OWNER = "pytest-llmperf (simulated)"
_BACKLOG = 4096

Route = Callable[[Request, Reply], None]


class SimServer:
    """One simulated engine behind a listening socket, within the loop that starts it."""

    def __init__(self, spec: EngineSpec, plan: Plan, version: str) -> None:
        """`plan`: of `spec`. `version`: what `/version` says."""
        self.model = spec.model or plan.deployment.model.name
        self._spec = spec
        self._plan = plan
        self._version = version
        self._created_s = int(timestamp().timestamp())
        self._live = Live(
            fleet_of(plan),
            lambda: Noise(spec.noise_seed or 0, spec.run_noise or 0.0, spec.request_noise or 0.0),
            delays=bool(spec.request_noise),
        )
        self._exposition = Exposition(self._live.fleet, plan, self._live.latencies, spec)
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._answers = 0
        self._routes: dict[str, tuple[str, Route]] = {
            "/v1/completions": ("POST", lambda request, reply: self._generate(request, reply, chat=False)),
            "/v1/chat/completions": ("POST", lambda request, reply: self._generate(request, reply, chat=True)),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/version": ("GET", self._say_version),
            "/metrics": ("GET", self._metrics),
            "/reset_prefix_cache": ("POST", self._reset_prefix_cache),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
        }

    async def start(self, host: str, port: int) -> str:
        """Listen there, on any free port for 0; returns the base URL. Raises `OSError`."""
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._handle, self._connections), host, port, backlog=_BACKLOG
        )
        bound_host, bound_port, *_ = self._listener.sockets[0].getsockname()
        return f"http://[{bound_host}]:{bound_port}" if ":" in bound_host else f"http://{bound_host}:{bound_port}"

    async def stop(self) -> None:
        """Close everything, whatever is under way."""
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self._connections):
            connection.abort()
        await asyncio.sleep(0)  # the connections' ends are told

    def _handle(self, request: Request, reply: Reply) -> None:
        route = self._routes.get(request.path)
        if route is None:
            known = ", ".join(sorted(self._routes))
            message = f"there is nothing at {request.path}; this server has {known}"
            reply.respond(error_body(404, message), 404)
        elif route[0] != request.method:
            message = f"{request.path} takes {route[0]}, not {request.method}"
            reply.respond(error_body(405, message), 405, headers={"Allow": route[0]})
        else:
            try:
                route[1](request, reply)
            except RefusalError as error:
                reply.respond(error.body, error.status)

    def _generate(self, request: Request, reply: Reply, *, chat: bool) -> None:
        order = Order.parse(request.body, chat=chat, model=self.model, max_model_len=self._plan.max_model_len)
        self._answers += 1
        answer = Answer(order, number=self._answers, model=self.model, created_s=int(timestamp().timestamp()))
        tell = _streamed(answer, reply) if order.stream else _collected(answer, reply)
        running = self._live.submit(order.prompt, order.output_tokens, request.arrived_ns, tell)
        reply.on_gone = lambda: self._live.cancel(running)

    def _models(self, request: Request, reply: Reply) -> None:
        del request
        model = {
            "id": self.model,
            "object": "model",
            "created": self._created_s,
            "owned_by": OWNER,
            "root": self.model,
            "parent": None,
            "max_model_len": self._plan.max_model_len,
        }
        _say(reply, {"object": "list", "data": [model]})

    def _health(self, request: Request, reply: Reply) -> None:
        del request
        reply.respond(b"")

    def _say_version(self, request: Request, reply: Reply) -> None:
        del request
        _say(reply, {"version": self._version, "simulated": True})

    def _metrics(self, request: Request, reply: Reply) -> None:
        del request
        reply.respond(self._exposition.text(), content_type=CONTENT_TYPE)

    def _reset_prefix_cache(self, request: Request, reply: Reply) -> None:
        """Both tiers; as with vLLM the status is 200 also where it is refused, because requests are running."""
        del request
        _say(reply, {"success": not self._live.active and self._live.fleet.reset_cache()})

    def _tokenize(self, request: Request, reply: Reply) -> None:
        fields = parse_object(request.body)
        check_model(fields, self.model)
        prompt = fields.get("prompt")
        if "messages" in fields:
            tokens = conversation(fields).tolist()
        elif isinstance(prompt, str):
            tokens = ids_of(prompt).tolist()
        else:
            raise RefusalError(400, "expected a text as prompt, or messages")
        _say(reply, {"count": len(tokens), "max_model_len": self._plan.max_model_len, "tokens": tokens})

    def _detokenize(self, request: Request, reply: Reply) -> None:
        fields = parse_object(request.body)
        check_model(fields, self.model)
        tokens = fields.get("tokens")
        if not isinstance(tokens, list):
            raise RefusalError(400, "tokens: expected a list of token ids")
        _say(reply, {"prompt": text_of(token_list(tokens, "tokens").tolist())})


def _streamed(answer: Answer, reply: Reply) -> Callable[[Running, Ids], None]:
    def tell(running: Running, ids: Ids) -> None:
        reply.stream(answer.events(ids, running.sequence.cached), last=running.is_over())

    return tell


def _collected(answer: Answer, reply: Reply) -> Callable[[Running, Ids], None]:
    def tell(running: Running, ids: Ids) -> None:
        del ids
        if running.is_over():
            assert running.ids is not None
            reply.respond(answer.whole(running.ids, running.sequence.cached))

    return tell


def _say(reply: Reply, content: Mapping[str, Any]) -> None:
    reply.respond(orjson.dumps(content))
