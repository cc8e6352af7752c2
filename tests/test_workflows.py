"""The workflows that ship: what they may do, and that their commands are those of this repository."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmperf.cli import argument_parser

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def tool(tmp_path):
    """Runs a tool of the dev extra; skips where it cannot be installed, which in CI it can."""

    def run(name, *arguments):
        found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if found is None:
            said = f"{name} is not installed: pip install -e '.[dev]'"
            pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)
        command = [found, *map(str, arguments)]
        environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environ)

    return run


def test_zizmor_finds_nothing(tool):
    """Permissions, pins, templates in scripts, triggers, credentials."""
    finished = tool("zizmor", "--offline", "--no-progress", ".github")

    assert 0 == finished.returncode, finished.stdout + finished.stderr
    assert "No findings to report" in finished.stdout


def test_zizmor_would_find_something(tool, tmp_path):
    """So that the test above can fail."""
    bad = tmp_path / "bad.yml"
    bad.write_text("on: push\njobs:\n  j:\n    runs-on: x\n    steps:\n      - uses: actions/checkout@v4\n")

    assert 0 != tool("zizmor", "--offline", "--no-progress", bad).returncode


@pytest.mark.slow
def test_they_follow_the_schema_of_workflows(tool):
    finished = tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)

    assert 0 == finished.returncode, finished.stdout + finished.stderr


def test_dependabot_follows_its_schema(tool):
    finished = tool("check-jsonschema", "--builtin-schema", "vendor.dependabot", ROOT / ".github" / "dependabot.yml")

    assert 0 == finished.returncode, finished.stdout + finished.stderr


def jobs(text):
    """The text of each job, by its name."""
    body = text.split("\njobs:\n", 1)[1]
    starts = [(m.group(1), m.start()) for m in re.finditer(r"^  ([\w-]+):$", body, re.MULTILINE)]
    ends = [start for _, start in starts[1:]] + [len(body)]
    return {name: body[start:end] for (name, start), end in zip(starts, ends, strict=True)}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_rights_are_given_job_by_job(path):
    """Nothing at the top, something for each job, and every action by its digest with its version beside it."""
    text = path.read_text(encoding="utf-8")

    assert "\npermissions: {}\n" in text
    assert all("    permissions:\n" in job for job in jobs(text).values())
    for used in re.findall(r"uses: (.+)", text):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_secret_meets_code_of_a_branch(path):
    """What a pull request starts has no secret and no right to write."""
    text = path.read_text(encoding="utf-8")

    assert "pull_request_target" not in text
    assert "secrets." not in text
    if re.search(r"^  pull_request:", text, re.MULTILINE):
        assert ": write" not in text
        assert "github.token" not in text


def test_the_one_that_comments_checks_out_no_branch():
    """The artifact is read by a script of the default branch; what it is about comes from the event."""
    text = (ROOT / ".github" / "workflows" / "perf-comment.yml").read_text(encoding="utf-8")

    assert "ref:" not in text
    assert "${{" not in "".join(re.findall(r"run: \|\n((?: {10}.*\n)+)", text))


def test_every_make_target_and_script_exists():
    """Of those that the workflows call."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    for target in set(re.findall(r"\bmake ([\w./-]+)", text)):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    scripts = set(re.findall(r"scripts/\w+\.py", text))
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


def given():
    """Commands of ours in the workflows, with a word in place of each variable."""
    for path in WORKFLOWS:
        text = re.sub(r"\s*\\\n\s*", " ", path.read_text(encoding="utf-8"))
        text = re.sub(r"\$\{?\w+\}?", "word", text)
        for match in re.finditer(r"(?:^|[ /])pytest-llmperf ((?:ab|doctor|baseline|compare) [^|\n]*)", text):
            yield pytest.param("pytest-llmperf", match.group(1), id=f"{path.name}: {match.group(1)[:20]}")
        for match in re.finditer(r'ARGS="([^"]*)"', text):
            yield pytest.param("pytest", match.group(1), id=f"{path.name}: pytest")


@pytest.mark.parametrize(("program", "arguments"), list(given()))
def test_the_commands_of_the_workflows_can_be_given(program, arguments, pytester):
    """A night must not find out that an option has another name."""
    words = shlex.split(arguments)

    pytester.mkdir("nightly")
    if "--llmperf-report" in words:
        pytest.importorskip("jinja2")
    if program == "pytest":
        pytester.parseconfigure(*words)
    else:
        parsed = argument_parser().parse_args(words)
        assert parsed.command == words[0]
        pytester.parseconfigure(*getattr(parsed, "pytest", ()))


def test_the_oldest_versions_are_those_that_are_allowed():
    """Or the lowest would not be tried."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.partition("\ndependencies = [\n")[2].partition("\n]\n")[0]
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', block))
    tried = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "tests" / "lowest.txt").read_text(), re.MULTILINE))

    assert allowed.keys() == tried.keys()
    assert [] == [name for name, least in allowed.items() if not f"{tried[name]}.".startswith(f"{least}.")]


def test_those_commands_were_found():
    assert {"ab", "doctor", "baseline"} <= {one.values[1].split()[0] for one in given()}
    assert "pytest" in {one.values[0] for one in given()}
