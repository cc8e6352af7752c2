"""`--llmperf-resume`: whole pytest runs on an engine in virtual time, cut short and gone on from."""

from __future__ import annotations

import json
import os

import pytest

from pytest_llmperf import journal
from pytest_llmperf.engines.identity import Identity
from pytest_llmperf.resume import differences, find

# The engine writes down what it is sent, and is interrupted by, or fails at, the request that the environment names.
CONFTEST = """
import json
import os

import pytest
from fakes import Script, VirtualEngine, in_virtual_time
from pytest_llmperf.clock import VirtualClock
from pytest_llmperf.records import Failure

CLOCK = VirtualClock()

def pytest_configure(config):
    in_virtual_time(config, CLOCK)

class Engine(VirtualEngine):
    def start(self):
        super().start()
        with open("sent.jsonl", "a") as stream:
            stream.write('"start"\\n')

    def serve(self, ids):
        with open("sent.jsonl", "a") as stream:
            stream.write(json.dumps([int(one) for one in ids]) + "\\n")
        return super().serve(ids)

def fail(number):
    if number == int(os.environ.get("INTERRUPT_AT", -1)):
        raise KeyboardInterrupt
    return Failure("timeout", "too late") if number == int(os.environ.get("FAIL_AT", -1)) else None

@pytest.fixture
def engine():
    return Engine(Script(fail=fail), clock=CLOCK)
"""
TEST = """
from pytest_llmperf import multi_round

def conversations(**words):
    given = dict(users=1, rounds=2, context_tokens=64, input_tokens=16, output_tokens=4, seed=1)
    return multi_round(**{**given, **words})

def test_first(engine, llm_perf):
    assert len(llm_perf(engine, conversations()).runs) == 5

def test_second(engine, llm_perf):
    assert len(llm_perf(engine, conversations(seed=2), cache="primed").runs) == 5
"""
PER_RUN = 2
"""Requests of a run of the first test: one user, two rounds."""
WARM_UP = 1


@pytest.fixture
def session(pytester, monkeypatch):
    """`session(*arguments, interrupt_at=, fail_at=)`: one pytest run; what the engine was sent is in its `sent`."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TEST)

    def run(*arguments, interrupt_at=-1, fail_at=-1):
        monkeypatch.setenv("INTERRUPT_AT", str(interrupt_at))
        monkeypatch.setenv("FAIL_AT", str(fail_at))
        (pytester.path / "sent.jsonl").unlink(missing_ok=True)
        result = pytester.runpytest_inprocess(*PLAIN, *arguments, no_reraise_ctrlc=True)
        told = pytester.path / "sent.jsonl"
        rows = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
        result.sent = [row for row in rows if row != "start"]
        result.starts = rows.count("start")
        return result

    run.path = pytester.path
    return run


def results(path):
    """The results in a benchmark file, by measurement."""
    rows = json.loads(path.read_text())["benchmarks"]
    return {row["extra_info"]["llmperf"]["measurement"]: row["extra_info"]["llmperf"]["result"] for row in rows}


def at(run, request=0):
    """The number of a request of the first test, of those that its engine is sent."""
    return (WARM_UP + run) * PER_RUN + request


FIRST = ("-k", "first")
PLAIN = ("-p", "no:cacheprovider", "-W", "default")


@pytest.mark.slow
def test_only_what_is_missing_is_measured(session):
    """Interrupted in its third run, a measurement goes on with that run and that run's prompts; it is said."""
    whole = session(*FIRST)
    cut = session(*FIRST, interrupt_at=at(2, 1))
    again = session(*FIRST, "--llmperf-resume", "--benchmark-json", "out.json")

    assert pytest.ExitCode.INTERRUPTED == cut.ret
    cut.stdout.fnmatch_lines(["unfinished: test_it.py::test_first: 2 of 5 runs on record", "*with --llmperf-resume*"])
    again.assert_outcomes(passed=1, warnings=1)
    warm_up = whole.sent[: at(0)]
    assert warm_up + whole.sent[at(2) :] == again.sent
    again.stdout.fnmatch_lines(["llmperf: goes on from the session * cut short: 0 measurements complete, 2 runs of*"])
    again.stdout.fnmatch_lines(
        ["*doubt: 2 of 5 runs were measured in the session *; between them the engine was started*"]
    )
    (result,) = results(session.path / "out.json").values()
    assert 5 == len(result["runs"])
    (resumed,) = result["resumed"]
    assert [0, 1] == resumed["runs"]
    assert (session.path / ".llmperf" / resumed["session"]).is_dir()
    assert 0 <= resumed["began_before_s"] < 600


@pytest.mark.slow
def test_figures_of_resumed_runs_are_those_that_were_measured(session):
    """In virtual time all runs are alike, so a session gone on from gives what a whole one gives."""
    session(*FIRST, "--benchmark-json", "whole.json")
    session(*FIRST, interrupt_at=at(3))
    session(*FIRST, "--llmperf-resume", "--benchmark-json", "resumed.json")

    (whole,), (resumed,) = (results(session.path / name).values() for name in ("whole.json", "resumed.json"))
    told = {name: value for name, value in resumed.items() if name not in ("resumed", "doubts")}
    assert {name: value for name, value in whole.items() if name != "doubts"} == told


@pytest.mark.slow
def test_a_complete_measurement_starts_no_engine(session):
    """Of a session interrupted between its tests nothing is measured again."""
    session()
    mark_cut_short(session.path)

    again = session("--llmperf-resume", "--benchmark-json", "out.json")

    again.assert_outcomes(passed=2, warnings=2)
    assert (0, []) == (again.starts, again.sent)
    again.stdout.fnmatch_lines(["*cut short: 2 measurements complete, 0 runs of others"])
    again.stdout.fnmatch_lines(["*doubt: 5 runs, all of them, were measured in the session *"])
    assert [[0, 1, 2, 3, 4]] * 2 == [one["resumed"][0]["runs"] for one in results(session.path / "out.json").values()]


def newest(path):
    return max((path / ".llmperf").iterdir(), key=lambda folder: journal.read(folder).began)


def mark(folder, **words):
    told = json.loads((folder / journal.FILE).read_text())
    (folder / journal.FILE).write_text(json.dumps({**told, **words}))


def mark_cut_short(path):
    """As if it had been interrupted after its last test."""
    mark(newest(path), ended="cut short")


@pytest.mark.slow
def test_what_differs_is_said_and_measured_anew(session, pytester):
    """An option, the cache's state and the workload: nothing of the earlier session counts."""
    session(*FIRST, interrupt_at=at(2))
    other = TEST.replace("input_tokens=16", "input_tokens=17").replace(
        "conversations())", "conversations(), cache='cold')"
    )
    pytester.makepyfile(test_it=other)

    again = session(*FIRST, "--llmperf-resume", "--llmperf-timeout", "5", "--benchmark-json", "out.json")

    said = "workload_digest '*' -> '*'; cache 'as_is' -> 'cold'; options.timeout_s 300.0 -> 5.0"
    again.stdout.fnmatch_lines([f"measured anew: test_it.py::test_first: {said}"])
    (result,) = results(session.path / "out.json").values()
    assert "resumed" not in result
    assert 5 == len(result["runs"])


@pytest.mark.slow
def test_another_version_of_the_product_measures_anew(session, monkeypatch):
    """Its runs may not be ours to count."""
    session(*FIRST, interrupt_at=at(2))
    monkeypatch.setattr("pytest_llmperf.session.__version__", "99")

    again = session(*FIRST, "--llmperf-resume")

    again.stdout.fnmatch_lines(["measured anew: *: pytest_llmperf '*' -> '99'"])


@pytest.mark.slow
def test_another_engine_behind_the_same_words_measures_anew(session, monkeypatch):
    """What it says of itself once it has started is held against what it said then."""
    session(*FIRST, interrupt_at=at(2))
    monkeypatch.setattr("fakes.VirtualEngine.describe", lambda self: {"model": self.model, "version": "newer"})

    again = session(*FIRST, "--llmperf-resume", "--benchmark-json", "out.json")

    again.stdout.fnmatch_lines(["measured anew: test_it.py::test_first: version 'virtual' -> 'newer'"])
    assert at(5) == len(again.sent)


@pytest.mark.slow
def test_a_session_that_was_not_cut_short_has_nothing_to_resume(session):
    """It is said, and all is measured."""
    session(*FIRST)

    again = session(*FIRST, "--llmperf-resume")

    again.stdout.fnmatch_lines(["llmperf: nothing to resume: the newest session, *, was not cut short"])
    assert at(5) == len(again.sent)


@pytest.mark.slow
def test_with_no_session_at_all(session):
    again = session(*FIRST, "--llmperf-resume")

    again.stdout.fnmatch_lines(["llmperf: nothing to resume: there is no session in *.llmperf"])
    again.assert_outcomes(passed=1, warnings=1)


@pytest.mark.slow
def test_the_ini_file_can_say_so(session, pytester):
    session(*FIRST, interrupt_at=at(2))
    pytester.makeini("[pytest]\nllmperf_resume = true\n")

    assert at(3) + PER_RUN - WARM_UP * PER_RUN == len(session(*FIRST).sent)


@pytest.mark.slow
def test_a_session_that_was_killed_says_nothing_of_an_end(session):
    """Its owner runs no more: what it had counts. As long as the owner runs, nobody goes on from it."""
    session(*FIRST, interrupt_at=at(2))
    folder = newest(session.path)
    mark(folder, ended=None, owner=Identity.of(os.getpid()).to_json())
    running = find(session.path / ".llmperf")
    mark(folder, owner={**Identity.of(os.getpid()).to_json(), "start": 1})

    again = session(*FIRST, "--llmperf-resume")

    assert (None, f"nothing to resume: the session {folder.name} still runs (pid {os.getpid()})") == running
    again.stdout.fnmatch_lines(["*doubt: 2 of 5 runs were measured in the session *"])


@pytest.mark.slow
def test_a_session_gone_on_from_can_itself_be_interrupted(session):
    """Runs keep the name of the session that measured them; tests that it had not come to are found behind it."""
    session()
    mark_cut_short(session.path)
    first = newest(session.path)
    records = next((first / "records").glob("*test_first*.jsonl"))
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(line for line in lines if b'"index":2' not in line and b'"end"' not in line))
    session(*FIRST, "--llmperf-resume", interrupt_at=at(1))  # its first run is the third one

    again = session("--llmperf-resume", "--benchmark-json", "out.json")

    again.assert_outcomes(passed=2, warnings=2)
    one, two = results(session.path / "out.json").values()
    assert [0, 1, 2] == [number for part in one["resumed"] for number in part["runs"]]
    assert first.name == one["resumed"][0]["session"] == two["resumed"][0]["session"] != one["resumed"][1]["session"]
    assert (1, at(5) - 3 * PER_RUN) == (again.starts, len(again.sent))


@pytest.mark.slow
def test_a_spoiled_run_is_measured_again(session):
    """The runs before it stand."""
    spoiled = session(*FIRST, fail_at=at(3))
    spoiled.assert_outcomes(errors=1)

    again = session(*FIRST, "--llmperf-resume", "--benchmark-json", "out.json")

    again.assert_outcomes(passed=1, warnings=1)
    (result,) = results(session.path / "out.json").values()
    assert [0, 1, 2] == result["resumed"][0]["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["first line", "a request"])
def test_records_that_cannot_be_read_are_measured_anew(session, damaged):
    """A file that is no record file any more, and one that is damaged further on; it is said."""
    session(*FIRST, interrupt_at=at(2))
    (records,) = newest(session.path).glob("records/*.jsonl")
    content = records.read_bytes()
    was, now = (b'{"schema":', b"\x00") if damaged == "first line" else (b'{"request":{"run":1,', b'{"request":{"run"')
    assert was in content
    records.write_bytes(content.replace(was, now))

    again = session(*FIRST, "--llmperf-resume")

    told = {
        "first line": "*test_first*.jsonl cannot be gone on from: * is not a record file*",
        "a request": "measured anew: *test_first: * cannot be read: *, line * is not a row of a record file: *",
    }
    again.stdout.fnmatch_lines([told[damaged]])
    again.assert_outcomes(passed=1, warnings=1)


@pytest.mark.slow
def test_two_builds_go_on_with_whole_pairs(session):
    """Each build of the second pair had its own hour: of what was interrupted, only whole pairs count."""
    pair = ("--llmperf-base", "noise_seed=7", "--llmperf-hardware", "sim:gh200", "--llmperf-model", "llama-3.1-8b")
    session.path.joinpath("test_it.py").write_text(
        "from pytest_llmperf import single_turn\n"
        "def test_first(llm_engine, llm_perf):\n"
        "    llm_perf(llm_engine, single_turn(requests=4, input_tokens=100, output_tokens=4, seed=1))\n"
    )
    session(*FIRST, *pair)
    mark_cut_short(session.path)
    for arm, kept in (("head", 3), ("base", 2)):
        (records,) = newest(session.path).glob(f"records/*{arm}*.jsonl")
        lines = records.read_bytes().splitlines(keepends=True)
        last = f'{{"run":{{"index":{kept - 1},"phase":"measured"'.encode()
        cut = next(n for n, line in enumerate(lines) if line.startswith(last))
        records.write_bytes(b"".join(lines[: cut + 1]))

    again = session(*FIRST, *pair, "--llmperf-resume")

    again.assert_outcomes(passed=1)
    again.stdout.fnmatch_lines(["*doubt: 2 of 5 runs were measured in the session *"])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": "pytest-llmperf-session", "version": 1}', '{"began": "yesterday"}', "\x00", "nul"],
)
def test_a_journal_that_is_none(tmp_path, text):
    """A folder of something else is passed over."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / journal.FILE).write_text(text)

    assert (None, f"nothing to resume: there is no session in {tmp_path}") == find(tmp_path)


@pytest.mark.slow
def test_a_session_names_no_folder_elsewhere(session, tmp_path):
    """What it says that it went on from is looked for beside it only, and never twice."""
    session(*FIRST, interrupt_at=at(2))
    folder = newest(session.path)
    for name in ("../../etc", str(tmp_path), folder.name):
        mark(folder, resumes=name)

        earlier, _ = find(session.path / ".llmperf")

        assert [folder] == [account.folder for account in earlier.accounts]


def test_differences_are_named_by_their_way():
    before, now = {"a": {"b": 1, "c": [2]}, "d": None}, {"a": {"b": 1, "c": [3]}, "e": 4}

    assert ["a.c [2] -> [3]", "e None -> 4"] == list(differences(before, now))
