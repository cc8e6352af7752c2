"""Result files of other tools, small and as the tools write them, with one thing changed at a time."""

from __future__ import annotations

import copy
import json
from pathlib import Path

DATA = Path(__file__).parent / "foreign" / "data"
"""Files that the tools wrote of a server with TTFT 50 ms and a token each 5 ms, cut down."""


def vllm(**changes):
    """What `vllm bench serve --save-result` writes."""
    return {
        "date": "20261121-143544", "endpoint_type": "openai", "backend": "openai", "label": None, "model_id": "m",
        "tokenizer_id": "m", "num_prompts": 4, "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 2,
        "duration": 2.0, "completed": 4, "failed": 0, "total_input_tokens": 400, "total_output_tokens": 40,
        "request_throughput": 2.0, "request_goodput": None, "output_throughput": 20.0, "total_token_throughput": 220.0,
        "max_output_tokens_per_s": 30.0, "max_concurrent_requests": 2,
        "mean_ttft_ms": 110.0, "median_ttft_ms": 100.0, "std_ttft_ms": 1.0, "p99_ttft_ms": 190.0,
        "mean_tpot_ms": 11.0, "median_tpot_ms": 10.0, "std_tpot_ms": 1.0, "p99_tpot_ms": 19.0,
        "mean_itl_ms": 12.0, "median_itl_ms": 9.0, "std_itl_ms": 1.0, "p99_itl_ms": 30.0,
        **changes,
    }  # fmt: skip


def vllm_details(lengths=(3, 3, 3, 0), gaps=(0.01, 0.01), **changes):
    """What --save-detailed adds; a request of length 0 has failed."""
    ok = [length > 0 for length in lengths]
    return vllm(**{
        "completed": sum(ok),
        "failed": len(ok) - sum(ok),
        "total_output_tokens": sum(lengths),
        "input_lens": [100] * len(ok),
        "output_lens": list(lengths),
        "ttfts": [0.1 if one else 0.0 for one in ok],
        "itls": [list(gaps) if one else [] for one in ok],
        "latencies": [0.1 + sum(gaps) if one else 0.0 for one in ok],
        "errors": ["" if one else "refused" for one in ok],
        "queue_times": [0.0] * len(ok),
        **changes,
    })  # fmt: skip


def distribution(unit, mean, **more):
    """A metric of AIPerf."""
    spread = {f"p{p}": mean * (1 + p / 1000) for p in (1, 5, 10, 25, 50, 75, 90, 95, 99)}
    return {"unit": unit, "avg": mean, **spread, "min": mean, "max": mean * 2, "std": 1.0, **more}


def aiperf(**changes):
    """AIPerf's profile_export_aiperf.json: 4 answers of 10 tokens."""
    return {
        "schema_version": "1.4",
        "aiperf_version": "0.13.0",
        "benchmark_id": "b1",
        "input_config": {
            "models": {"items": [{"name": "m"}]},
            "endpoint": {
                "urls": ["http://127.0.0.1:1"], "type": "completions", "streaming": True,
                "use_server_token_count": True, "api_key": "sk-of-nobody",
            },
            "datasets": [{"name": "main", "type": "synthetic", "prompts": {"isl": {"mean": 100.0}}}],
            "phases": [{"kind": "profiling", "type": "concurrency", "requests": 4, "concurrency": 2}],
            "artifacts": {"dir": "/home/somebody/artifacts"},
            "tokenizer": {"name": "/home/somebody/m"},
        },
        "run_info": {"benchmark_id": "b1", "cli_command": "aiperf profile --api-key sk-of-nobody"},
        "was_cancelled": False,
        "is_complete": True,
        "error_summary": [],
        "end_time": "2026-11-21T14:36:20.967474",
        "request_throughput": {"unit": "requests/sec", "avg": 2.0},
        "request_count": {"unit": "requests", "avg": 4.0},
        "completed_request_count": {"unit": "requests", "avg": 4.0},
        "time_to_first_token": distribution("ms", 100.0, count=4),
        "inter_token_latency": distribution("ms", 10.0, count=4),
        "inter_chunk_latency": distribution("ms", 9.0, count=36),
        "request_latency": distribution("ms", 190.0, count=4),
        "output_token_throughput": {"unit": "tokens/sec", "avg": 20.0},
        "total_token_throughput": {"unit": "tokens/sec", "avg": 220.0},
        "benchmark_duration": {"unit": "sec", "avg": 2.0},
        "total_osl": {"unit": "tokens", "avg": 40.0},
        "credit_to_start_latency": distribution("ms", 1.0, count=4),
        **changes,
    }  # fmt: skip


def aiperf_request(turn=0, ttft=100.0, phase="profiling", error=None):
    """A line of AIPerf's profile_export.jsonl: 10 tokens, 8 of them in the first chunk, the rest within 90 ms."""
    return {
        "metadata": {"session_num": 0, "turn_index": turn, "benchmark_phase": phase, "was_cancelled": False},
        "metrics": {}
        if error
        else {
            "time_to_first_token": {"value": ttft, "unit": "ms"},
            "request_latency": {"value": ttft + 90.0, "unit": "ms"},
            "inter_token_latency": {"value": 45.0, "unit": "ms"},
            "output_sequence_length": {"value": 10, "unit": "tokens"},
        },
        **({"error": {"message": error}} if error else {}),
    }


def summary(mean, std_dev=0.0, **more):
    """A distribution of GuideLLM over the answered requests."""
    shares = ("p001", "p01", "p05", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p999")
    return {"successful": {
        "mean": mean, "median": mean, "std_dev": std_dev, "count": 4, "total_sum": 4 * mean,
        "percentiles": dict.fromkeys(shares, mean), **more,
    }}  # fmt: skip


def guidellm_request(start=1795271822.0, ttft_s=0.1, span_s=0.09, tokens=10, late_s=0.5):
    """One request of GuideLLM; its response ends a while after its last token."""
    return {
        "output_tokens": tokens,
        "info": {
            "status": "completed",
            "timings": {
                "targeted_start": start - late_s,
                "request_start": start,
                "first_token_iteration": start + ttft_s,
                "last_token_iteration": start + ttft_s + span_s,
                "request_end": start + ttft_s + span_s + 1.0,
            },
        },
    }


def guidellm_benchmark(streams=2, requests=(), **metrics):
    """One benchmark of GuideLLM: 4 answers of 10 tokens."""
    return {
        "config": {"strategy": {"type_": "concurrent", "worker_count": streams, "streams": streams}},
        "metrics": {
            "request_totals": {"successful": 4, "errored": 0, "incomplete": 0, "total": 4},
            "requests_per_second": summary(2.0),
            "request_latency": summary(1.19),
            "output_token_count": summary(10.0),
            "time_to_first_token_ms": summary(101.0),
            "time_per_output_token_ms": summary(19.0),
            "inter_token_latency_ms": summary(11.0),
            "output_tokens_per_second": summary(20.0, median=999.0),
            "tokens_per_second": summary(220.0),
            **metrics,
        },
        "requests": {"successful": list(requests), "errored": [], "incomplete": []},
        "warnings": [],
        "end_time": 1795271849.2,
        "duration": 2.0,
        "warmup_duration": 0.0,
    }


def guidellm(*benchmarks, **changes):
    """GuideLLM's benchmarks.json."""
    return {
        "metadata": {"version": 2, "guidellm_version": "0.8.1", "platform": "Linux"},
        "config": {
            "spec": {
                "backend": {
                    "kind": "openai_http", "target": "http://127.0.0.1:1", "model": "m",
                    "request_format": "/v1/completions", "api_key": "sk-of-nobody",
                },
                "data": [{"kind": "synthetic_text", "prompt_tokens": 100, "output_tokens": 10}],
                "constraints": [{"kind": "max_requests", "count": 4}],
            }
        },
        "benchmarks": list(benchmarks or (guidellm_benchmark(),)),
        "conclusions": [],
        **changes,
    }  # fmt: skip


def sglang(**changes):
    """A line of SGLang's bench_serving."""
    return {
        "tag": None, "backend": "sglang-oai", "dataset_name": "random", "request_rate": float("inf"),
        "max_concurrency": 2, "sharegpt_output_len": None, "random_input_len": 100, "random_output_len": 10,
        "random_range_ratio": 1.0, "server_info": None, "duration": 2.0, "completed": 4, "total_input_tokens": 400,
        "total_output_tokens": 40, "total_output_tokens_retokenized": 40, "request_throughput": 2.0,
        "input_throughput": 200.0, "output_throughput": 20.0, "total_throughput": 220.0,
        "mean_e2e_latency_ms": 191.0, "median_e2e_latency_ms": 191.0, "p99_e2e_latency_ms": 200.0,
        "mean_ttft_ms": 110.0, "median_ttft_ms": 100.0, "p90_ttft_ms": 150.0, "p99_ttft_ms": 190.0,
        "mean_tpot_ms": 11.0, "median_tpot_ms": 10.5, "p99_tpot_ms": 19.0,
        "mean_itl_ms": 12.0, "median_itl_ms": 9.0, "p99_itl_ms": 30.0, "concurrency": 1.9, "accept_length": None,
        **changes,
    }  # fmt: skip


FILES = {"vllm": vllm, "aiperf": aiperf, "guidellm": guidellm, "sglang": sglang}
"""Tool to a good file of it."""


def changed(document, path, value):
    """The document with one field, named by the keys on the way to it, replaced."""
    made = copy.deepcopy(document)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


def without(document, *names):
    """The document without some of its fields."""
    return {name: value for name, value in document.items() if name not in names}


def places(value, at=()):
    """The ways to all fields of a document."""
    if at:
        yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*at, key))


def written(folder, *documents, name="result.json"):
    """A file with a document, or with several as JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("\n".join(json.dumps(document) for document in documents), encoding="utf-8")
    return path
