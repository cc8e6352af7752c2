"""Traces: what was recorded is what is sent, and a wrong file is named with its line."""

from __future__ import annotations

import json
import os
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmperf import constant, multi_round, poisson, replay, shared_prefix, single_turn, trace, write_trace
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads import Session, Turn
from pytest_llmperf.workloads.trace import FORMATS

NOTHING = np.empty(0, np.int32)
GOLDEN_IDS = [
    [[1507, 1887, 1982, 1422, 1138, 1307, 1830, 1928, 1189], [1396, 1180, 1902]],
    [[1507, 1887, 1982, 1422, 1311]],
]
GOLDEN_DIGEST = "61a49edde6bcc5e3"

MOONCAKE = [
    {"timestamp": 3000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 3500, "input_length": 1030, "output_length": 7, "hash_ids": [0, 1, 3]},
    {"timestamp": 5000, "input_length": 512, "output_length": 1, "hash_ids": [9]},
    {"timestamp": 5000, "input_length": 700, "output_length": 2, "hash_ids": [0, 4]},
]
QWEN = [
    {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, "output_length": 3, "type": "text",
     "turn": 1, "hash_ids": [1, 2]},
    {"chat_id": 2, "parent_chat_id": -1, "timestamp": 1.0, "input_length": 33, "output_length": 3, "type": "text",
     "turn": 1, "hash_ids": [1, 5, 6]},
    {"chat_id": 3, "parent_chat_id": 1, "timestamp": 2.5, "input_length": 40, "output_length": 4, "type": "text",
     "turn": 2, "hash_ids": [1, 7, 8]},
    {"chat_id": 4, "parent_chat_id": 1, "timestamp": 3.0, "input_length": 16, "output_length": 4, "type": "text",
     "turn": 2, "hash_ids": [1]},
    {"chat_id": 5, "parent_chat_id": 99, "timestamp": 3.0, "input_length": 16, "output_length": 4, "type": "text",
     "turn": 2, "hash_ids": [2]},
]  # fmt: skip
AIPERF = [
    {"session_id": "a", "timestamp": 1000, "input_length": 600, "output_length": 40, "hash_ids": [7, 8]},
    {"session_id": "a", "delay": 2, "input_length": 150, "output_length": 20},
    {"session_id": "b", "timestamp": 1500, "input_length": 512, "output_length": 9, "hash_ids": [7]},
    {"input_length": 10, "output_length": 4, "timestamp": 2000.5},
]
VLLM = [
    {"timestamp": 10.25, "input_length": 40, "output_length": 5, "hash_ids": [4, 5, 6]},
    {"timestamp": 11.0, "input_length": 33, "output_length": 5, "hash_ids": [4, 5, 9]},
]
LLMPERF = [
    {"llmperf_trace": 1, "block_tokens": 4, "requests": 3},
    {"at_s": 0.0, "input_tokens": 9, "output_tokens": 2, "blocks": [1, 2], "session": 0},
    {"input_tokens": 3, "output_tokens": 1, "session": 0, "continues": True},
    {"at_s": 0.5, "input_tokens": 5, "output_tokens": 2, "blocks": [1]},
]
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 02:00:00.017335+02:00,2399,6
2024-05-10 00:00:01+00:00,76,15
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,API log
"""
BURSTGPT_SESSIONS = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
10.0,u,2,GPT-4,100,30,130,Conversation log
11.0,v,2,GPT-4,50,30,80,Conversation log
12.0,u,2,GPT-4,150,10,160,Conversation log
13.0,u,2,GPT-4,90,10,100,Conversation log
14.0,,2,GPT-4,7,1,8,API log
"""


def jsonl(rows):
    """The rows as a file's text."""
    return "".join(json.dumps(row) + "\n" for row in rows)


TEXTS = {
    "mooncake": jsonl(MOONCAKE),
    "qwen_bailian": jsonl(QWEN),
    "aiperf": jsonl(AIPERF),
    "vllm_timed_trace": jsonl(VLLM),
    "llmperf": jsonl(LLMPERF),
    "azure": AZURE,
    "burstgpt": BURSTGPT,
}


@pytest.fixture
def file(tmp_path):
    """Writes a trace file."""

    def write(text):
        path = tmp_path / "trace"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def shape(workload):
    """Per session, per turn: the time, the new tokens, the output tokens, whether it continues."""
    return [[(t.at_s, t.new_tokens, t.output_tokens, t.prefix is None) for t in session.turns] for session in workload]


def sent(workload):
    """What each turn sends by itself."""
    return [[turn.new_ids.tolist() for turn in session.turns] for session in workload]


def wrong(path, *parts, **words):
    """Loading raises one complaint that names the file and has these parts."""
    with pytest.raises(ConfigurationError) as caught:
        trace(path, **words)
    text = str(caught.value)
    assert str(path) in text
    for part in parts:
        assert part in text


class TestFormats:
    @pytest.mark.parametrize("name", FORMATS)
    def test_are_told_by_content(self, file, name):
        """Every format is recognised, and the same when it is named."""
        path = file(TEXTS[name])

        assert trace(path).format == name
        assert trace(path).digest == trace(path, name).digest

    def test_mooncake(self, file):
        """Milliseconds from the first row; one turn per row."""
        assert shape(trace(file(TEXTS["mooncake"]))) == [
            [(0.0, 1100, 5, False)], [(0.5, 1030, 7, False)], [(2.0, 512, 1, False)], [(2.0, 700, 2, False)],
        ]  # fmt: skip

    def test_qwen_bailian(self, file):
        """Children are turns of their parent's session, each sent as recorded; a second child stands for itself."""
        assert shape(trace(file(TEXTS["qwen_bailian"]))) == [
            [(0.0, 20, 3, False), (2.0, 40, 4, False)],
            [(0.5, 33, 3, False)],
            [(2.5, 16, 4, False)],
            [(2.5, 16, 4, False)],
        ]

    def test_qwen_without_blocks(self, file):
        """Without blocks a later turn adds what its input is longer than the session so far."""
        rows = [{k: v for k, v in row.items() if k != "hash_ids"} for row in QWEN[:3]]

        assert shape(trace(file(jsonl(rows))))[0] == [(0.0, 20, 3, False), (2.0, 17, 4, True)]

    def test_aiperf(self, file):
        """The rows of a session are its turns, each with what it adds."""
        assert shape(trace(file(TEXTS["aiperf"]))) == [
            [(0.0, 600, 40, False), (None, 150, 20, True)], [(0.5, 512, 9, False)], [(1.0005, 10, 4, False)],
        ]  # fmt: skip

    def test_rows_without_times_are_in_order(self, file):
        """A row without a time is neither early nor late."""
        rows = [
            {"input_length": n, "output_length": 1, **at}
            for n, at in ((1, {"timestamp": 7}), (2, {}), (3, {"timestamp": 8}))
        ]

        assert shape(trace(file(jsonl(rows)))) == [[(0.0, 1, 1, False)], [(None, 2, 1, False)], [(0.001, 3, 1, False)]]
        wrong(file(jsonl([*rows, {**rows[0], "timestamp": 6}])), "line 4", "earlier than line 3")

    def test_vllm_timed_trace(self, file):
        """Seconds, and blocks of 16."""
        read = trace(file(TEXTS["vllm_timed_trace"]))

        assert read.block_tokens == 16
        assert shape(read) == [[(0.0, 40, 5, False)], [(0.75, 33, 5, False)]]

    def test_azure(self, file):
        """Dates with seven digits of a second."""
        assert shape(trace(file(AZURE))) == [[(0.0, 374, 44, False)], [(4.314579, 396, 109, False)]]

    def test_azure_2024(self, file):
        """Dates with offsets, or without a fraction."""
        assert shape(trace(file(AZURE_2024))) == [
            [(0.0, 2162, 5, False)], [(0.007405, 2399, 6, False)], [(0.99007, 76, 15, False)],
        ]  # fmt: skip

    def test_burstgpt(self, file):
        """Seconds; failed requests, without an output, are left out and counted."""
        read = trace(file(BURSTGPT))

        assert shape(read) == [[(0.0, 472, 18, False)], [(40.5, 1087, 230, False)]]
        assert read.left_out == 1

    def test_burstgpt_with_sessions(self, file):
        """A later turn adds the difference; one that is shorter than the session begins another."""
        assert shape(trace(file(BURSTGPT_SESSIONS))) == [
            [(0.0, 100, 30, False), (2.0, 20, 10, True)],
            [(1.0, 50, 30, False)],
            [(3.0, 90, 10, False)],
            [(4.0, 7, 1, False)],
        ]

    def test_llmperf(self, file):
        """Our own form says all of it."""
        assert shape(trace(file(TEXTS["llmperf"]))) == [
            [(0.0, 9, 2, False), (None, 3, 1, True)], [(0.5, 5, 2, False)],
        ]  # fmt: skip


class TestIds:
    def test_equal_blocks_are_equal_ids(self, file):
        """As many leading ids are shared as the blocks say, and no more."""
        (first,), (second,), (third,), (fourth,) = sent(trace(file(TEXTS["mooncake"])))

        assert first[:1024] == second[:1024]
        assert first[:512] == fourth[:512]
        assert first[1024:1030] != second[1024:]
        assert first[512:700] != fourth[512:]
        assert third[:8] != first[:8]

    def test_sharing_is_told(self, file):
        """Each session knows how many of its leading ids others begin with."""
        assert [s.shared_tokens for s in trace(file(TEXTS["mooncake"]))] == [1024, 1024, 0, 512]

    def test_a_namespace_has_other_ids_and_the_same_sharing(self, file):
        """Another namespace is the same trace in other words, under the same digest."""
        read = trace(file(TEXTS["mooncake"]))
        (first,), (second,), *_ = sent(read.within("run 1"))

        assert first[:1024] == second[:1024]
        assert first[:8] != sent(read)[0][0][:8]
        assert read.within("run 1").digest == read.digest
        assert shape(read.within("run 1")) == shape(read)

    def test_without_blocks_nothing_is_shared(self, file):
        """Ids are drawn per request."""
        (first,), (second,) = sent(trace(file(AZURE)))

        assert first[:8] != second[:8]
        assert [s.shared_tokens for s in trace(file(AZURE))] == [0, 0]

    def test_large_numbers_keep_their_sharing(self, file):
        """Block numbers of 64 bits, too, are equal where they were and different where they were."""
        rows = [
            {"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [2**63, 2**55]},
            {"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [2**63, 0]},
        ]
        (first,), (second,) = sent(trace(file(jsonl(rows))))

        assert first[:512] == second[:512]
        assert first[512:520] != second[512:520]

    def test_the_ids_of_today(self, file):
        """If this fails, every stored baseline of a trace was measured with other prompts than those sent now."""
        read = trace(file(TEXTS["llmperf"]), seed=7)

        assert sent(read) == GOLDEN_IDS
        assert read.digest == GOLDEN_DIGEST

    def test_iterating_twice_gives_the_same(self, file):
        """And so does a copy in another process."""
        read = trace(file(TEXTS["qwen_bailian"]))

        assert sent(read) == sent(read) == sent(pickle.loads(pickle.dumps(read)))

    @pytest.mark.parametrize("words", [{"seed": 1}, {"token_ids": range(5, 500)}, {"limit": 3}, {"block_tokens": 400}])
    def test_the_digest_changes_with_what_is_sent(self, file, words):
        """Other ids or other requests, another digest."""
        rows = [{**row, "hash_ids": row["hash_ids"][: row["input_length"] // 512]} for row in MOONCAKE]
        if "block_tokens" in words:
            rows = [{**row, "hash_ids": [1], "input_length": 512} for row in MOONCAKE]
            words = {"block_tokens": 511}
        path = file(jsonl(rows))

        assert trace(path, "mooncake", **words).digest != trace(path, "mooncake").digest


class TestHitRate:
    def test_counts_blocks_as_the_trace_has_them(self, file):
        """Of ten blocks three were seen before."""
        read = trace(file(TEXTS["mooncake"]))

        assert read.infinite_cache_hit_rate() == 3 / 9
        assert read.infinite_cache_hit_rate(512) == 3 * 512 / (1100 + 1030 + 512 + 700)
        assert read.infinite_cache_hit_rate(1000) == 1000 / (1100 + 1030 + 512 + 700)

    def test_a_block_after_another_prefix_is_another(self, file):
        """A prefix cache finds nothing behind a block that differs."""
        rows = [
            {"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2]},
            {"timestamp": 1, "input_length": 1024, "output_length": 1, "hash_ids": [3, 2]},
        ]

        assert trace(file(jsonl(rows))).infinite_cache_hit_rate() == 0

    def test_a_history_is_cached(self, file):
        """All that a session has exchanged, except for the last token of the answer."""
        read = trace(file(TEXTS["llmperf"]))

        assert read.infinite_cache_hit_rate(1) == (10 + 4) / (9 + 14 + 5)

    @pytest.mark.slow
    @settings(max_examples=50)
    @given(st.data())
    def test_is_that_of_the_ids(self, tmp_path_factory, data):
        """Whatever the blocks, the rate is the one that the ids themselves give."""
        rows = []
        for at in range(data.draw(st.integers(1, 8))):
            blocks = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
            cut = data.draw(st.integers(0, 3))
            rows.append({"at_s": at, "input_tokens": 4 * len(blocks) - cut, "output_tokens": 1, "blocks": blocks})
        path = tmp_path_factory.mktemp("rate") / "trace"
        path.write_text(jsonl([{**LLMPERF[0], "requests": len(rows)}, *rows]))
        read = trace(path, token_ids=range(2**31 - 1))
        inputs = [session.turns[0].new_ids.tolist() for session in read]

        assert read.infinite_cache_hit_rate(1) == pytest.approx(known(inputs) / sum(map(len, inputs)))


def known(inputs):
    """How many leading ids of the inputs an earlier one begins with."""
    return sum(max((common(one, other) for other in inputs[:n]), default=0) for n, one in enumerate(inputs))


def common(one, other):
    """How many leading ids are the same."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class TestSelection:
    def test_window(self, file):
        """Sessions that begin within, counted from the first of them."""
        assert shape(trace(file(TEXTS["mooncake"]), window=(0.5, 2))) == [[(0.0, 1030, 7, False)]]
        assert [turn[0][0] for turn in shape(trace(file(TEXTS["mooncake"]), window=(0.5, 3)))] == [0.0, 1.5, 1.5]

    def test_sample_takes_whole_sessions(self, file):
        """About the share of the sessions, with all of their turns, the same for the same seed."""
        rows = [{"session_id": n // 2, "input_length": 10, "output_length": 1, "timestamp": n // 2} for n in range(800)]
        path = file(jsonl(rows))
        some = trace(path, sample=0.5, seed=3)

        assert 150 < some.sessions < 250
        assert some.requests == 2 * some.sessions
        assert some.digest == trace(path, sample=0.5, seed=3).digest != trace(path, sample=0.5, seed=4).digest
        assert trace(path, sample=1).digest == trace(path).digest

    def test_lengths(self, file):
        """Longer requests are left out and counted."""
        read = trace(file(TEXTS["mooncake"]), max_input_tokens=1030, max_output_tokens=5)

        assert shape(read) == [[(0.0, 512, 1, False)], [(0.0, 700, 2, False)]]
        assert read.left_out == 2

    def test_what_continues_from_a_request_goes_with_it(self, file):
        """A turn whose history is missing cannot be sent."""
        read = trace(file(TEXTS["aiperf"]), max_output_tokens=30)

        assert shape(read) == [[(0.0, 512, 9, False)], [(0.5005, 10, 4, False)]]
        assert read.left_out == 2

    def test_a_history_counts(self, file):
        """The longest input is that with the history."""
        assert trace(file(TEXTS["aiperf"]), max_input_tokens=789).left_out == 1
        assert trace(file(TEXTS["aiperf"]), max_input_tokens=790).left_out == 0

    def test_limit(self, file):
        """The first so many requests."""
        assert shape(trace(file(TEXTS["aiperf"]), limit=2)) == [[(0.0, 600, 40, False), (None, 150, 20, True)]]

    def test_nothing_left(self, file):
        """A selection of nothing is a mistake."""
        wrong(file(TEXTS["mooncake"]), "none of the 4 requests is left", window=(100, 200))
        wrong(file(TEXTS["mooncake"]), "4 of them being too long", max_input_tokens=1)

    def test_sort(self, file):
        """With sort=True rows may be out of order."""
        path = file(jsonl(reversed(MOONCAKE)))

        assert [s[0][:2] for s in shape(trace(path, sort=True))] == [(0, 1100), (0.5, 1030), (2, 700), (2, 512)]

    def test_figures(self, file):
        """What the trace says of itself."""
        read = trace(file(TEXTS["aiperf"]))

        assert (read.requests, read.sessions, read.duration_s) == (4, 3, 1.0005)
        assert read.mean_input_tokens == (600 + 790 + 512 + 10) / 4
        assert read.mean_output_tokens == (40 + 20 + 9 + 4) / 4


class TestLoads:
    def times(self, load, workload):
        """When the load sends the first turns, in seconds."""
        schedule = load.schedule([[turn.at_s for turn in session.turns] for session in workload])
        found = {}
        while (at_ns := schedule.next_ns()) is not None:
            found.update({release.session: release.at_ns / 1e9 for release in schedule.due(at_ns)})
        return [found[n] for n in sorted(found)]

    def test_replay_keeps_the_times_and_rates_do_not(self, file):
        """`speed` stretches the recording; a load with a rate has times of its own."""
        read = trace(file(TEXTS["mooncake"]))

        assert self.times(replay(speed=2), read) == [0, 0.25, 1, 1]
        assert self.times(constant(10), read) == pytest.approx([0, 0.1, 0.2, 0.3])
        untimed = single_turn(requests=4, input_tokens=1, output_tokens=1)
        assert self.times(poisson(10, seed=1), read) == self.times(poisson(10, seed=1), untimed)


class TestWriting:
    @pytest.mark.parametrize("name", FORMATS)
    def test_a_trace_comes_back_the_same(self, file, tmp_path, name):
        """Ids, lengths, times and sessions survive our own form."""
        read = trace(file(TEXTS[name]))
        write_trace(read, tmp_path / "own.jsonl")
        again = trace(tmp_path / "own.jsonl")

        assert again.format == "llmperf"
        assert again.digest == read.digest
        assert sent(again) == sent(read)
        assert shape(again) == shape(read)

    def test_other_workloads_keep_their_shape(self, tmp_path):
        """Lengths, sessions, and prefixes in blocks of 16."""
        made = shared_prefix(prefixes=2, requests_per_prefix=3, prefix_tokens=50, input_tokens=9, output_tokens=3)
        write_trace(made, tmp_path / "own.jsonl")
        again = trace(tmp_path / "own.jsonl")

        assert [[(t[1], t[2]) for t in session] for session in shape(again)] == [[(59, 3)]] * 6
        assert [session.shared_tokens for session in again] == [48] * 6
        assert again.infinite_cache_hit_rate(16) == 4 * 48 / (6 * 59)

    def test_rounds_continue(self, tmp_path):
        """Later turns continue from real answers again."""
        write_trace(multi_round(users=1, rounds=3, context_tokens=8, input_tokens=4, output_tokens=2), tmp_path / "own")

        assert shape(trace(tmp_path / "own")) == [
            [(None, 12, 2, False), (None, 4, 2, True), (None, 4, 2, True)],
        ]  # fmt: skip

    def test_what_cannot_be_said_is_refused(self, tmp_path):
        """Answers that are told have no place in the form; no file is left."""
        turn = Turn(prefix=NOTHING, new_ids=np.arange(3, dtype=np.int32), output_tokens=1, answer_ids=NOTHING)

        class Told:
            name = "told"

            def __iter__(self):
                yield Session(turns=(turn,))

        with pytest.raises(ConfigurationError, match="answers that are told"):
            write_trace(Told(), tmp_path / "own")
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_is_not_there(self, tmp_path):
        """The path is named."""
        with pytest.raises(ConfigurationError, match="cannot be written"):
            write_trace(single_turn(requests=1, input_tokens=1, output_tokens=1), tmp_path / "missing" / "own")


ROW = MOONCAKE[0]
BAD_ROWS = [
    ({**ROW, "input_length": -1}, "input_length is '-1', which is not a whole number from 0"),
    ({**ROW, "input_length": 10**9}, "which is not a whole number from 0 to 10,000,000"),
    ({**ROW, "input_length": 2.5}, "which is not a whole number"),
    ({**ROW, "output_length": "5"}, "output_length is '5'"),
    ({**ROW, "output_length": True}, "output_length is 'True'"),
    (
        {k: v for k, v in ROW.items() if k != "output_length"},
        "no output_length among timestamp, input_length, hash_ids",
    ),
    ({**ROW, "timestamp": -3}, "timestamp is '-3', which is not a time of 0 or more"),
    ({**ROW, "timestamp": None}, "timestamp is 'None'"),
    ({**ROW, "timestamp": 1e300}, "timestamp is '1e+300'"),
    ({**ROW, "timestamp": 10**14}, "over a hundred years from the first row"),
    ({**ROW, "timestamp": 2999}, "earlier than line 1"),
    ({**ROW, "hash_ids": [0]}, "1 blocks for 1100 tokens; expected 3, as blocks have 512 tokens"),
    ({**ROW, "hash_ids": [0, 1, -2]}, "not a list of whole numbers"),
    ({**ROW, "hash_ids": "0 1 2"}, "not a list of whole numbers"),
    ({**ROW, "session_id": "a"}, "format='aiperf'"),
]


class TestMistakes:
    @pytest.mark.parametrize(("row", "said"), BAD_ROWS)
    def test_of_a_row(self, file, row, said):
        """The line is named, and what was expected."""
        wrong(file(jsonl([ROW, row])), "line 2", said, "expected", format="mooncake")

    def test_a_file_that_was_cut(self, file):
        """The last line is no JSON any more."""
        wrong(file(TEXTS["mooncake"][:-20]), "line 4", "no JSON")
        wrong(file(AZURE[:-5]), "line 3", "2 values", "3, as the header has columns")

    def test_our_own_form_that_was_cut_between_lines(self, file):
        """The header says how many there should be."""
        wrong(file(jsonl(LLMPERF[:-1])), "the file ends after 2 requests", "expected 3")

    @pytest.mark.parametrize("text", ["", "\n \n"])
    def test_nothing_in_the_file(self, file, text):
        """An empty file is no trace."""
        wrong(file(text), "line 1", "nothing in the file")

    @pytest.mark.parametrize(
        "text", [AZURE.splitlines()[0], BURSTGPT.splitlines()[0], jsonl([{**LLMPERF[0], "requests": 0}])]
    )
    def test_a_header_alone(self, file, text):
        """A header is no trace either."""
        wrong(file(text), "no request in the file")

    def test_bytes_that_are_no_text(self, file):
        """The byte is named."""
        wrong(file(TEXTS["mooncake"].encode() + b'{"\xff"}\n'), "line 5", "not UTF-8")

    @pytest.mark.parametrize("text", ["a,b\n1,2\n", '{"a": 1}\n', "[1]\n"])
    def test_an_unknown_format(self, file, text):
        """The first line is shown, and what is accepted."""
        wrong(file(text), "line 1", repr(text.splitlines()[0]), *FORMATS)

    def test_a_format_that_is_none(self, file):
        """Near names are suggested."""
        with pytest.raises(ConfigurationError, match="did you mean 'mooncake'"):
            trace(file(TEXTS["mooncake"]), "moncake")

    def test_a_missing_column(self, file):
        """The header is shown."""
        wrong(file("TIMESTAMP,ContextTokens\n"), "no column GeneratedTokens", format="azure")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("2023-11-16,1,1", "TIMESTAMP is '2023-11-16'"),
            ("2023-13-16 18:15:46,1,1", "month must be in 1..12"),
            ("2023-11-16 18:15:46.0,-1,1", "ContextTokens is '-1'"),
            ("2023-11-16 18:15:46.0,1,", "GeneratedTokens is ''"),
            ("2023-11-16 18:15:46.0,1,99999999", "a whole number from 0 to 10,000,000"),
            ('"2023,1,1', "1 values"),
        ],
    )
    def test_of_a_csv_row(self, file, text, said):
        """The line is named, and what was expected."""
        wrong(file(AZURE + text + "\n"), "line 4", said)

    def test_burstgpt_times(self, file):
        """Seconds, not words."""
        wrong(file(BURSTGPT + "nan,GPT-4,1,1,2,API log\n"), "line 5", "Timestamp is 'nan'")

    def test_turns_out_of_order(self, file):
        """A turn is not earlier than the one before it."""
        rows = [{**row, "timestamp": 9 - n} for n, row in enumerate(AIPERF[:2])]
        wrong(file(jsonl(rows)), "line 2", "earlier than line 1", "sort=True")

    def test_our_own_form(self, file):
        """What continues must have something to continue from."""
        header = {**LLMPERF[0], "requests": 1}
        wrong(file(jsonl([header, {**LLMPERF[2], "session": 5}])), "line 2", "no earlier row has its session")
        wrong(file(jsonl([header, {**LLMPERF[2], "continues": 1}])), "line 2", "neither true nor false")
        wrong(file(jsonl([{**header, "llmperf_trace": 2}])), "line 1", "llmperf_trace is 2")
        wrong(file(jsonl([{**header, "block_tokens": 0}])), "line 1", "block_tokens is 0")

    def test_a_file_that_is_not_there(self, tmp_path):
        """The path is named."""
        wrong(tmp_path / "missing", "cannot be read")
        wrong(tmp_path, "cannot be read")

    def test_a_window_needs_times(self, file):
        """Sessions without times are in no window."""
        wrong(file(jsonl([{"input_length": 3, "output_length": 1}])), "window needs a time", window=(0, 1))

    def test_all_arguments_at_once(self, file):
        """Every argument out of range is listed."""
        with pytest.raises(ConfigurationError) as caught:
            trace(file(AZURE), window=(2, 1), sample=0, limit=0, max_input_tokens=-1, block_tokens=1.5, seed=-1)
        assert len(caught.value.problems) == 6
        with pytest.raises(ConfigurationError, match="block_tokens must be at most"):
            trace(file(AZURE), block_tokens=2**70)

    @pytest.mark.parametrize("window", [(1,), (0, float("nan")), ("a", "b"), 3, (-1, 1)])
    def test_a_window_is_two_times(self, file, window):
        """Anything else is refused."""
        with pytest.raises(ConfigurationError, match="window must be two times"):
            trace(file(AZURE), window=window)

    @pytest.mark.slow
    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.sampled_from(sorted(FORMATS)), told=st.booleans(), data=st.data())
    def test_a_corrupted_file_is_a_configuration_error_or_none(self, tmp_path, name, told, data):
        """Bytes cut out, put in or replaced at any place: the trace loads, or a `ConfigurationError` says why not."""
        content = bytearray(TEXTS[name].encode())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content)))
            cut = data.draw(st.integers(0, 12))
            content[at : at + cut] = data.draw(st.binary(max_size=4) | st.sampled_from(PIECES))
        path = tmp_path / "corrupted"
        path.write_bytes(content)
        with suppress(ConfigurationError):
            sent(trace(path, name if told else None, max_input_tokens=100_000))


PIECES = [
    b"\n",
    b'"',
    b",",
    b"{",
    b"[",
    b"]",
    b"null",
    b"-1",
    b"1e999",
    b"9" * 25,
    b"\x00",
    b"\xff",
    b"true",
    b"{}\n",
    b"[[",
    b"\r",
]

REAL = os.environ.get("LLMPERF_TRACES")


def real(name):
    """A published trace file. Skips if it is not here."""
    if not REAL:
        pytest.skip("LLMPERF_TRACES is not set: the folder with mooncake/ and azure_llm_2023/")
    path = Path(REAL) / name
    if not path.exists():
        pytest.skip(f"LLMPERF_TRACES has no {name}")
    return path


class TestPublished:
    def test_mooncake_conversations(self):
        """Requests, lengths and reuse are those that were published."""
        read = trace(real("mooncake/conversation_trace.jsonl"))

        assert read.format == "mooncake"
        assert (read.requests, read.sessions, round(read.duration_s)) == (12_031, 12_031, 3_537)
        assert (round(read.mean_input_tokens), round(read.mean_output_tokens)) == (12_035, 343)
        assert round(100 * read.infinite_cache_hit_rate(), 1) == 36.6

    @pytest.mark.slow
    def test_mooncake_comes_back(self, tmp_path):
        """The whole trace survives our own form."""
        read = trace(real("mooncake/conversation_trace.jsonl"))
        write_trace(read, tmp_path / "own")

        assert trace(tmp_path / "own").digest == read.digest

    def test_azure_conversations(self):
        """Requests, lengths and duration are those that were published."""
        read = trace(real("azure_llm_2023/AzureLLMInferenceTrace_conv.csv"))

        assert (read.format, read.requests, read.left_out) == ("azure", 19_366, 0)
        assert (round(read.mean_input_tokens), round(read.mean_output_tokens)) == (1_155, 211)
        assert round(read.duration_s, 6) == 3501.721937
