"""The script that lets git find the commit behind a step, and what it is told of each commit."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nights import KEY, TEST, Repository, commit_of, document, levels, row, save, save_nights

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.history import Answer, Recipe, answer, bisection, committed_files, series_of, stored_files
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.result_rows import Entry

pytest.importorskip("ruptures", reason="no release for this Python")

SLOWER = levels((0.100, 8), (0.110, 6))
PLAIN = Recipe()


def script_of(folder, recipe=PLAIN, number=-1):
    (series,) = series_of(stored_files([folder]).files)
    return list(bisection(series, series.steps[number], folder, recipe))


def test_the_script_names_the_commits_around_the_step(tmp_path):
    """The last night of the old level is good, the first of the new one bad; each commit is built, measured, judged."""
    save_nights(tmp_path, SLOWER, version="0.32")

    script = script_of(tmp_path, Recipe(checkout=Path("/src/my engine"), install="pip install -e .", options="-x"))

    git = "git -C '/src/my engine' bisect"
    assert [
        f"{git} start",
        f"{git} bad {commit_of(8)}",
        f"{git} good {commit_of(7)}",
        f'{git} run sh "$work/step.sh" "$work"',
    ] == script[-4:]
    assert f"# ttft_p50 of {TEST}: 100 ms -> 110 ms (+10.1 %)" == script[0]
    nights = "last night before: 0008_main.json, 2026-01-08, 0.32; first night after: 0009_main.json, 2026-01-09, 0.32"
    assert f"# {nights}" in script
    assert "( pip install -e . ) || exit 125" in script
    assert (
        f"python -m pytest '{TEST}' --llmperf-gate warn --llmperf-baselines=\"$1/baselines\" -x "
        '--llmperf-output="$1/output" --benchmark-json="$1/result.json"'
    ) in script
    assert script[-8].startswith(
        f"told=$(pytest-llmperf history verdict \"$1/result.json\" --test '{TEST}' --metric ttft_p50 --change 0.10"
    )


def test_the_nights_before_the_step_are_copied_aside(tmp_path):
    """Those of its old level alone, by a shell as it is."""
    save_nights(tmp_path / "a night's", levels((0.09, 6), (0.1, 5), (0.11, 6)))

    script = script_of(tmp_path / "a night's")

    copies = [line for line in script if line.startswith(("cp ", "mkdir", "work="))]
    ended = subprocess.run(
        ["sh", "-c", "\n".join([*copies, 'cd "$work"/baselines/*; ls; cat 0001_night.json'])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *names, oldest = ended.stdout.split("\n")
    assert [f"000{number}_night.json" for number in range(1, 6)] == names
    assert commit_of(6) == json.loads(oldest)["commit_info"]["id"]


def test_nights_in_git_are_shown_by_git(tmp_path):
    """The commits are those that brought the files."""
    repository = Repository(tmp_path)
    commits = []
    for night, value in enumerate(SLOWER):
        save(tmp_path / KEY, document(row(value), commit="unversioned"), "0001_main.json")
        commits.append(repository.commit(night))
    (series,) = series_of(committed_files(tmp_path / KEY, "HEAD").files)

    script = list(bisection(series, series.steps[0], tmp_path / KEY, Recipe()))

    place = f'"$work"/baselines/{KEY}'
    assert f"git -C {tmp_path}/{KEY} show {commits[0]}:{KEY}/0001_main.json > {place}/0001_night.json" in script
    assert f"git -C . bisect good {commits[7]}" in script


def test_another_build_takes_the_place_of_the_nights(tmp_path):
    """Measured in turn with each commit; nothing is copied."""
    save_nights(tmp_path, SLOWER)

    script = script_of(tmp_path, Recipe(base=("executable=/venvs/my main/bin/python", "env={'A': '1'}")))

    (measuring,) = [line for line in script if "python -m pytest" in line]
    assert "--llmperf-base='executable=/venvs/my main/bin/python' --llmperf-base='env={'\"'\"'A" in measuring
    assert "--llmperf-baselines" not in measuring
    assert not any(line.startswith("cp ") for line in script)


def test_a_step_for_the_better_is_found_too(tmp_path):
    """Bad is then where it has been made, and the script says so."""
    save_nights(tmp_path, levels((0.11, 8), (0.1, 6)))

    script = script_of(tmp_path)

    assert '# The step is for the better: "bad" means here that it has been made.' in script
    assert any(" --change -0.0" in line for line in script)


def test_simulated_nights_are_simulated_again(tmp_path):
    """The engine is put in place as it was."""
    for night, value in enumerate(SLOWER):
        save(tmp_path, document(row(value), night=night, key="sim-4x-a100"), f"{night + 1:04d}_main.json")

    assert any(" --llmperf-hardware=sim:4x-a100 " in line for line in script_of(tmp_path))


@pytest.mark.parametrize(
    ("commit", "complaint"),
    [
        ("unversioned", "0008_main.json does not say of which commit it is: commit_info.id; with --git"),
        (commit_of(99), "0009_main.json, are of commit 6363.*: what changed is not in this repository"),
    ],
)
def test_nights_without_two_commits_cannot_be_bisected(tmp_path, commit, complaint):
    """The sentence says which nights, and what else there is."""
    for night, value in enumerate(SLOWER):
        save(tmp_path, document(row(value), night=night, commit=commit), f"{night + 1:04d}_main.json")

    with pytest.raises(BaselineError, match=complaint):
        script_of(tmp_path)


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ("echo good: x", 0),
        ("echo bad: x; exit 1", 1),
        ("echo skip: x; exit 125", 125),
        ("exit 1", 125),
        ("exit 3", 125),
    ],
)
def test_only_an_answer_is_good_or_bad(tmp_path, tool, code):
    """A tool that a commit has broken ends with 1, too, and that commit is skipped."""
    save_nights(tmp_path / "nights", SLOWER)
    script = script_of(tmp_path / "nights", Recipe(checkout=tmp_path, install="true"))
    for name, body in (("pytest-llmperf", tool), ("python", "exit 1")):
        save(tmp_path / "bin", f"#!/bin/sh\n{body}\n", name).chmod(0o755)
    step = script[script.index("cat > \"$work/step.sh\" <<'END'") + 1 : script.index("END")]

    ended = subprocess.run(
        ["sh", "-c", "\n".join(step), "sh", str(tmp_path)],
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}, capture_output=True, check=False,
    )  # fmt: skip

    assert code == ended.returncode


def test_a_commit_that_cannot_be_built_is_skipped(tmp_path):
    """Before anything is measured."""
    save_nights(tmp_path, SLOWER)
    script = script_of(tmp_path, Recipe(checkout=tmp_path, install="cd / && false"))
    step = script[script.index("cat > \"$work/step.sh\" <<'END'") + 1 : script.index("END")]

    assert 125 == subprocess.run(["sh", "-c", "\n".join(step), "sh", str(tmp_path)], check=False).returncode


def test_uncommitted_changes_are_told(tmp_path):
    """The commit is then not quite what was measured."""
    paths = save_nights(tmp_path, SLOWER)
    for path in paths[8:]:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["commit_info"]["dirty"] = True
        save(tmp_path, content, path.name)

    told = [line for line in script_of(tmp_path) if "in no commit" in line]

    assert ["# 0009_main.json was measured with changes that are in no commit: git may find another one."] == told


TTFT = Entry(
    path=Path("result.json"),
    saved_at=datetime(2026, 1, 1, tzinfo=timezone.utc).isoformat(),
    measurement=TEST,
    quantity=METRICS["ttft_p50"],
    stored_values=(0.1,),
    comparable={},
    engine_words={},
    criterion={},
)
THROUGHPUT = replace(TTFT, quantity=METRICS["output_throughput"])


def judged(entry, verdict, *interval):
    found = {"metric": entry.metric, "verdict": verdict, **({"interval": list(interval)} if interval else {})}
    return replace(entry, judgement={"verdict": verdict, "findings": [{"metric": "other", "verdict": "PASS"}, found]})


@pytest.mark.parametrize(
    ("entry", "change", "told"),
    [
        (judged(TTFT, "REGRESSED", 0.05, 0.15), 0.1, Answer.BAD),
        (judged(TTFT, "PASS", -0.02, 0.03), 0.1, Answer.GOOD),
        (judged(TTFT, "INCONCLUSIVE", -0.02, 0.03), 0.1, Answer.GOOD),
        (judged(TTFT, "PASS", -0.02, 0.07), 0.05, Answer.SKIP),
        (judged(TTFT, "INCONCLUSIVE", -0.2, 0.3), 0.1, Answer.SKIP),
        (judged(TTFT, "IMPROVED", -0.1, -0.05), 0.1, Answer.GOOD),
        (judged(TTFT, "IMPROVED", -0.1, -0.05), -0.08, Answer.BAD),
        (judged(TTFT, "REGRESSED", 0.05, 0.15), -0.08, Answer.GOOD),
        (judged(THROUGHPUT, "REGRESSED", -0.15, -0.05), -0.1, Answer.BAD),
        (judged(THROUGHPUT, "PASS", -0.03, 0.02), -0.1, Answer.GOOD),
        (judged(THROUGHPUT, "IMPROVED", 0.05, 0.15), 0.1, Answer.BAD),
        (judged(TTFT, "NO_BASELINE"), 0.1, Answer.SKIP),
        (replace(TTFT, judgement={"verdict": "INVALID_RUN"}), 0.1, Answer.SKIP),
        (TTFT, 0.1, Answer.SKIP),
        (replace(TTFT, judgement={"findings": None}), 0.1, Answer.SKIP),
        (replace(TTFT, judgement={"findings": ["x", {"metric": "ttft_p50", "interval": 3}]}), 0.1, Answer.SKIP),
        (replace(TTFT, judgement={"findings": [{"metric": "ttft_p50", "interval": ["a", 1]}]}), 0.1, Answer.SKIP),
        (replace(TTFT, judgement={"findings": [{"metric": "ttft_p50", "interval": [1]}]}), 0.1, Answer.SKIP),
    ],
)
def test_what_git_is_told(entry, change, told):
    """Bad: shown. Good: not shown, and the step would have been. Else nothing is said of the commit."""
    assert told == answer(entry, change)


@given(low=st.floats(-0.5, 0.5), width=st.floats(0, 0.5), change=st.floats(0.001, 0.5))
def test_a_commit_is_good_only_where_the_step_is_ruled_out(low, width, change):
    """Whatever the interval: one that holds the step is never good."""
    told = answer(judged(TTFT, "PASS", low, low + width), change)

    assert (told is Answer.GOOD) == (not low <= change <= low + width)
    assert told is not Answer.BAD
