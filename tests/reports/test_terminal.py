"""What a person sees: before, while and after it is measured."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.clock import VirtualClock
from pytest_llmperf.reports import terminal, text

DATA = Path(__file__).parent / "data"

SUITE = """
    import pytest
    from pytest_llmperf import multi_round, single_turn

    LLAMA = dict(part="gh200", model="llama-3.1-8b", run_noise=0.01)

    @pytest.mark.llm_engine("sim", prefix_caching=True, **LLAMA)
    def test_cached_context(llm_engine, llm_perf):
        users = multi_round(users=6, rounds=3, context_tokens=8_000, input_tokens=64, output_tokens=16)
        cold = llm_perf(llm_engine, users, cache="cold", name="cold")
        warm = llm_perf(llm_engine, users, prefill_context=True, name="primed")
        llm_perf.ratio("gain_of_a_cached_context_over_a_cold_one_in_the_median_of_ttft", cold.ttft.p50, warm.ttft.p50)

    @pytest.mark.llm_engine("sim", **LLAMA)
    @pytest.mark.llm_gate(metric="tpot_p50", detect=0.001)
    def test_decoding(llm_engine, llm_perf):
        llm_perf(llm_engine, single_turn(requests=8, input_tokens=32, output_tokens=64))
"""


@pytest.fixture
def summary(pytester, monkeypatch):
    """Runs the suite above on another simulated night; returns the summary's lines, paths of this test taken out."""
    pytester.makepyfile(test_it=SUITE)

    def run(*arguments, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        done = pytester.runpytest("-W", "default", "--benchmark-disable-gc", *arguments)
        lines = [line.replace(str(pytester.path), "ROOT") for line in done.outlines]
        start = next(n for n, line in enumerate(lines) if line.startswith("=") and "llmperf on" in line)
        end = max(n for n, line in enumerate(lines) if line.startswith("llmperf: "))
        return [re.sub(r"\.llmperf/[0-9-]+", ".llmperf/TIME", line) for line in lines[start : end + 1]]

    return run


def as_file(name, lines):
    """Compare with the golden file of that name."""
    assert (DATA / name).read_text(encoding="utf-8").splitlines() == lines, "\n".join(lines)


NIGHT = ("--llmperf-set", "noise_seed=2")
WORSE = (*NIGHT, "--llmperf-set", "slow=prefix_cache:off")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "columns"), [("summary-80.txt", 80), ("summary-130.txt", 130)])
def test_a_regression(summary, name, columns):
    """A table for each measurement, what is doubted beside its number, and at last what to do."""
    summary("--llmperf-save-baseline", "main")

    as_file(name, summary(*WORSE, columns=columns))


@pytest.mark.slow
def test_a_first_night(summary):
    """Nothing to compare with: the last line says what to do about it, or that it is done."""
    as_file("summary-first.txt", summary("-k", "decoding"))

    assert summary("-k", "decoding", "--llmperf-save-baseline", "main")[-1] == (
        "llmperf: 1 NO_BASELINE; the next session is judged by what was stored"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (NIGHT, "llmperf: 1 INCONCLUSIVE, 3 PASS; what to do: raise --llmperf-runs, or *"),
        ((*NIGHT, "--llmperf-gate", "off"), "llmperf: 4 not judged; judge them by leaving out --llmperf-gate off*"),
        ((*NIGHT, "-k", "cached"), "llmperf: 3 PASS; nothing to do"),
    ],
)
def test_the_last_line(summary, arguments, last):
    """How many of which verdict, and what to do about the worst."""
    summary("--llmperf-save-baseline", "main")

    said = summary(*arguments)[-1]
    assert fnmatchcase(said, last), said


@pytest.mark.slow
def test_the_header_says_what_is_measured_before_it_is(pytester):
    """Hardware, engine and model, and what it is held against; nothing under -q."""
    pytester.makepyfile(test_it=SUITE)
    pytester.runpytest("-W", "default", "--llmperf-save-baseline", "main").stdout.fnmatch_lines(
        ["collected 2 items", f"llmperf: sim-gh200; sim llama-3.1-8b; no baseline in {pytester.path}/baselines"]
    )

    again = pytester.runpytest("-W", "default")
    quiet = pytester.runpytest("-W", "default", "-q")

    again.stdout.fnmatch_lines(["collected 2 items", "llmperf: sim-gh200; sim llama-3.1-8b; baseline 0001_main.json"])
    assert 2 == sum(line.startswith("llmperf: sim-gh200") for line in again.outlines)  # and above the summary
    assert 1 == sum(line.startswith("llmperf: sim-gh200") for line in quiet.outlines)


@pytest.mark.slow
def test_no_escape_code_goes_into_a_pipe(pytester):
    """Colours and the line that is rewritten are for terminals."""
    pytester.makepyfile(test_it=SUITE)

    done = pytester.runpytest_subprocess("-W", "default", "--llmperf-gate", "off")

    assert 0 == done.ret
    assert "\x1b" not in done.stdout.str() + done.stderr.str()
    assert "\r" not in done.stdout.str()


class Screen:
    """As much of pytest's reporter as is used."""

    def __init__(self, *, isatty):
        self.isatty = isatty
        self.written = []

    def write(self, what, flush=False):
        self.written.append(what)

    def write_line(self, line, **colour):
        self.written.append(f"{line}\n")


@pytest.fixture
def progress():
    """`progress(isatty=...)` makes one with a screen and a clock of its own."""

    def make(*, isatty, verbosity=0):
        screen, clock = Screen(isatty=isatty), VirtualClock()
        config = SimpleNamespace(
            pluginmanager=SimpleNamespace(get_plugin=lambda name: screen if name == "terminalreporter" else None),
            get_verbosity=lambda: verbosity,
        )
        made = terminal.Progress(config, clock)
        made.begin("test_it[4]")
        return made, screen, clock

    return make


class TestProgress:
    """A long run says that it lives, how far it is and how long it may take."""

    def test_on_a_terminal_one_line_is_rewritten(self, progress):
        said, screen, clock = progress(isatty=True)

        said("run 1 of 4", "", 0.0)
        clock.sleep(30)
        said("run 2 of 4: 5 of 10 requests, 120 tok/s", "", 0.375)
        said.clear()

        assert [
            "\r\x1b[Ktest_it[4]: run 1 of 4",
            "\r\x1b[Ktest_it[4]: run 2 of 4: 5 of 10 requests, 120 tok/s, 0:50 left",
            "\r\x1b[K",
        ] == screen.written

    def test_in_a_log_a_line_comes_now_and_then(self, progress):
        said, screen, clock = progress(isatty=False)

        for tenth in range(10):
            said("run 1 of 1", f"{tenth} of 10 requests", tenth / 10)
            clock.sleep(4)
        said.clear()

        assert [
            "\nllmperf: test_it[4]: run 1 of 1, 0 of 10 requests",
            "\nllmperf: test_it[4]: run 1 of 1, 4 of 10 requests, 0:24 left",
            "\nllmperf: test_it[4]: run 1 of 1, 8 of 10 requests, 0:08 left",
            "\n",
        ] == screen.written

    def test_quiet_is_quiet(self, progress):
        said, screen, _ = progress(isatty=True, verbosity=-1)

        said("run 1 of 4", "", 0.0)
        said.clear()

        assert [] == screen.written

    def test_the_next_measurement_has_a_time_of_its_own(self, progress):
        """What fell back is another one; a start of an engine says nothing of a rest."""
        said, screen, clock = progress(isatty=True)
        said("run 1 of 2", "", 0.0)
        clock.sleep(1000)
        said("run 2 of 2", "", 0.5)

        said("waiting for the server", "3 s")
        said("warm: run 1 of 2", "", 0.0)
        clock.sleep(10)
        said("warm: run 2 of 2", "", 0.5)

        assert ["waiting for the server, 3 s", "warm: run 1 of 2", "warm: run 2 of 2, 0:10 left"] == [
            line.partition("test_it[4]: ")[2] for line in screen.written[2:]
        ]

    @given(st.text(), st.text())
    def test_whatever_it_is_told_fits_a_line(self, test, step):
        """Of a long name there is as much as there is room; what is no text moves no cursor."""
        screen = Screen(isatty=True)
        config = SimpleNamespace(
            pluginmanager=SimpleNamespace(get_plugin=lambda name: screen if name == "terminalreporter" else None),
            get_verbosity=lambda: 0,
        )
        said = terminal.Progress(config, VirtualClock())
        said.begin(test * 9)
        said(step, "12 requests", 0.5)

        (line,) = screen.written
        assert line.startswith("\r\x1b[K")
        assert line[4:].isprintable()
        assert len(line) - 4 <= 79
        assert len(step) > 40 or "12 requests" in line or not step.isprintable()


class TestText:
    """Lines of whatever is in them."""

    def test_escape_codes_are_shown(self):
        assert r"\x1b[31mmodel\x1b[0m\nnext \u202e" == text.plain("\x1b[31mmodel\x1b[0m\nnext \u202e")

    @given(st.text())
    def test_no_line_moves_the_cursor(self, line):
        assert text.plain(line).isprintable()
        assert text.plain(line) == line or not line.isprintable()

    @given(st.lists(st.text("abc-./", min_size=1, max_size=20)), st.integers(40, 90))
    def test_folded_lines_fit_and_lose_nothing(self, words, width):
        line = "  " + " ".join(words)

        folded = text.wrapped(line, width)

        assert all(len(part) <= width for part in folded)
        assert words == " ".join(folded).split()

    def test_a_number_stays_with_its_unit(self):
        line = "  TTFT p50 15.0 ms (15.0 ms), 1,117 tok/s out, hit rate 99.1 %, of 20 requests"

        for width in range(20, 80):
            folded = text.wrapped(line, width)
            assert not [part for part in folded if part[-1].isdigit() and not part.endswith((" 20", "p50"))]
            assert line.split() == " ".join(folded).split()


def test_on_a_terminal_sentences_are_folded(monkeypatch):
    """In a log they stay whole, so that they are found."""
    long = "word " * 40

    for isatty, count in ((True, 3), (False, 1)):
        screen = Screen(isatty=isatty)
        terminal._write(screen, [long.strip()], 80, green=True)
        assert count == len(screen.written)


def test_colours_of_a_server_s_log_are_shown_as_text(pytester):
    """An engine's last words are quoted, and repaint nobody's terminal."""
    pytester.makepyfile(
        """
        from pytest_llmperf.errors import EngineDiedError

        def test_it(llm_perf):
            raise EngineDiedError("the server has ended\\n\\x1b[31mCUDA error\\x1b[0m\\x1b]0;title\\x07")
        """
    )

    done = pytester.runpytest()

    assert 1 == done.ret
    assert "\x1b" not in done.stdout.str()
    done.stdout.fnmatch_lines(
        ["EngineDiedError: the server has ended", r"\x1b[[]31mCUDA error\x1b[[]0m\x1b[]]0;title\x07"]
    )


@pytest.mark.slow
def test_the_one_line_of_a_failure_says_what_and_by_how_much(pytester):
    """In pytest's own short summary and in JUnit files there is room for no more."""
    pytester.makepyfile(test_it=SUITE)
    pytester.runpytest("-k", "decoding", "--llmperf-save-baseline", "main", "-W", "default")

    done = pytester.runpytest(*NIGHT, "--llmperf-set", "slow=decode:+15%", "-k", "decoding", "-W", "default")

    done.stdout.re_match_lines([r"FAILED test_it.py::test_decoding - REGRESSED: tpot_p50 \+1\d\.\d %"])
