"""`pytest-llmperf import` as its users meet it."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
from foreign_files import DATA, FILES, changed, guidellm, guidellm_benchmark, places, sglang, vllm, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmperf.baselines import read
from pytest_llmperf.cli import main


def call(*arguments):
    """Run the command; returns the exit code, what it printed, and what it complained of."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["import", *map(str, arguments)])
    return SimpleNamespace(code=code, out=out.getvalue(), complaints=err.getvalue().splitlines())


def test_runs_of_one_measurement(tmp_path):
    """Three files of a tool, a value of each, read back under the hardware that was named."""
    out = tmp_path / "out.json"
    done = call(
        DATA / "vllm-1.json", DATA / "vllm-2.json",
        "-o", out, "--hardware", "NVIDIA-L4", "--name", "nightly", "--engine", "vllm",
    )  # fmt: skip

    assert (done.code, done.complaints) == (0, [])
    assert "nightly (vllm, 2 runs)\n  ttft_p50: 51.5 ms, 52.6 ms\n" in done.out
    assert done.out.endswith(f"written: {out}\n")
    (entry,) = [entry for entry in read(out).entries if entry.metric == "ttft_p50"]
    assert entry.measurement == "nightly"
    assert entry.stored_values == pytest.approx((0.0515, 0.0526), abs=1e-4)
    assert entry.comparable["engine"] == "vllm"


def test_without_words_the_names_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 0 == call(DATA / "guidellm.json").code
    names = {entry.measurement.split()[0] for entry in read(tmp_path / "imported.json").entries}
    assert names == {"guidellm::closed_loop(2)", "guidellm::closed_loop(4)"}


def test_doubts_are_printed(tmp_path):
    done = call(written(tmp_path, vllm(completed=3, failed=1)), "-o", tmp_path / "o.json")
    assert done.code == 0
    assert "  doubt: 1 of 4 requests failed" in done.out


class TestMistakes:
    def test_each_is_a_line_and_nothing_is_written(self, tmp_path):
        out = tmp_path / "out.json"
        bad = [written(tmp_path / "a", {}), written(tmp_path / "b", sglang(completed=0)), tmp_path / "none.json"]
        done = call(written(tmp_path / "c", vllm()), *bad, "-o", out)
        assert (done.code, done.out, len(done.complaints)) == (2, "", 3)
        for path in bad:
            (line,) = [line for line in done.complaints if line.startswith(f"pytest-llmperf import: {path}")]
            assert "expected" in line
        assert not out.exists()

    def test_a_result_that_was_there_stays(self, tmp_path):
        out = tmp_path / "out.json"
        out.write_text("precious")
        assert 2 == call(written(tmp_path, {}), "-o", out).code
        assert out.read_text() == "precious"

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (("--hardware", "a/b"), "--hardware 'a/b' cannot be a hardware key"),
            (("--hardware", ""), "cannot be a hardware key"),
            (("--hardware", ".."), "cannot be a hardware key"),
            (("--name", " "), "--name ' ': expected a name of printable characters"),
            (("--engine", "a\nb"), "--engine 'a\\nb': expected a name"),
        ],
    )
    def test_words(self, tmp_path, words, expected):
        done = call(written(tmp_path, vllm()), "-o", tmp_path / "o.json", *words)
        assert done.code == 3
        assert expected in done.complaints[0]

    def test_the_output_is_not_an_input(self, tmp_path):
        path = written(tmp_path, vllm())
        before = path.read_bytes()
        done = call(path, "-o", tmp_path / "." / path.name)
        assert (done.code, path.read_bytes()) == (3, before)
        assert "is one of the files to read" in done.complaints[0]

    @pytest.mark.parametrize("where", ["no/such/folder/out.json", "."])
    def test_a_place_that_cannot_be_written(self, tmp_path, where):
        done = call(written(tmp_path / "in", vllm()), "-o", tmp_path / where)
        assert (done.code, len(done.complaints)) == (3, 1)
        assert "--output" in done.complaints[0]
        assert [path.name for path in tmp_path.iterdir()] == ["in"]


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**18).map(lambda number: number * 10**300),
    st.floats(),
    st.sampled_from([5e-324, 1e-320, 1e308, 0.0, -0.0, "inf", "NaN", "\ud800", "a\nb\x1b[2J"]),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
TWO = {**FILES, "guidellm": lambda: guidellm(guidellm_benchmark(2), guidellm_benchmark(4))}
ANYWHERE = [(tool, place) for tool, make in TWO.items() for place in places(make())]
ONE_AFTER_ANOTHER = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the file is written anew each time


def usable_or_refused(path, folder):
    """Whatever stands in a file: a result that can be read back and is strict JSON, or one sentence and nothing."""
    out = folder / "out.json"
    out.unlink(missing_ok=True)
    done = call(path, "-o", out, "--hardware", "K")
    done.out.encode()
    if done.code == 0:
        assert read(out).entries
        json.loads(out.read_text(), parse_constant=pytest.fail)
        assert done.complaints == []
    else:
        assert done.code == 2
        assert len(done.complaints) == 1
        assert path.name in done.complaints[0]
        assert len(done.complaints[0]) < 600 + len(str(path))
        assert not out.exists()
    assert [left.name for left in folder.iterdir() if left.name.startswith(".draft")] == []


@pytest.mark.slow
@ONE_AFTER_ANOTHER
@given(where=st.sampled_from(ANYWHERE), value=HOSTILE)
def test_any_value_anywhere(tmp_path, where, value):
    tool, place = where
    usable_or_refused(written(tmp_path, changed(TWO[tool](), place, value)), tmp_path)


@pytest.mark.slow
@ONE_AFTER_ANOTHER
@given(tool=st.sampled_from([*FILES]), share=st.floats(0, 1))
def test_any_file_cut_off_anywhere(tmp_path, tool, share):
    path = written(tmp_path, FILES[tool]())
    text = path.read_text()
    path.write_text(text[: int(share * (len(text) - 1))])
    usable_or_refused(path, tmp_path)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
@ONE_AFTER_ANOTHER
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8"))))
def test_any_bytes(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    usable_or_refused(path, tmp_path)
