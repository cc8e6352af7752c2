"""Every example in the README and in docs/ does what it shows: Python runs, commands can be given."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_llmperf.cli import argument_parser

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^    ((?:pytest|pytest-llmperf|make|pip) (?:.*\\\n)*.*)$", re.MULTILINE)


class Example(NamedTuple):
    """Some lines of a page."""

    page: str
    line: int
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks():
    """Fenced blocks of all pages, with their language."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCED.finditer(text):
            yield match.group(1), Example(page.name, text[: match.start()].count("\n") + 2, match.group(2))


def commands():
    """Indented commands of all pages, continued lines joined, remarks left out."""
    for page in PAGES:
        text = FENCED.sub(lambda fence: "\n" * fence.group().count("\n"), page.read_text(encoding="utf-8"))
        for match in COMMAND.finditer(text):
            command = re.sub(r"\s*\\\n\s*", " ", match.group(1))
            yield Example(page.name, text[: match.start()].count("\n") + 1, re.split(r"\s{2,}|\s#\s", command)[0])


PYTHON = [example for language, example in blocks() if language == "python"]
NAMED = re.compile(r"# (\w+\.py)\n")
FILES = {NAMED.match(example.text)[1]: example.text for example in PYTHON if NAMED.match(example.text)}
TESTS = [example for example in PYTHON if example.text not in FILES.values()]
GIVEN = list(commands())


def test_there_is_something_to_try():
    """In the README and in all pages that show how it is done."""
    assert {"README.md", "index.md", "first-test.md", "workloads.md", "extending.md"} == {one.page for one in TESTS}
    assert {"README.md", "nightly.md", "branches.md", "gate.md", "serve.md"} <= {one.page for one in GIVEN}
    assert len(GIVEN) > 50


@pytest.fixture
def scenery(pytester):
    """The files that the examples name: conversations, facts, a trace, a module."""
    talk = [("human", "What is a cache, and why is it warm?"), ("gpt", "It remembers what was computed before.")] * 3
    talks = [{"conversations": [{"from": who, "value": f"{n} {what}"} for who, what in talk]} for n in range(600)]
    (pytester.path / "ShareGPT_V3.json").write_text(json.dumps(talks))
    facts = pytester.path / "icews14"
    facts.mkdir()
    for name in ("entity", "relation"):
        (facts / f"{name}2id.txt").write_text("".join(f"Some {name} {n}\t{n}\n" for n in range(50)))
    for name, times in (("train", range(40)), ("valid", range(40, 50)), ("test", range(50, 60))):
        rows = (f"{n % 50}\t{n % 7}\t{n * 7 % 50}\t{time}\n" for time in times for n in range(200))
        (facts / f"{name}.txt").write_text("".join(rows))
    lengths = {"input_length": 2048, "output_length": 8}
    rows = [{"timestamp": n * 500, **lengths, "hash_ids": [0, 1, 2, 3 + n]} for n in range(20)]
    (pytester.path / "conversation_trace.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, text in FILES.items():
        (pytester.path / name).write_text(text)
    return pytester


ONCE = ("--llmperf-runs", "1", "--llmperf-warmup-runs", "0")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("example", TESTS, ids=str)
def test_an_example_passes(scenery, monkeypatch, example):
    """On the simulated engine; a model is named by those that say what engine they want."""
    monkeypatch.syspath_prepend(scenery.path)
    scenery.makepyfile(test_example=example.text)
    simulated = ("--llmperf-hardware", "sim:gh200")
    if "llm_engine(" not in example.text:
        simulated = (*simulated, "--llmperf-model", "llama-3.1-8b")
    if "my_engine" in example.text:
        simulated = ()

    done = scenery.runpytest(*simulated, *ONCE, "-W", "default", "-p", "no:cacheprovider")

    outcomes = done.parseoutcomes()
    assert 0 == done.ret, done.stdout.str()
    assert example.text.count("\ndef test_") <= outcomes["passed"]
    assert "skipped" not in outcomes


def words_of(command):
    """The command's words; what a page says may be left out is given, and what comes after it is not ours."""
    words = []
    for word in shlex.split(command):
        if word in (">", "|"):
            break
        given = word.removeprefix("[")
        words.append(given if "[" in given else given.removesuffix("]"))
    return words


@pytest.mark.slow
@pytest.mark.parametrize("example", GIVEN, ids=str)
def test_a_command_can_be_given(example, pytester):
    """Its program knows the options and takes their values."""
    program, *arguments = words_of(example.text)

    CHECKS[program](arguments, pytester)


def _pytest(arguments, pytester):
    """What reads the options also checks them; the tests that are named need not be there."""
    pytester.parseconfigure(*(word for word in arguments if not word.startswith("test_")))


def _ours(arguments, pytester):
    parsed = argument_parser().parse_args(arguments)
    if parsed.command == "ab":
        _pytest(parsed.pytest, pytester)


def _make(arguments, pytester):
    del pytester
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"^{name} \?=" if is_variable else rf"^{name}:", makefile, re.MULTILINE), word


def _pip(arguments, pytester):
    del pytester
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"pytest-llmperf\[(\w+)\]", " ".join(arguments)):
        assert f"\n{extra} = [" in project


CHECKS = {"pytest": _pytest, "pytest-llmperf": _ours, "make": _make, "pip": _pip}


@pytest.mark.parametrize("command", ["pytest --llmperf-rums 3", "pytest-llmperf load", "make perfs", "pip install [x]"])
def test_a_wrong_command_would_be_noticed(command, pytester):
    """So that the test above can fail."""
    program, *arguments = words_of(command.replace("[x]", "'pytest-llmperf[x]'"))

    with pytest.raises((SystemExit, pytest.UsageError, AssertionError)):
        CHECKS[program](arguments, pytester)


def test_options_in_the_text_exist():
    """Also those that stand within sentences."""
    from pytest_llmperf.options import OPTIONS

    known = {option.flag for option in OPTIONS}
    for page in PAGES:
        for flag in re.findall(r"--llmperf-[a-z-]+[a-z]", page.read_text(encoding="utf-8")):
            assert flag in known, f"{page.name}: {flag}"


def test_pages_of_the_site_have_a_place_in_it():
    """Each page is in the navigation, once."""
    spec = {}
    exec((ROOT / "docs" / "conf.py").read_text(encoding="utf-8"), spec)
    listed = [page for pages in spec["PAGES"].values() for page in pages]

    assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem not in ("README", "index"))


NAMED_TEST = re.compile(r"`(test_\w+\.py)(?:::(\w+))?`|`make ([\w-]+)`")
FAULTS = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def faults():
    """The rows of the tables that begin with faults."""
    for table in re.findall(r"^\| fault .*?\n\n", f"{FAULTS}\n\n", re.MULTILINE | re.DOTALL):
        yield from table.splitlines()[2:-1]


def test_each_fault_names_a_test_that_is_there():
    """The table is what is tried, not what is hoped for."""
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert len(list(faults())) > 60
    for row in faults():
        named = NAMED_TEST.findall(row.split("|")[-2])
        assert named, f"no test: {row}"
        for file, test, target in named:
            if target:
                assert f"\n{target}:" in makefile, row
            else:
                assert file in files, row
                assert re.search(rf"^ *def {test or 'test'}", files[file], re.MULTILINE), f"{file}::{test}: {row}"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_site_is_built_without_a_warning(tmp_path):
    """Links lead somewhere, also within pages."""
    if shutil.which("sphinx-build") is None:
        pytest.skip("sphinx-build is not installed: pip install -e '.[docs]'")
    command = ["sphinx-build", "-q", "-W", "--keep-going", "-E", "docs", str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr
    assert (tmp_path / "verdicts.html").is_file()
