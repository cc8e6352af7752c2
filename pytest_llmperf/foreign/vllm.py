"""`vllm bench serve`, also in Rust: one JSON object; times in milliseconds in summaries, in seconds in lists.

Facts read in `vllm/benchmarks/serve.py` of 0.32: its percentiles are ours (linear interpolation over all
requests); lists hold failed requests, too; the name of an unlimited rate is the text "inf"; it says nothing of
data set and lengths but their sums. Its ITL are gaps between chunks, which are those between tokens only if each
chunk holds one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pytest_llmperf.foreign.runs import (
    MS,
    ForeignRun,
    failures,
    known,
    of_requests,
    one_length,
    require_answers,
    stated,
)
from pytest_llmperf.foreign.sending import sent
from pytest_llmperf.foreign.source import Fields, Source, plain

_SENT = ("request_rate", "burstiness", "max_concurrency", "ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")
_WORK = ("backend", "endpoint_type", "model_id", "num_prompts", *_SENT)
_OF_REQUESTS = (
    "input_lens", "output_lens", "start_times", "ttfts", "itls", "latencies", "queue_times", "generated_texts",
    "errors", "server_queue_times", "server_ttfts",
)  # fmt: skip
# What the tool itself writes at the top; other names come from --metadata and are the user's words.
_OWN = {
    *_WORK, *_OF_REQUESTS, "date", "label", "tokenizer_id", "duration", "completed", "failed", "total_input_tokens",
    "total_output_tokens",
    "request_throughput", "request_goodput", "output_throughput", "input_throughput", "total_token_throughput",
    "max_output_tokens_per_s", "max_concurrent_requests", "max_model_len", "rtfx", "steady_state", "rps_change_events",
}  # fmt: skip
_OWN_PATTERN = re.compile(r"(mean|median|std|p[\d.]+|probe|spec_decode|diffusion)_.*")

DEFINITIONS = {
    "ttft": "ttft_ms: from before the POST, connecting included, to the first event with choices",
    "tpot": "tpot_ms: (last - first token) / (output tokens - 1), of answers of two tokens and more",
    "itl": "itl_ms, where every chunk held one token",
    "e2e": "e2el_ms: from before the POST to the last chunk with tokens",
    "duration": "duration: around all requests, from the client's start of sending to its last answer",
    "request_throughput": "request_throughput: answered requests / duration",
    "output_throughput": "output_throughput: usage, or else tokens counted again from the text, / duration",
    "total_throughput": "total_token_throughput: tokens of prompts as made and of answers / duration",
}
# Only its files were read, not how it makes them.
DEFINITIONS_IN_RUST = {
    name: f"{text}; taken to mean in Rust what it means in Python" for name, text in DEFINITIONS.items()
}


@dataclass(frozen=True, slots=True)
class VllmBenchServe:
    """The client in Python, or the one in Rust, which writes the same fields and stamps otherwise."""

    name: str
    title: str
    rust: bool
    wrote: str = "the JSON of --save-result"

    def recognises(self, document: Mapping[str, Any]) -> bool:
        ours = {"endpoint_type", "num_prompts"} <= document.keys()
        return ours and ("input_throughput" in document) is self.rust

    def read(self, sources: Sequence[Source]) -> Iterable[ForeignRun]:
        for source in sources:
            for number, document in enumerate(source.objects):
                yield self._run(source, Fields(self.title, source.place(number), document))

    def _run(self, source: Source, fields: Fields) -> ForeignRun:
        answered, failed = fields.required_count("completed"), fields.count("failed")
        require_answers(fields, "completed", answered)
        tokens = fields.required_count("total_output_tokens")
        way = sent(
            fields,
            rate=fields.values.get("request_rate"),
            shape=fields.amount("burstiness"),
            concurrency=fields.count("max_concurrency"),
        )
        values = {
            **_latencies(fields),
            **known(
                duration=fields.required("duration"),
                request_throughput=fields.amount("request_throughput"),
                output_throughput=fields.amount("output_throughput"),
                total_throughput=fields.amount("total_token_throughput"),
            ),
        }
        gaps = stated("itl", lambda statistic: _summary(fields, "itl", statistic), MS)
        one_token_a_chunk = _one_token_a_chunk(fields)
        return ForeignRun(
            tool=self.name,
            file=source.name,
            configuration={
                **{name: plain(fields.values.get(name)) for name in _WORK},
                "total_input_tokens": _input_tokens(fields),
                "output_tokens_each": one_length(tokens, answered),
            },
            load=way.words if fields.values.get("ramp_up_strategy") is None else f"{way.words}, ramped up",
            open_load=way.is_open,
            model=fields.text("model_id"),
            engine_words=_words(fields),
            values={**values, **gaps} if one_token_a_chunk else values,
            definitions=DEFINITIONS_IN_RUST if self.rust else DEFINITIONS,
            answered=answered,
            failed=failed,
            output_tokens=tokens,
            measured_at=fields.text("date"),
            apart={} if one_token_a_chunk else {name.replace("itl", "chunk_gap"): gap for name, gap in gaps.items()},
            doubts=failures(answered, failed),
            original=plain({name: value for name, value in fields.values.items() if name not in _OF_REQUESTS}),
        )


def _input_tokens(fields: Fields) -> float | None:
    """Of all prompts; without details those of answered requests, which are fewer in a run with failures."""
    lengths = fields.amounts("input_lens")
    return fields.amount("total_input_tokens") if lengths is None else sum(lengths)


def _latencies(fields: Fields) -> dict[str, float]:
    """What is stated, and from the lists of single requests what is not."""
    listed = {**_listed(fields, "ttft", "ttfts"), **_listed(fields, "e2e", "latencies")}
    said: dict[str, float] = {}
    for ours, theirs in (("ttft", "ttft"), ("tpot", "tpot"), ("e2e", "e2el")):
        said |= stated(ours, lambda statistic, theirs=theirs: _summary(fields, theirs, statistic), MS)  # type: ignore[misc]
    return {**listed, **said}


def _summary(fields: Fields, name: str, statistic: str) -> float | None:
    if statistic == "mean":
        return fields.amount(f"mean_{name}_ms")
    stated_there = fields.amount(f"{statistic}_{name}_ms")
    return fields.amount(f"median_{name}_ms") if stated_there is None and statistic == "p50" else stated_there


def _listed(fields: Fields, name: str, of_theirs: str) -> dict[str, float]:
    """From a list with one value per request; those of failed requests, which nothing marks but a detail, are none."""
    values = fields.amounts(of_theirs)
    if values is None:
        return {}
    answered = list(_answered(fields, len(values)))
    return of_requests(name, [value for value, ok in zip(values, answered, strict=True) if ok]) if answered else {}


def _answered(fields: Fields, count: int) -> Iterator[bool]:
    """Whether each request was answered; nothing where that cannot be told."""
    lengths = fields.amounts("output_lens")
    if lengths is not None and len(lengths) == count:
        yield from (length > 0 for length in lengths)
    elif fields.count("failed") == 0 and fields.count("completed") == count:
        yield from (True for _ in range(count))


def _one_token_a_chunk(fields: Fields) -> bool:
    """Whether the details prove it: as many gaps as tokens after the first, in every answer."""
    gaps, lengths = fields.values.get("itls"), fields.amounts("output_lens")
    if not isinstance(gaps, list) or lengths is None or len(gaps) != len(lengths):
        return False
    if not all(isinstance(row, list) for row in gaps):
        raise fields.complaint("itls", "a list of lists of seconds")
    Fields(fields.tool, fields.place, {"itls": list(chain.from_iterable(gaps))}, fields.path).amounts("itls")
    return all(len(row) + 1 == length for row, length in zip(gaps, lengths, strict=True) if length)


def _words(fields: Fields) -> dict[str, Any]:
    """What --metadata and --label gave, and the endpoint."""
    given = {
        name: value
        for name, value in fields.values.items()
        if name not in _OWN and not _OWN_PATTERN.fullmatch(name) and isinstance(value, (str, int, float))
    }
    named = {name: fields.values[name] for name in ("backend", "label") if fields.values.get(name) is not None}
    words: dict[str, Any] = plain({**given, **named})
    return words
