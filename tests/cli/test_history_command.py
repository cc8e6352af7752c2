"""`pytest-llmperf history` as its users meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from nights import KEY, TEST, Repository, document, levels, row, save, save_nights

from pytest_llmperf.cli import main

pytest.importorskip("ruptures", reason="no release for this Python")

ROOT = Path(__file__).parents[2]
RECOVERED = levels((0.0410, 12), (0.0431, 8), (0.0410, 9))
TABLE = """\
perf_tests/test_it.py::test_rounds[4] on NVIDIA-GH200-96GB
  metric             nights    level now  newest 24 nights          last step
  ttft_p50               29      41.0 ms  ▂▃▃▃▂▃▂▇▆▆▆▇▆▇▆▃▂▃▂▃▂▃▃▃  -4.9 %
    1: 41.0 ms -> 43.1 ms, +5.2 %, worse
       between 2026-01-12 (0012_main.json) and 2026-01-13 (0013_main.json)
       commits 0b0b0b0b0b..0c0c0c0c0c
       recovered by 2026-01-21 (0021_main.json)
    2: 43.1 ms -> 41.0 ms, -4.9 %, better
       between 2026-01-20 (0020_main.json) and 2026-01-21 (0021_main.json)
       commits 1313131313..1414141414
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command in a folder of one's own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main(["history", *map(str, arguments)])
        except SystemExit as ended:  # argparse's own mistakes
            code = ended.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def test_a_folder_becomes_a_table(call, tmp_path):
    """Of at most 80 columns, with exit code 0 although there are steps; `baselines` is where it looks."""
    save_nights(tmp_path / "baselines" / KEY, RECOVERED)

    done = call()

    assert (0, TABLE, "") == (done.code, done.out, done.err)
    assert all(len(line) <= 80 for line in done.out.splitlines()[1:])
    assert TABLE == call(tmp_path / "baselines" / KEY).out
    assert TABLE == call(*(tmp_path / "baselines" / KEY).iterdir()).out


def test_another_workload_and_another_engine_are_told(call, tmp_path):
    """And of few nights that they cannot tell."""
    for night, value in enumerate(levels((0.1, 4), (0.12, 4), (0.12, 3))):
        words = {"workload": "new" if night > 7 else "old", "version": "0.31" if night < 4 else "0.32"}
        save(tmp_path, document(row(value, **words), night=night), f"{night + 1:04d}_main.json")

    done = call(tmp_path)

    assert "       engine 0.31 -> 0.32\n" in done.out
    assert "    over since 2026-01-08 (0008_main.json): workload was 'old', is 'new'\n" in done.out
    assert done.out.splitlines()[-1].endswith("too few")
    assert 0 == done.code


def test_json_gives_series_and_steps(call, tmp_path):
    """In the metric's own unit and direction; what is not known is not there."""
    rows = [(value, 1.0) for value in levels((400.0, 8), (360.0, 6))]
    for night, (value, other) in enumerate(rows):
        both = [row(value, metric="output_throughput"), *([row(other)] if night < 2 else [])]
        save(tmp_path / "in", document(*both, night=night, commit="unversioned"), f"{night + 1:04d}_main.json")

    done = call(tmp_path / "in", "--json", tmp_path / "out.json")

    assert 0 == done.code
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert ([], 1) == (written["left_out"], written["schema_version"])
    throughput, ttft = written["series"]
    assert {
        "hardware_key": KEY, "test": TEST, "measurement": TEST, "metric": "output_throughput", "unit": "tokens/s",
        "higher_is_better": True,
    }.items() <= throughput.items()  # fmt: skip
    (step,) = throughput["steps"]
    assert {"at": 8, "worse": True}.items() <= step.items()
    assert (400, 360, -0.1) == pytest.approx((step["before"], step["after"], step["change"]), rel=0.05)
    night = throughput["nights"][8]
    assert {"file", "date", "value", "runs"} == night.keys()
    assert sorted(night["runs"])[1] == pytest.approx(night["value"])
    assert "steps" not in ttft
    assert "noise" not in ttft


def test_git_remembers_nights_that_were_overwritten(call, tmp_path):
    """A file that each night replaces is a series all the same."""
    repository = Repository(tmp_path / "repository")
    for night, value in enumerate(levels((0.1, 8), (0.11, 6))):
        save(repository.folder / "baselines", document(row(value)), "0001_main.json")
        repository.commit(night)

    done = call(repository.folder / "baselines", "--git", "HEAD")

    assert 0 == done.code
    assert "       between 2026-01-08 (0001_main.json) and 2026-01-09 (0001_main.json)\n" in done.out


def test_what_cannot_be_read_is_said_and_the_rest_shown(call, tmp_path):
    """With exit code 2, so that nobody takes it for the whole."""
    save_nights(tmp_path, RECOVERED)
    save(tmp_path, "{", "0030_torn.json")

    done = call(tmp_path)

    assert (2, TABLE) == (done.code, done.out)
    assert done.err.startswith(f"pytest-llmperf history: {tmp_path}/0030_torn.json is not readable JSON: ")
    assert 1 == done.err.count("\n")


@pytest.mark.parametrize(
    ("files", "arguments", "complaint"),
    [
        ({}, ["."], "has no result file: expected files such as 0001_main.json in it"),
        ({}, ["nowhere"], "nowhere is not there; give a folder of result files"),
        ({}, [".", "--git", "HEAD"], "git log in .: fatal: not a git repository"),
        ({"0001_a.json": document()}, ["."], "none of the files holds a measurement"),
        ({"0001_a.json": document(row(1.0))}, [".", "--test", "x", "--metric", "y"], "no series has the test 'x'"),
        ({"a.json": document(row(1.0), date="soon")}, ["."], "a.json cannot be put in order: its name has no number"),
        ({"0001_a.json": "{}"}, ["."], "0001_a.json is not a result file"),
        (
            {"0001_a.json": document(row(1.0))}, ["bisect", ".", "--test", "it", "--metric", "ttft_p50"],
            f"ttft_p50 of {TEST}: too few nights to tell a step in 1 night(s)",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_exit_code_2(call, tmp_path, files, arguments, complaint):
    """One sentence, and no trace back."""
    for name, content in files.items():
        save(tmp_path, content, name)

    done = call(*arguments)

    assert (2, "") == (done.code, done.out)
    assert complaint in done.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--step", "2"], "--step goes with the word bisect in front"),
        (["bisect", "."], "bisect needs --test, --metric"),
        (["bisect", "--test", "t", "--metric", "m"], "bisect takes one folder after the word bisect"),
        (["bisect", ".", "--test", "t", "--metric", "a", "--metric", "b"], "bisect takes one --metric, got a, b"),
        (["bisect", ".", "--test", "t", "--metric", "m", "--json", "x"], "--json does not go with bisect"),
        (["verdict", "x.json", "--test", "t", "--metric", "m"], "verdict needs --change"),
        (["a", "b", "--git", "HEAD"], "--git takes one folder"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["in", "--json", "nowhere/x.json"], "--json nowhere/x.json cannot be written: No such file"),
        (["bisect", "in", "--test", "test", "--metric", "ttft_p50", "--step", "3"], "expected a number from 1 to 2"),
        (["bisect", "many", "--test", "t", "--metric", "ttft_p50"], "fits several: t1 on NVIDIA"),
    ],
)
def test_mistakes_in_the_arguments_are_exit_code_3(call, tmp_path, arguments, complaint):
    """Each says what was given and what is accepted."""
    save_nights(tmp_path / "in", RECOVERED)
    save(tmp_path / "many", document(row(1.0, test="t1"), row(1.0, test="t2")), "0001_main.json")

    done = call(*arguments)

    assert 3 == done.code
    assert complaint in done.err


def test_a_whole_name_is_found_beside_longer_ones(call, tmp_path):
    """`test_it` is not ambiguous because there is a `test_it::cold`."""
    for night, value in enumerate(RECOVERED):
        both = [row(value, test="t"), row(1.0, test="t", name="cold")]
        save(tmp_path, document(*both, night=night), f"{night + 1:04d}_main.json")

    done = call("bisect", tmp_path, "--test", "t", "--metric", "ttft_p50", "--step", 1)

    assert (0, "") == (done.code, done.err)
    assert done.out.startswith("# ttft_p50 of t: 41.0 ms -> 43.1 ms (+5.2 %)\n")


@pytest.mark.parametrize(
    ("judgement", "code"),
    [
        ({"findings": [{"metric": "ttft_p50", "verdict": "REGRESSED", "interval": [0.05, 0.15]}]}, 1),
        ({"findings": [{"metric": "ttft_p50", "verdict": "PASS", "interval": [-0.05, 0.05]}]}, 0),
        ({"findings": [{"metric": "ttft_p50", "verdict": "NO_BASELINE"}]}, 125),
    ],
)
def test_a_verdict_is_an_exit_code_of_git_bisect(call, tmp_path, judgement, code):
    """Good, bad, or skip."""
    content = document(row(0.1))
    content["benchmarks"][0]["extra_info"]["llmperf"]["judgement"] = judgement
    path = save(tmp_path, content, "result.json")

    assert code == call("verdict", path, "--test", TEST, "--metric", "ttft_p50", "--change", 0.1).code
    assert 125 == call("verdict", path, "--test", "other", "--metric", "ttft_p50", "--change", 0.1).code


def test_a_result_that_is_not_there_is_skipped(call):
    """The commit could not be built or measured: neither good nor bad."""
    done = call("verdict", "result.json", "--test", TEST, "--metric", "ttft_p50", "--change", 0.1)

    assert 125 == done.code
    assert "result.json is not there; give a file" in done.err


def test_without_ruptures_a_sentence_says_how_to_get_it(call, tmp_path, monkeypatch):
    """Nothing is shown as if there were no steps."""
    monkeypatch.setitem(sys.modules, "ruptures", None)
    save_nights(tmp_path, RECOVERED)

    done = call(tmp_path)

    assert (3, "") == (done.code, done.out)
    assert "pip install 'pytest-llmperf[history]'" in done.err


SUITE = """
from pathlib import Path
import pytest
from pytest_llmperf import single_turn

@pytest.mark.llm_engine("sim", part="gh200", model="llama-3.1-8b", run_noise=0.01,
                        slow=Path(__file__).with_name("slow.txt").read_text().strip() or None)
def test_it(llm_engine, llm_perf):
    llm_perf(llm_engine, single_turn(requests=4, input_tokens=100, output_tokens=16, seed=7))
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """An environment whose `python` and `pytest-llmperf` are those of this test."""
    folder = tmp_path_factory.mktemp("bin")
    command = "-c 'import sys; from pytest_llmperf.cli import main; sys.exit(main())'"
    for name, words in (("python", ""), ("pytest-llmperf", command)):
        save(folder, f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n', name).chmod(0o755)
    # A pytest that believes to be a worker of ours records nothing.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return inherited | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def slowed(tmp_path_factory, tools):
    """A repository whose third of four commits makes the engine slower, with three nights before and three after."""
    tmp_path = tmp_path_factory.mktemp("slowed")
    repository = Repository(tmp_path / "repository")
    save(repository.folder, SUITE, "test_suite.py")
    save(repository.folder, "[pytest]\n", "pytest.ini")
    commits = []
    for number in range(4):
        save(repository.folder, f"change {number}", "notes.txt")
        save(repository.folder, "decode:+10%" if number >= 2 else "", "slow.txt")
        commits.append(repository.commit(number))
        if number in (0, 3):
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--llmperf-gate=off"]
            stored = [f"--llmperf-baselines={tmp_path}/{number}", "--llmperf-save-baseline=main"]
            command += [*stored, f"--llmperf-output={tmp_path}/out"]
            subprocess.run(command, cwd=repository.folder, env=tools, check=True, stdout=subprocess.PIPE)
            _nights_of(tmp_path / str(number) / "sim-gh200" / "0001_main.json", tmp_path / "nights", commits[-1])
    return SimpleNamespace(repository=repository, commits=commits, nights=tmp_path / "nights")


def _nights_of(result, folder, commit):
    """Three nights that differ by a fraction of a percent."""
    for factor in (0.999, 1.001, 1.0):
        content = json.loads(result.read_text(encoding="utf-8")) | {"commit_info": {"id": commit}}
        for benchmark in content["benchmarks"]:
            benchmark["stats"]["data"] = [factor * value for value in benchmark["stats"]["data"]]
        number = 1 + len(list(folder.iterdir())) if folder.is_dir() else 1
        save(folder, content, f"{number:04d}_main.json")


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("base", [(), ("--base", "slow=None")], ids=["nights", "in turn"])
def test_git_finds_the_commit_that_made_a_step(call, tmp_path, tools, slowed, base):
    """The printed script, run by a shell in a real repository, blames the one commit that made the engine slower."""
    done = call(
        "bisect", slowed.nights, "--test", "test_it", "--metric", "tpot_p50", "--checkout", slowed.repository.folder,
        "--install", "test -f slow.txt", "--options", "-p no:cacheprovider", *base,
    )  # fmt: skip
    assert (0, "") == (done.code, done.err)

    ended = subprocess.run(["sh"], input=done.out, env=tools, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert f"{slowed.commits[2]} is the first bad commit" in ended.stdout, ended.stdout + ended.stderr
    assert 0 == ended.returncode
