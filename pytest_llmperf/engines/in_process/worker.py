"""An engine and the sender of its requests in one process. Run as a script, by the Python that has the engine.

    python worker.py ENGINE PORT ARGUMENTS...

ENGINE is a key of `ENGINES`; ARGUMENTS are the engine's own. It needs nothing but that engine: neither this
package nor what this package depends on. Whoever started it says over loopback what is to be sent, and gets times,
tokens and counts of an answer once it has ended; no message passes between the send and the last token.

All times are readings of this machine's monotonic clock, taken here, in the event loop that the engine's own front
end runs in. `sent_ns`: just before the request is handed to the engine. An arrival: when the loop hands the tokens to
us, with what that takes after the engine core has made them: the message from its process, the front end's
bookkeeping, and waiting for the loop's turn. Left out are HTTP, JSON and making text of tokens.

A message is a JSON object and bytes, each as long as the two numbers before it say.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import signal
import socket
import struct
import sys
import time
import traceback
from array import array
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PREFIX = struct.Struct("<II")
BEAT_S = 1.0
"""How often a sign of life is sent while requests are under way."""
_WATCH_S = 0.1
_NS_PER_S = 1_000_000_000
_LONGEST_S = 1e9
"""Stands for no limit."""


def message(header: dict[str, Any], body: bytes = b"") -> bytes:
    """One message as it goes over the connection."""
    text = json.dumps(header).encode()
    return PREFIX.pack(len(text), len(body)) + text + body


@dataclass
class Sending:
    """One request under way. Times in nanoseconds."""

    tag: int
    silence_ns: int
    exchange_ns: int
    sent_ns: int = field(default_factory=time.monotonic_ns)
    at_ns: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("i"))
    token_ids: array[int] = field(default_factory=lambda: array("i"))
    task: asyncio.Task[None] | None = None
    failure: tuple[str, str] | None = None

    def overdue(self, now_ns: int) -> str | None:
        """Why it has to be given up at this moment, in words; None: it need not."""
        heard_ns = self.at_ns[-1] if self.at_ns else self.sent_ns
        if now_ns - heard_ns > self.silence_ns:
            return f"no token for {self.silence_ns / _NS_PER_S:g} s"
        if now_ns - self.sent_ns > self.exchange_ns:
            return f"not finished within {self.exchange_ns / _NS_PER_S:g} s"
        return None

    def answer(self, told: dict[str, Any]) -> bytes:
        """What is sent back once it has ended; `told`: what the engine says of it."""
        header = {
            "is": "answer",
            "tag": self.tag,
            "sent_ns": self.sent_ns,
            "end_ns": time.monotonic_ns(),
            "arrivals": len(self.at_ns),
            "failure": self.failure,
            **told,
        }
        return message(header, self.at_ns.tobytes() + self.tokens.tobytes() + self.token_ids.tobytes())


class Connection:
    """Whoever wants something of the engine, over one connection; when it closes, what runs for it is cancelled."""

    def __init__(self, engine: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._sendings: dict[int, Sending] = {}
        self._requests: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Answer until the other side goes."""
        watch = asyncio.create_task(self._watch())
        try:
            while True:
                header_size, body_size = PREFIX.unpack(await self._reader.readexactly(PREFIX.size))
                header = json.loads(await self._reader.readexactly(header_size))
                body = await self._reader.readexactly(body_size)
                if header["do"] == "generate":
                    self._send(header, body)
                else:
                    self._go(self._tell(header))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            watch.cancel()
            for task in self._requests:
                task.cancel()
            self._writer.close()

    def _go(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return task

    def _send(self, header: dict[str, Any], body: bytes) -> None:
        prompt: str | list[int] = header["text"] if "text" in header else array("i", body).tolist()
        silence_ns, exchange_ns = (_ns(min(header[name], _LONGEST_S)) for name in ("silence_s", "exchange_s"))
        sending = Sending(header["tag"], silence_ns, exchange_ns)
        self._sendings[sending.tag] = sending
        sending.task = self._go(self._generate(sending, prompt, header["output_tokens"]))

    async def _generate(self, sending: Sending, prompt: str | list[int], output_tokens: int) -> None:
        now_ns, output = time.monotonic_ns, None
        told: dict[str, Any] = {}
        try:
            pieces = self._engine.stream(prompt, output_tokens)
            sending.sent_ns = now_ns()
            async for output in pieces:
                at_ns = now_ns()
                ids = self._engine.new_ids(output)
                if ids:
                    sending.at_ns.append(at_ns)
                    sending.tokens.append(len(ids))
                    sending.token_ids.extend(ids)
            told = {} if output is None else self._engine.told(output)
        except asyncio.CancelledError:
            if sending.failure is None:  # nobody is there any more who would want to know
                raise
        except Exception as error:  # noqa: BLE001 - whatever the engine raises is this request's failure
            sending.failure = ("engine_error", f"{type(error).__name__}: {error}"[:300])
        self._sendings.pop(sending.tag, None)
        self._writer.write(sending.answer(told))

    async def _tell(self, header: dict[str, Any]) -> None:
        content = None
        try:
            content = await getattr(self, f"_{header['do']}")(header)
        except Exception:  # noqa: BLE001 - the log has it; who asked learns that there is nothing to be told
            traceback.print_exc()
        self._writer.write(message({"is": header["do"], "content": content}))

    async def _about(self, header: dict[str, Any]) -> Any:
        del header
        return self._engine.about()

    async def _metrics(self, header: dict[str, Any]) -> Any:
        del header
        return self._engine.metrics()

    async def _reset(self, header: dict[str, Any]) -> Any:
        del header
        return await self._engine.reset()

    async def _count(self, header: dict[str, Any]) -> Any:
        return self._engine.count(header["text"])

    async def _watch(self) -> None:
        """Give up what takes too long, and show that the loop lives."""
        told_ns = 0
        while True:
            await asyncio.sleep(_WATCH_S)
            now_ns = time.monotonic_ns()
            for sending in list(self._sendings.values()):
                late = sending.overdue(now_ns)
                if late is not None and sending.task is not None and sending.failure is None:
                    sending.failure = ("timeout", late)
                    sending.task.cancel()
            if self._sendings and now_ns - told_ns > BEAT_S * _NS_PER_S:
                self._writer.write(message({"is": "beat"}))
                told_ns = now_ns


class Vllm:
    """vLLM's `AsyncLLM`; its core is a child process of this one, as it is of vLLM's server."""

    def __init__(self, arguments: Sequence[str]) -> None:
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.sampling_params import RequestOutputKind
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        parser = AsyncEngineArgs.add_cli_args(_vllm_parser())
        given = AsyncEngineArgs.from_cli_args(parser.parse_args(list(arguments)))
        # Sizes that are not given depend on who asks: these are the server's, so that both measure the same engine.
        self._llm = AsyncLLM.from_engine_args(given, usage_context=UsageContext.OPENAI_API_SERVER)
        self._sampling = SamplingParams
        self._deltas = RequestOutputKind.DELTA
        self._sent = 0

    @property
    def is_dead(self) -> bool:
        return bool(self._llm.errored)

    def stream(self, prompt: str | list[int], output_tokens: int) -> AsyncIterator[Any]:
        sampling = self._sampling(
            temperature=0, max_tokens=output_tokens, ignore_eos=True, detokenize=False, output_kind=self._deltas
        )
        self._sent += 1
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": prompt}
        outputs: AsyncIterator[Any] = self._llm.generate(asked, sampling, str(self._sent))
        return outputs

    def new_ids(self, output: Any) -> Sequence[int]:
        ids: Sequence[int] = output.outputs[0].token_ids
        return ids

    def told(self, output: Any) -> dict[str, Any]:
        return {
            "prompt_tokens": len(output.prompt_token_ids),
            "cached_tokens": output.num_cached_tokens,
            "timings": _vllm_timings(output.metrics),
        }

    def about(self) -> dict[str, Any]:
        return {"max_model_len": self._llm.vllm_config.model_config.max_model_len}

    def metrics(self) -> str:
        from prometheus_client import generate_latest

        return generate_latest().decode()

    async def reset(self) -> bool:
        return bool(await self._llm.reset_prefix_cache(reset_connector=True))

    def count(self, text: str) -> int:
        return len(self._llm.renderer.get_tokenizer().encode(text))

    def close(self) -> None:
        self._llm.shutdown()


def _vllm_parser() -> Any:
    for home in ("vllm.utils.argparse_utils", "vllm.utils"):
        with contextlib.suppress(ImportError, AttributeError):
            return importlib.import_module(home).FlexibleArgumentParser()
    raise ImportError("vLLM's FlexibleArgumentParser is in none of its known places")


def _vllm_timings(stats: Any) -> dict[str, int] | None:
    """Nanoseconds; moments that the core has not told are 0 there."""
    if stats is None:
        return None
    spans = {
        "queue_ns": (stats.queued_ts, stats.scheduled_ts),
        "prefill_ns": (stats.scheduled_ts, stats.first_token_ts),
    }
    told = {name: _ns(end - start) for name, (start, end) in spans.items() if start > 0 and end > 0}
    return told | ({"ttft_ns": _ns(stats.first_token_latency)} if stats.first_token_latency > 0 else {})


class TensorrtLlm:
    """TensorRT-LLM's `LLM`. Its one argument is the JSON of `LLM`'s own, `kv_cache_config` among them."""

    def __init__(self, arguments: Sequence[str]) -> None:
        given = json.loads(arguments[0])
        engine_folder = given.pop("engine_folder")
        if engine_folder:
            from tensorrt_llm._tensorrt_engine import LLM
        else:
            from tensorrt_llm import LLM
        from tensorrt_llm import SamplingParams
        from tensorrt_llm.llmapi import KvCacheConfig

        cache = given.pop("kv_cache_config", None)
        self._llm = LLM(**given, **({"kv_cache_config": KvCacheConfig(**cache)} if cache else {}))
        self._sampling = SamplingParams
        self._max_seq_len = given.get("max_seq_len")
        self.is_dead = False

    async def stream(self, prompt: str | list[int], output_tokens: int) -> AsyncIterator[Any]:
        sampling = self._sampling(
            max_tokens=output_tokens, temperature=0.0, ignore_eos=True, detokenize=False, return_perf_metrics=True
        )
        output = self._llm.generate_async(prompt, sampling, streaming=True)
        try:
            async for step in output:
                yield step
        except BaseException:
            output.abort()
            raise

    def new_ids(self, output: Any) -> Sequence[int]:
        ids: Sequence[int] = output.outputs[0].token_ids_diff
        return ids

    def told(self, output: Any) -> dict[str, Any]:
        metrics = output.outputs[0].request_perf_metrics
        return {
            "prompt_tokens": len(output.prompt_token_ids),
            "cached_tokens": getattr(output, "cached_tokens", None),
            "timings": None if metrics is None else _tensorrt_llm_timings(metrics.timing_metrics),
        }

    def about(self) -> dict[str, Any]:
        return {"max_model_len": self._max_seq_len, "iterations": self._llm.get_stats(timeout=1)}

    def metrics(self) -> str | None:
        return None

    async def reset(self) -> bool:
        return False

    def count(self, text: str) -> int:
        return len(self._llm.tokenizer.encode(text))

    def close(self) -> None:
        self._llm.shutdown()


def _tensorrt_llm_timings(timing: Any) -> dict[str, int]:
    """Nanoseconds. Moments are `timedelta` on one clock, 0 where they have not come."""
    arrived, scheduled, first = (
        getattr(timing, name).total_seconds() for name in ("arrival_time", "first_scheduled_time", "first_token_time")
    )
    spans = {"queue_ns": (arrived, scheduled), "prefill_ns": (scheduled, first), "ttft_ns": (arrived, first)}
    return {name: _ns(end - start) for name, (start, end) in spans.items() if start > 0 and end > 0}


def _ns(seconds: float) -> int:
    return round(seconds * _NS_PER_S)


ENGINES: dict[str, Any] = {"vllm": Vllm, "tensorrt_llm": TensorrtLlm}


async def _run(kind: str, listener: socket.socket, arguments: Sequence[str]) -> int:
    ended = asyncio.Event()
    engine = ENGINES[kind](arguments)
    # As vLLM's server does: what the start has left behind is not walked by the collector again.
    gc.collect()
    gc.freeze()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await Connection(engine, reader, writer).serve()

    server = await asyncio.start_server(serve, sock=listener, backlog=4096)
    sys.stderr.write("ready\n")
    while not ended.is_set() and not engine.is_dead:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), _WATCH_S)
    server.close()
    died = bool(engine.is_dead)
    if died:
        sys.stderr.write("the engine has died; its own lines above say why\n")
    else:
        sys.stderr.write("ends, as a signal asks it to\n")
    engine.close()
    return 1 if died else 0


def main() -> int:
    """Load the engine and serve it until SIGTERM, or until the engine dies (exit code 1)."""
    kind, port, *arguments = sys.argv[1:]
    here = str(Path(__file__).parent)
    sys.path[:] = [folder for folder in sys.path if folder != here]  # its files are no modules of the engine's
    # Taken before the engine is loaded, so that a port in use is told at once; it refuses until all is ready.
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(port)))
    with contextlib.suppress(ImportError):
        import uvloop  # what vLLM's server runs on

        return int(uvloop.run(_run(kind, listener, arguments)))
    return asyncio.run(_run(kind, listener, arguments))


if __name__ == "__main__":
    sys.exit(main())
