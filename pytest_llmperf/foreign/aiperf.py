"""AIPerf: `profile_export_aiperf.json`, with or without the requests in `profile_export.jsonl` beside it.

Facts read in AIPerf 0.13: its inter_token_latency leaves out the first chunk's tokens where TPOT leaves out one, and
its inter_chunk_latency is of chunks where ITL is of tokens; both are the same where every chunk holds one token,
which the counts prove. Otherwise TPOT is computed from single requests, if they are given. Figures say their units;
tokens are counted by its own tokenizer unless told to use the server's count; the time that a request waited within
the client is in none of its latencies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import ForeignResultError
from pytest_llmperf.foreign.runs import ForeignRun, failures, known, of_requests, require_answers, stated
from pytest_llmperf.foreign.source import Fields, Source, plain, printable
from pytest_llmperf.units import seconds

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "sec": 1.0,
    "requests": 1.0,
    "tokens": 1.0,
    "requests/sec": 1.0,
    "tokens/sec": 1.0,
}
"""Unit to its size in base units."""
_DISTRIBUTIONS = {"ttft": "time_to_first_token", "e2e": "request_latency"}
_TOTALS = {
    "duration": "benchmark_duration",
    "request_throughput": "request_throughput",
    "output_throughput": "output_token_throughput",
    "total_throughput": "total_token_throughput",
}
_WORK = ("models", "datasets", "phases")
# A client that lets a request wait longer than this share of its TTFT shapes the load that it measures.
_WAITED = 0.1

_DEFINITIONS = {
    "ttft": "time_to_first_token: from before the request, connecting included, to the first content",
    "tpot": "inter_token_latency, where every chunk held one token: (last - first content) / (output tokens - 1)",
    "itl": "inter_chunk_latency, where every chunk held one token",
    "e2e": "request_latency: from before the request to the last content",
    "duration": "benchmark_duration: from the first request's start to the last content",
    "request_throughput": "request_throughput: answered requests / benchmark_duration",
    "output_throughput": "output_token_throughput: output tokens / benchmark_duration",
    "total_throughput": "total_token_throughput: input and output tokens / benchmark_duration",
}
_TPOT_OF_REQUESTS = "(request_latency - time_to_first_token) / (output_sequence_length - 1) of each request"
_COUNTED = {True: "tokens as the server counts them", False: "tokens as AIPerf's tokenizer counts them"}
_OF_TOKENS = ("tpot", "itl", "output_throughput", "total_throughput")


class AIPerf:
    """NVIDIA AIPerf."""

    title = "AIPerf"
    wrote = "profile_export_aiperf.json, and with it profile_export.jsonl"

    def recognises(self, document: Mapping[str, Any]) -> bool:
        return "aiperf_version" in document or _is_request(document)

    def read(self, sources: Sequence[Source]) -> Iterable[ForeignRun]:
        requests = {source.path.parent: source for source in sources if _is_request(source.objects[0])}
        summaries = [source for source in sources if not _is_request(source.objects[0])]
        folders = [source.path.parent for source in summaries]
        for folder, source in requests.items():
            if folders.count(folder) != 1:
                raise _alone(source, folders.count(folder))
        for source in summaries:
            fields = Fields(self.title, str(source.path), source.objects[0])
            yield _run(source, fields, _Requests.of(requests.get(source.path.parent)))


def _is_request(document: Mapping[str, Any]) -> bool:
    return {"metadata", "metrics"} <= document.keys() and "guidellm_version" not in _dict(document["metadata"])


def _alone(source: Source, summaries: int) -> ForeignResultError:
    found = "no" if not summaries else f"{summaries}"
    return ForeignResultError(
        f"{source.path} holds requests of AIPerf, and {found} profile_export_aiperf.json of the same folder was given; "
        f"expected one, which says what was measured"
    )


class _Requests:
    """The requests of a run one by one, without those of the warm-up."""

    def __init__(self, answered: Sequence[tuple[int, Mapping[str, float]]], failed: int) -> None:
        self.answered = answered
        self.failed = failed

    @classmethod
    def of(cls, source: Source | None) -> _Requests | None:
        """Raises `ForeignResultError` for rows that are no requests."""
        if source is None:
            return None
        rows = [Fields(AIPerf.title, source.place(number), row) for number, row in enumerate(source.objects)]
        measured = [
            row for row in rows if row.within("metadata").values.get("benchmark_phase", "profiling") == "profiling"
        ]
        ok = [row for row in measured if row.values.get("error") is None]
        return cls([_latencies(row) for row in ok], len(measured) - len(ok))

    def by_round(self) -> list[dict[str, dict[str, float]]]:
        """Each turn's distributions, in seconds; empty where there is one turn only."""
        turns = sorted({turn for turn, _ in self.answered})
        if turns != list(range(len(turns))) or len(turns) < 2:
            return []
        return [self._round(turn) for turn in turns]

    def _round(self, number: int) -> dict[str, dict[str, float]]:
        rows = [values for turn, values in self.answered if turn == number]
        listed = {name: [row[name] for row in rows if name in row] for name in (*_DISTRIBUTIONS, "tpot")}
        return {
            name: {
                "count": len(values),
                **{metric.rpartition("_")[2]: value for metric, value in of_requests(name, values).items()},
            }
            for name, values in listed.items()
            if values
        }


def _latencies(row: Fields) -> tuple[int, dict[str, float]]:
    metrics, turn = row.within("metrics"), row.within("metadata").count("turn_index") or 0
    ttft, e2e = (_amount(metrics.perhaps_within(tag), "value") for tag in _DISTRIBUTIONS.values())
    tokens = _amount(metrics.perhaps_within("output_sequence_length"), "value")
    several = None not in (ttft, e2e, tokens) and tokens > 1 and e2e > ttft  # type: ignore[operator]
    tpot = (e2e - ttft) / (tokens - 1) if several else None  # type: ignore[operator]
    return turn, known(ttft=ttft, e2e=e2e, tpot=tpot)


@dataclass(frozen=True, slots=True, kw_only=True)
class _BetweenTokens:
    """What is known of the times between tokens. `values` and `apart`: as in `ForeignRun`."""

    values: Mapping[str, float]
    apart: Mapping[str, float]
    tpot: str
    """How TPOT was got."""
    doubts: tuple[str, ...] = ()

    @classmethod
    def of(cls, fields: Fields, answered: int, requests: _Requests | None) -> _BetweenTokens:
        tpot, itl = _stated(fields, "tpot", "inter_token_latency"), _stated(fields, "itl", "inter_chunk_latency")
        if _one_token_a_chunk(fields, answered):
            return cls(values={**tpot, **itl}, apart={}, tpot=_DEFINITIONS["tpot"])
        apart = {
            **{name.replace("itl", "chunk_gap"): gap for name, gap in itl.items()},
            **{name.replace("tpot", "tpot_after_first_chunk"): value for name, value in tpot.items()},
        }
        own = [] if requests is None else [row["tpot"] for _, row in requests.answered if "tpot" in row]
        doubt = "no TPOT: that every chunk held one token cannot be seen; profile_export.jsonl of the folder would tell"
        return cls(
            values=of_requests("tpot", own),
            apart=apart,
            tpot=_TPOT_OF_REQUESTS,
            doubts=() if own or not tpot else (doubt,),
        )


def _one_token_a_chunk(fields: Fields, answered: int) -> bool:
    """Whether the counts prove it: as many gaps as tokens after the first ones."""
    count = fields.perhaps_within("inter_chunk_latency").count("count")
    tokens = fields.perhaps_within("total_osl").amount("avg")
    return count is not None and tokens is not None and count == tokens - answered


def _run(source: Source, fields: Fields, requests: _Requests | None) -> ForeignRun:
    answered = int(_amount(fields.perhaps_within("request_count"), "avg") or 0)
    require_answers(fields, "request_count", answered)
    failed = _failed(fields, answered, requests)
    configuration = fields.perhaps_within("input_config")
    endpoint = configuration.perhaps_within("endpoint")
    words, is_open = _load(configuration)
    between = _BetweenTokens.of(fields, answered, requests)
    by_server = endpoint.values.get("use_server_token_count") is True
    return ForeignRun(
        tool="aiperf",
        tool_version=fields.text("aiperf_version"),
        file=source.name,
        configuration={
            **{name: plain(configuration.values.get(name)) for name in _WORK},
            **{f"endpoint {name}": plain(endpoint.values.get(name)) for name in ("type", "streaming", "extra")},
        },
        load=words,
        open_load=is_open,
        model=_model(configuration),
        engine_words=plain({"endpoint": endpoint.values["type"]}) if endpoint.values.get("type") is not None else {},
        values={
            **{k: v for name, tag in _DISTRIBUTIONS.items() for k, v in _stated(fields, name, tag).items()},
            **known(**{name: _amount(fields.perhaps_within(tag), "avg") for name, tag in _TOTALS.items()}),
            **between.values,
        },
        definitions=_definitions({**_DEFINITIONS, "tpot": between.tpot}, by_server=by_server),
        answered=answered,
        failed=failed,
        output_tokens=None if (total := _amount(fields.perhaps_within("total_osl"), "avg")) is None else int(total),
        measured_at=fields.text("end_time"),
        apart={
            **between.apart,
            **({"by_round": rounds} if requests is not None and (rounds := requests.by_round()) else {}),
        },
        doubts=(*failures(answered, failed), *_doubts(fields, answered, requests), *between.doubts),
        original=_original(fields),
    )


def _definitions(texts: Mapping[str, str], *, by_server: bool) -> dict[str, str]:
    return {name: f"{text}; {_COUNTED[by_server]}" if name in _OF_TOKENS else text for name, text in texts.items()}


def _amount(metric: Fields, name: str) -> float | None:
    """One figure of a metric in base units."""
    value = metric.amount(name)
    return None if value is None else value * _scale(metric)


def _scale(metric: Fields) -> float:
    unit = metric.values.get("unit")
    if not isinstance(unit, str) or unit not in _UNITS:
        raise metric.complaint("unit", f"one of {', '.join(_UNITS)}")
    return _UNITS[unit]


def _stated(fields: Fields, name: str, tag: str) -> dict[str, float]:
    metric = fields.perhaps_within(tag)
    if not metric.values:
        return {}
    return stated(name, lambda statistic: metric.amount("avg" if statistic == "mean" else statistic), _scale(metric))


def _failed(fields: Fields, answered: int, requests: _Requests | None) -> int | None:
    errors = fields.perhaps_within("error_request_count").count("avg")
    ended = fields.perhaps_within("completed_request_count").count("avg")
    if errors is None and ended is not None:
        return max(0, ended - answered)
    return requests.failed if errors is None and requests is not None else errors


def _load(configuration: Fields) -> tuple[str, bool]:
    """The measured phases in words."""
    phases = configuration.values.get("phases")
    rows = [phase for phase in phases if isinstance(phase, dict)] if isinstance(phases, list) else []
    words = [_phase(phase) for phase in rows if phase.get("kind", "profiling") == "profiling"]
    return ", then ".join(text for text, _ in words) or "not stated", any(is_open for _, is_open in words)


def _phase(phase: Mapping[str, Any]) -> tuple[str, bool]:
    if phase.get("type") == "concurrency":
        return printable(f"closed_loop({phase.get('concurrency')})"), False
    told = ", ".join(f"{name}={phase[name]}" for name in ("rate", "concurrency") if phase.get(name) is not None)
    return printable(f"{phase.get('type')}({told})"), True


def _model(configuration: Fields) -> str | None:
    items = configuration.perhaps_within("models").values.get("items")
    names = [str(item.get("name")) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return ", ".join(names) or None


def _doubts(fields: Fields, answered: int, requests: _Requests | None) -> Iterator[str]:
    if fields.values.get("was_cancelled") is True or fields.values.get("is_complete") is False:
        yield f"the run was not completed: {printable(fields.values.get('incomplete_reason') or 'cancelled')}"
    waited = _amount(fields.perhaps_within("credit_to_start_latency"), "avg")
    ttft = _amount(fields.perhaps_within("time_to_first_token"), "avg")
    if waited and ttft and waited > _WAITED * ttft:
        yield f"AIPerf sent requests {seconds(waited)} late on average, which none of its latencies contains"
    if requests is not None and len(requests.answered) != answered:
        yield f"{len(requests.answered)} answered requests in the JSONL, {answered} in the summary"


def _original(fields: Fields) -> dict[str, Any]:
    """Everything but where it ran."""
    original: dict[str, Any] = plain(dict(fields.values))
    configuration = _dict(original.get("input_config"))
    _dict(configuration.get("endpoint")).pop("urls", None)
    _dict(configuration.get("artifacts")).pop("dir", None)
    tokenizer = _dict(configuration.get("tokenizer"))
    if isinstance(tokenizer.get("name"), str):
        tokenizer["name"] = Path(tokenizer["name"]).name
    return original


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
