"""Everything that reads files which somebody else may have written, and a good file of each kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from night_files import acknowledged, document, row

from pytest_llmperf import conversations, trace
from pytest_llmperf.acknowledged import read_acknowledged
from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.errors import BaselineError, ConfigurationError, ForeignResultError, LLMPerfError
from pytest_llmperf.foreign import read_runs
from pytest_llmperf.foreign.imported import Naming, measurements
from pytest_llmperf.history import stored_files
from pytest_llmperf.keeping import nights_of
from pytest_llmperf.readings import GpuSample, HostSample
from pytest_llmperf.record_file import RecordFile, read_header, read_requests, read_windows
from pytest_llmperf.records import CacheCounters, ClientStats, Phase, RequestRecord, RunRecord, Window
from pytest_llmperf.reports.from_file import report_of
from pytest_llmperf.result_file import read
from pytest_llmperf.roofline import shape_of
from pytest_llmperf.telemetry import read_samples
from pytest_llmperf.telemetry.series import SeriesFile
from pytest_llmperf.workloads.graph import read_graph

DATA = Path(__file__).parent
SHAPE = {
    "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 8192, "vocab_size": 128_256, "max_position_embeddings": 131_072,
}  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """What reads a file, what it raises for one that it cannot use, and the text of a good one."""

    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    good: Callable[[Path], str]
    """May write to the folder that it is given."""
    name: str = "given.json"
    """What the file has to be called."""
    by_line: bool = False
    """Whether each line is a document."""


def _history(path: Path) -> None:
    reading = stored_files([path])
    if reading.problems:
        raise BaselineError("\n".join(reading.problems))


def _graph(path: Path) -> None:
    for name in ("relation2id.txt", "valid.txt", "test.txt"):
        content = "r\t0\n" if name.startswith("r") else "0\t0\t1\t3\n"
        (path.parent / name).write_text(content)
    (path.parent / "train.txt").write_text("0\t0\t1\t2\n")
    read_graph(path.parent)


def _result(folder: Path) -> str:
    return (DATA / "reports" / "data" / "result-1.json").read_text()


def _night(folder: Path) -> str:
    return json.dumps(document(row([0.1, 0.2])))


def _acknowledged(folder: Path) -> str:
    return acknowledged(folder, {}).read_text()


def _foreign(name: str) -> Callable[[Path], str]:
    return lambda folder: (DATA / "foreign" / "data" / name).read_text()


def _imported(path: Path) -> None:
    measurements(read_runs([path]), Naming(hardware_key="unknown", test=None, engine_kind="unknown"))


def _records(folder: Path) -> str:
    path = folder / "made.jsonl"
    file = RecordFile(path, {"measurement": "t", "hardware_key": "k"})
    request = RequestRecord(
        run=0, phase=Phase.MEASURED, session=0, turn=0, released_ns=0, sent_ns=1, end_ns=9,
        arrivals=(Arrival(5, 1), Arrival(8, 1)), new_tokens=4, input_tokens=20, output_tokens_asked=2,
    )  # fmt: skip
    file.request(request)
    file.run(
        RunRecord(
            index=0, phase=Phase.MEASURED, start_ns=0, end_ns=9, requests=(), window=Window(0, 9),
            cache=CacheCounters(), client=ClientStats(),
        )
    )  # fmt: skip
    file.close()
    return path.read_text()


def _read_records(path: Path) -> None:
    read_header(path)
    list(read_requests(path))
    read_windows(path)


def _series(folder: Path) -> str:
    path = folder / "made.ndjson"
    file = SeriesFile(path, {"measurement": "t"}, [])
    file.add(GpuSample(at_ns=5, gpu=0, sm_clock_mhz=1700, processes={7: 100}))
    file.add(HostSample(at_ns=6, cpu_share=0.5))
    file.close()
    return path.read_text()


def _jsonl(*rows: object) -> Callable[[Path], str]:
    return lambda folder: "".join(f"{json.dumps(one)}\n" for one in rows)


_TALK = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "this"}]
_MESSAGES = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": [{"type": "text", "text": "this"}]}]
_RESULT, _FOREIGN, _CONFIGURATION = (BaselineError,), (ForeignResultError,), (ConfigurationError,)
_ROWS = (LLMPerfError, OSError)

READERS: dict[str, Reader] = {
    "result": Reader(read, _RESULT, _result),
    "report": Reader(lambda path: report_of(read(path)), _RESULT, _result),
    "night": Reader(lambda path: nights_of([path], "main"), _RESULT, _night),
    "history": Reader(_history, _RESULT, _night),
    "acknowledged": Reader(lambda path: read_acknowledged(path.parent), _RESULT, _acknowledged, "acknowledged.json"),
    "vllm": Reader(_imported, _FOREIGN, _foreign("vllm-detailed.json")),
    "guidellm": Reader(_imported, _FOREIGN, _foreign("guidellm.json")),
    "sglang": Reader(_imported, _FOREIGN, _foreign("sglang.jsonl"), by_line=True),
    "aiperf": Reader(_imported, _FOREIGN, _foreign("aiperf/profile_export_aiperf.json")),
    "mooncake": Reader(
        trace, _CONFIGURATION, by_line=True,
        good=_jsonl({"timestamp": 3, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}),
    ),
    "qwen": Reader(
        trace, _CONFIGURATION, by_line=True,
        good=_jsonl({"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, "output_length": 3}),
    ),
    "own trace": Reader(
        trace, _CONFIGURATION, by_line=True,
        good=_jsonl(
            {"llmperf_trace": 1, "block_tokens": 16, "requests": 1}, {"at_s": 0, "input_tokens": 9, "output_tokens": 2}
        ),
    ),
    "azure": Reader(
        trace, _CONFIGURATION,
        lambda folder: "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n", by_line=True,
    ),
    "sharegpt": Reader(conversations, _CONFIGURATION, lambda folder: json.dumps([{"conversations": _TALK}])),
    "messages": Reader(conversations, _CONFIGURATION, _jsonl({"messages": _MESSAGES}), by_line=True),
    "graph": Reader(_graph, _CONFIGURATION, lambda folder: "a\t0\nb\t1\n", "entity2id.txt", by_line=True),
    "model": Reader(
        lambda path: shape_of(str(path)), _CONFIGURATION, lambda folder: json.dumps(SHAPE), "config.json"
    ),
    "records": Reader(_read_records, _ROWS, _records, by_line=True),
    "telemetry": Reader(lambda path: list(read_samples(path)), _ROWS, _series, by_line=True),
}  # fmt: skip
