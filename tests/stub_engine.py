"""Engines that need a GPU, played by a small server: their command lines, their routes, their metrics.

`installed` puts them where a Python finds them, so that the code that starts the real ones starts these. Prompts are
cached in blocks of 16 tokens until they are flushed; an answer takes no time, unless it is a long one. The environment
variable STUB_FAULT makes a start fail as real ones do, `once:FILE` for as long as there is no such file; STUB_UNCACHED
leaves the prefix cache off, whatever was asked for; STUB_HANG names a moment, such as `answer:3`, `prompt:5` or
`reset:2`, from which on the server makes a file `hanging` in its folder, and does nothing until there is a file `go`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

BLOCK = 16
CAPACITY = 4096
LONG = 200
"""Tokens from which on an answer takes its time."""
PAUSE_S = 0.002
"""Between two tokens of a long one."""

_SERVERS = {"vllm": "vllm/entrypoints/openai/api_server.py", "sglang": "sglang/launch_server.py"}
# What an engine's Python interface is imported from, and under which names.
_INTERFACES = {
    "vllm/__init__.py": "SamplingParams",
    "vllm/sampling_params.py": "RequestOutputKind",
    "vllm/engine/arg_utils.py": "AsyncEngineArgs",
    "vllm/usage/usage_lib.py": "UsageContext",
    "vllm/utils/argparse_utils.py": "FlexibleArgumentParser",
    "vllm/v1/engine/async_llm.py": "AsyncLLM",
    "tensorrt_llm/__init__.py": "LLM, SamplingParams",
    "tensorrt_llm/_tensorrt_engine.py": "BuiltLLM as LLM",
    "tensorrt_llm/llmapi.py": "KvCacheConfig",
}


def installed(folder: Path) -> str:
    """A Python that has all of them, beside it `trtllm-serve` and a router; returns its path."""
    for kind, module in _SERVERS.items():
        path = folder / "site" / module
        path.parent.mkdir(parents=True)
        path.write_text(f"import stub_engine\nif __name__ == '__main__':\n    stub_engine.main({kind!r})\n")
    for module, names in _INTERFACES.items():
        path = folder / "site" / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"from stub_llm import {names}\n")
    (folder / "bin").mkdir()
    search = f"{folder / 'site'}:{Path(__file__).parent}"
    serve = "import stub_engine; stub_engine.main('tensorrt_llm')"
    route = "import stub_engine; stub_engine.route()"
    programs = {"python": '"$@"', "trtllm-serve": f'-c "{serve}" "$@"', "vllm-router": f'-c "{route}" "$@"'}
    for name, words in programs.items():
        program = folder / "bin" / name
        program.write_text(f"#!/bin/sh\nPYTHONPATH={search} exec {sys.executable} {words}\n")
        program.chmod(0o755)
    return str(folder / "bin" / "python")


def main(kind: str) -> None:
    """Serve until a signal comes. Unknown options end it, as they do the real ones."""
    fault()
    sys.stderr.write(f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    sys.stderr.write(f"processors {sorted(os.sched_getaffinity(0))}\n")
    stub = {"vllm": Vllm, "sglang": Sglang, "tensorrt_llm": TensorrtLlm}[kind](sys.argv[1:])
    Handler.stub = stub
    ThreadingHTTPServer((stub.options.host, stub.options.port), Handler).serve_forever()


def fault() -> None:
    """Go wrong as the environment says."""
    match os.environ.get("STUB_FAULT"):
        case "memory":
            raise MemoryError("CUDA out of memory. Tried to allocate 140.00 GiB")
        case "hang":
            _tell()
            hang("start", 1)
            time.sleep(60)
        case "tell":
            _tell()
            sys.exit(3)
        case str(words) if words.startswith("once:"):
            marker = Path(words.removeprefix("once:"))
            if not marker.exists():
                marker.touch()
                raise ConnectionError("the neighbour took the port")


def _tell() -> None:
    """Say what one was started with, as engines do that log their configuration."""
    for name in os.environ.get("STUB_TELLS", "").split():
        sys.stderr.write(f"{name}={os.environ.get(name)}\n")
    sys.stderr.flush()


def hang(what: str, number: int) -> None:
    """Stand still with something in hand, as an engine does that waits for a GPU, if this is the moment or after it."""
    moment, _, since = os.environ.get("STUB_HANG", "").partition(":")
    if moment == what and number >= int(since):
        Path("hanging").touch()
        while not Path("go").exists():
            time.sleep(0.02)


def route() -> None:
    """A router that takes one replica after the other."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--worker-urls", nargs="+", required=True)
    parser.add_argument("--policy", choices=["round_robin"], required=True)
    for flag in ("--port", "--prometheus-port"):
        parser.add_argument(flag, type=int, required=True)
    for flag in ("--host", "--prometheus-host"):
        parser.add_argument(flag, required=True)
    for flag in ("--disable-retries", "--disable-circuit-breaker"):
        parser.add_argument(flag, action="store_true", required=True)
    options = parser.parse_args()
    sys.stderr.write(f"routing to {options.worker_urls}\n")
    Forwarder.count = len(options.worker_urls)
    Forwarder.workers = itertools.cycle(options.worker_urls)
    ThreadingHTTPServer((options.host, options.port), Forwarder).serve_forever()


class Stub:
    """What they have in common: a prefix cache, counted."""

    looked_up = 0
    ids_word = ("return_token_ids", True)
    reports_cached = True
    metrics: ClassVar[dict] = {}
    answers = resets = 0
    """How many there have been."""
    names: tuple[str, ...] = ()
    """By which the model can be asked for; it answers by the first one."""

    def __init__(self, arguments: list[str]) -> None:
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("--host", required=True)
        parser.add_argument("--port", type=int, required=True)
        self.add_options(parser)
        self.options = parser.parse_args(arguments)
        self.cache: set[tuple] = set()
        self.prompt = self.cached = self.running = 0
        self.setup()

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        raise NotImplementedError

    def setup(self) -> None:
        self.model = {"id": self.options.served_model_name, "max_model_len": 2048}
        self.caches = True

    def get(self, path: str) -> object:
        """The answer to a request without a body: JSON, text, or None for a route that it does not have."""
        models = [{**self.model, "id": name} for name in self.names or [self.model["id"]]]
        return {"/health": "", "/v1/models": {"data": models}}.get(path)

    def refuses(self, body: dict) -> str | None:
        del body
        return None

    def empty(self) -> bool:
        """Refused while answers are under way, as the real ones do."""
        if self.running:
            return False
        self.resets += 1
        hang("reset", self.resets)
        self.cache.clear()
        return True

    def look_up(self, ids: list) -> int:
        """How many of the prompt's tokens are cached; afterwards all whole blocks are."""
        blocks = [tuple(ids[: end + BLOCK]) for end in range(0, len(ids) - BLOCK + 1, BLOCK)]
        self.looked_up += 1
        hang("prompt", self.looked_up)
        hits = BLOCK * sum(block in self.cache for block in blocks) if self.caches else 0
        hits = min(hits, (len(ids) - 1) // BLOCK * BLOCK)  # the last token is always computed
        self.cache.update(blocks)
        self.prompt, self.cached = self.prompt + len(ids), self.cached + hits
        return hits

    def events(self, body: dict):
        """The answer, one token an event."""
        self.answers += 1
        if self.answers > int(os.environ.get("STUB_ANSWERS", sys.maxsize)):
            sys.stderr.write("the stub has run out of answers\n")
            os._exit(9)
        hang("answer", self.answers)
        prompt = body["prompt"].split() if isinstance(body["prompt"], str) else body["prompt"]
        hits = self.look_up(prompt)
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": None}
        word, value = self.ids_word
        named = {"model": self.names[0] if self.names else self.model["id"]}
        for number in range(1, body["max_tokens"] + 1):
            ids = {"token_ids": [1000 + number]} if body.get(word) is value else {}
            choice = {"index": 0, "text": "" if "detokenize" in body else "x", **ids}
            yield {**named, "choices": [choice], "usage": {**usage, "completion_tokens": number}}
        if self.reports_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": hits}
        yield {**named, "choices": [], "usage": {**usage, "completion_tokens": body["max_tokens"]}, **self.metrics}


class Vllm(Stub):
    def add_options(self, parser):
        parser.add_argument("--served-model-name", nargs="+")
        parser.add_argument("--kv-transfer-config", type=json.loads)
        parser.add_argument("--enable-chunked-prefill", action=argparse.BooleanOptionalAction)
        for flag in ("--model", "--dtype", "--quantization", "--kv-cache-dtype"):
            parser.add_argument(flag)
        for flag in ("--kv-offloading-size", "--gpu-memory-utilization"):
            parser.add_argument(flag, type=float)
        parser.add_argument("--max-model-len", type=int)
        parser.add_argument("--tensor-parallel-size", type=int)
        parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
        for flag in ("--enable-prompt-tokens-details", "--enable-per-request-metrics"):
            parser.add_argument(flag, action="store_true")

    def setup(self):
        super().setup()
        self.names = tuple(self.options.served_model_name)
        self.model["id"] = self.names[0]
        self.caches = self.options.enable_prefix_caching and "STUB_UNCACHED" not in os.environ
        if self.options.enable_per_request_metrics:
            self.metrics = {"metrics": {"time_to_first_token_ms": 1.5, "queue_time_ms": 0.25, "mean_itl_ms": None}}

    def get(self, path):
        if path == "/reset_prefix_cache?reset_external=true":
            return {"success": self.empty()}
        if path == "/metrics":
            return (
                f"vllm:prefix_cache_queries_total {self.prompt}\nvllm:prefix_cache_hits_total {self.cached}\n"
                f'vllm:cache_config_info{{block_size="{BLOCK}",num_gpu_blocks="{CAPACITY // BLOCK}",'
                f'enable_prefix_caching="{self.caches}"}} 1.0\n'
            )
        return {"version": "0.0-stub"} if path == "/version" else super().get(path)


class Sglang(Stub):
    def add_options(self, parser):
        for flag in ("--model-path", "--served-model-name", "--quantization"):
            parser.add_argument(flag)
        parser.add_argument("--dtype", choices=["auto", "half", "float16", "bfloat16", "float", "float32"])
        parser.add_argument("--kv-cache-dtype", choices=["auto", "fp8_e5m2", "fp8_e4m3", "bf16", "bfloat16"])
        for flag in ("--context-length", "--tensor-parallel-size", "--hicache-size"):
            parser.add_argument(flag, type=int)
        parser.add_argument("--mem-fraction-static", type=float)
        for flag in (
            "--enable-metrics",
            "--enable-cache-report",
            "--disable-radix-cache",
            "--enable-hierarchical-cache",
        ):
            parser.add_argument(flag, action="store_true")

    def setup(self):
        super().setup()
        self.caches = not self.options.disable_radix_cache
        self.reports_cached = self.options.enable_cache_report

    def get(self, path):
        if path == "/flush_cache":
            return "Cache flushed.\n" if self.empty() else None
        if path == "/server_info":
            return {
                "max_total_num_tokens": CAPACITY,
                "page_size": BLOCK,
                "disable_radix_cache": self.options.disable_radix_cache,
                "version": "0.0-stub",
            }
        if path == "/metrics" and self.options.enable_metrics:
            hits = f'sglang:cached_tokens_total{{cache_source="device"}} {self.cached}\n' if self.cached else ""
            return f"sglang:prompt_tokens_total {self.prompt}\n{hits}"
        return super().get(path)


class TensorrtLlm(Stub):
    ids_word = ("detokenize", False)

    def add_options(self, parser):
        parser.add_argument("model")
        for flag in ("--max_seq_len", "--tp_size"):
            parser.add_argument(flag, type=int)
        for flag in ("--backend", "--tokenizer"):
            parser.add_argument(flag)
        parser.add_argument("--extra_llm_api_options", type=Path, required=True)

    def setup(self):
        self.extra = json.loads(self.options.extra_llm_api_options.read_text())
        self.model = {"id": Path(self.options.model).name}
        self.caches = self.extra.get("kv_cache_config", {}).get("enable_block_reuse", True)
        self.timed = []

    def events(self, body):
        yield from super().events(body)
        if self.extra.get("perf_metrics_max_requests"):
            moments = {"arrival_time": 5.0, "first_scheduled_time": 5.00025, "first_token_time": 5.00175}
            self.timed.append({"request_id": 1, "perf_metrics": {"timing_metrics": moments, "first_iter": 1}})

    def refuses(self, body):
        return "extra_forbidden: return_token_ids" if "return_token_ids" in body else None

    def get(self, path):
        if path == "/metrics" and self.extra["enable_iter_perf_stats"]:
            return [{"iter": 1, "kvCacheStats": {"maxNumBlocks": CAPACITY // BLOCK, "tokensPerBlock": BLOCK}}]
        if path == "/perf_metrics":
            told, self.timed = self.timed, []
            return told
        if path == "/prometheus/metrics" and self.extra["return_perf_metrics"]:
            return (
                f"trtllm_prompt_tokens_total {self.prompt}\ntrtllm_prompt_cached_tokens_total {self.cached}\n"
                "trtllm_kv_cache_utilization 0.5\n"
            )
        return {"version": "0.0-stub"} if path == "/version" else super().get(path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stub: Stub

    def do_GET(self) -> None:
        self.plain(self.stub.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.path != "/v1/completions":
            self.plain(self.stub.get(self.path))
        elif refusal := self.stub.refuses(body):
            self.plain({"error": {"message": refusal}}, status=400)
        else:
            events = [f"data: {json.dumps(event)}\n\n" for event in self.stub.events(body)]
            if body["max_tokens"] < LONG:
                self.send("".join([*events, "data: [DONE]\n\n"]), "text/event-stream")
            else:
                self.trickle(events)

    def trickle(self, events: list[str]) -> None:
        """One event after another, until the client goes."""
        self.stub.running += 1
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for event in events:
                self.wfile.write(event.encode())
                time.sleep(PAUSE_S)
        except OSError:
            pass
        finally:
            self.stub.running -= 1
            self.close_connection = True

    def plain(self, content: object, status: int = 200) -> None:
        if content is None:
            status, content = 404, {"detail": "Not Found"}
        self.send(content if isinstance(content, str) else json.dumps(content), "text/plain", status)

    def send(self, text: str, content_type: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Tests print nothing."""


class Forwarder(Handler):
    workers: Iterator[str]
    count: int
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Ready when asked for the second time, as a router that looks at its replicas after it has started."""
        self.asked.append(self.path)
        ready = 0 if self.asked.count("/readiness") < 2 else self.count
        self.plain({"healthy_workers": ready} if self.path == "/readiness" else None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            with urllib.request.urlopen(urllib.request.Request(next(self.workers) + self.path, body)) as answer:
                self.send(answer.read().decode(), answer.headers["Content-Type"])
        except urllib.error.HTTPError as error:
            self.send(error.read().decode(), "application/json", error.code)
        except OSError as error:
            self.plain({"error": {"message": str(error)}}, status=502)
