"""`pytest-llmperf compare BASE NEW` as its users meet it: exit codes, what is printed, what is refused."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from result_files import KEY, TEST, benchmark, document, plain, plain_benchmark, runs, written

from pytest_llmperf.cli import main

OK, REGRESSED, INVALID, USAGE = 0, 1, 2, 3
BASE = document(benchmark(), benchmark(runs(0.01), "output_throughput"))


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; returns the exit code, what it printed, and what it complained of."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main(["compare", *map(str, arguments)])
        except SystemExit as end:  # argparse's way to refuse
            code = end.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, lines=out.splitlines(), complaints=err.splitlines())

    return run


@pytest.fixture
def files(tmp_path):
    """`files(base, new)` writes both and returns their names."""

    def write(base, new):
        written(tmp_path / "base.json", base)
        written(tmp_path / "new.json", new)
        return "base.json", "new.json"

    return write


@pytest.fixture
def nights(tmp_path):
    """A folder of stored nights, named for its hardware."""

    def write(*documents, folder=f"baselines/{KEY}"):
        for number, content in enumerate(documents, 1):
            written(tmp_path / folder / f"{number:04d}_main.json", content)
        return folder

    return write


def scaled(factor):
    return document(benchmark(runs(0.1 * factor)), benchmark(runs(0.01 * factor), "output_throughput"))


class TestExitCode:
    """What a script sees."""

    @pytest.mark.parametrize(("factor", "code"), [(1.0, OK), (1.05, REGRESSED), (0.95, OK)])
    def test_it_is_the_verdict(self, call, files, factor, code):
        done = call(*files(BASE, scaled(factor)), "--same-night")

        assert (code, []) == (done.code, done.complaints)

    def test_one_run_each_is_inconclusive_and_says_so(self, call, files):
        """As in a session: no regression was shown, and that is not called a pass."""
        done = call(*files(document(benchmark([0.1])), document(benchmark([0.2]))))

        assert OK == done.code
        assert "1 INCONCLUSIVE" == done.lines[-1]
        assert "one run each has no spread to compare with" in done.out

    def test_what_may_not_be_compared(self, call, files):
        assert INVALID == call(*files(BASE, document(benchmark(load="poisson(1)")))).code

    def test_force_shows_changes_and_is_no_verdict(self, call, files):
        """Nothing was judged, so the code stays that of what could not be."""
        arguments = files(BASE, document(benchmark(runs(9.0), load="poisson(1)")))

        plainly, forced = call(*arguments), call(*arguments, "--force")

        assert (INVALID, INVALID) == (plainly.code, forced.code)
        assert "--force prints the changes all the same, without a verdict" in plainly.out
        assert "x90.0" in forced.out
        assert not [word for word in ("PASS", "REGRESSED") if word in forced.out]

    def test_force_changes_nothing_where_all_is_well(self, call, files):
        arguments = files(BASE, scaled(1.05))

        assert call(*arguments).out == call(*arguments, "--force").out

    @pytest.mark.parametrize(("base", "new"), [((), ()), ((benchmark(),), ()), ((), (benchmark(),))])
    def test_nothing_to_compare(self, call, files, base, new):
        done = call(*files(document(*base), document(*new)))

        assert INVALID == done.code
        assert "NOT COMPARABLE: the two have no measurement in common" in done.lines

    def test_a_measurement_that_vanished(self, call, files):
        """Losing a test must not look like passing it, unless that was meant."""
        arguments = files(document(benchmark(), benchmark(test="gone")), document(benchmark()))

        lost, meant = call(*arguments), call(*arguments, "--subset")

        assert (INVALID, OK) == (lost.code, meant.code)
        assert "MISSING: ttft_p50 of gone: only in the base (base.json)" in lost.out
        assert "MISSING" not in meant.out

    def test_a_regression_counts_more_than_what_vanished(self, call, files):
        base = document(benchmark(), benchmark(test="gone"))

        assert REGRESSED == call(*files(base, document(benchmark(runs(0.2))))).code

    def test_a_subset_of_nothing_is_no_pass(self, call, files):
        assert INVALID == call(*files(document(benchmark(test="a")), document(benchmark(test="b"))), "--subset").code

    def test_plain_files_of_pytest_benchmark(self, call, files):
        """Judged by the time of their rounds."""
        done = call(*files(plain(plain_benchmark()), plain(plain_benchmark(runs(0.2)))))

        assert REGRESSED == done.code
        assert "REGRESSED tests/test_sort.py::test_sort, against base.json (5 + 5 runs)" in done.lines

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ((), "the following arguments are required: BASE, NEW"),
            (("base.json",), "the following arguments are required: NEW"),
            (("--alpha", "0"), "argument --alpha: expected a probability from 1e-9 to 0.5, such as 0.01, got '0'"),
            (("--alpha", "nan"), "argument --alpha: expected a probability"),
            (("--alpha", "1"), "argument --alpha: expected a probability"),
            (("--detect", "0"), "argument --detect: expected a positive share such as 0.1 for 10 %, got '0'"),
            (("--detect", "10%"), "argument --detect: expected a positive share such as 0.1 for 10 %, got '10%'"),
            (
                ("--min-effect", "-0.1"),
                "argument --min-effect: expected a share from 0 to 1, such as 0.02 for 2 %, got",
            ),
            (("--night-spread", "2"), "argument --night-spread: expected a share from 0 to 1"),
            (("--nights", "0"), "argument --nights: expected a whole number of at least 1, got '0'"),
            (("--nights", "-3"), "argument --nights: expected a whole number of at least 1, got '-3'"),
            (("--rename", "h100"), "argument --rename: expected OLD=NEW, got 'h100'"),
            (("--rename", "=gh200"), "argument --rename: expected OLD=NEW, got '=gh200'"),
            (("--same-night", "--night-spread", "0.1"), "not allowed with argument --same-night"),
            (("--fast",), "unrecognized arguments: --fast"),
        ],
    )
    def test_a_mistake_in_the_arguments(self, call, files, arguments, complaint):
        """Told with what is accepted, before anything is read."""
        done = call(*(files("", "") if arguments and arguments[0].startswith("--") else ()), *arguments)

        assert (USAGE, "") == (done.code, done.out)
        assert complaint in done.complaints[-1]

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (
                ("--metric", "ttft_p5O"),
                "--metric: unknown metric 'ttft_p5O'; did you mean 'ttft_p50'? accepted: output_throughput, ttft_p50",
            ),
            (
                ("--metric", "ttft_p50", "--metric", "tpot"),
                "--metric: unknown metric 'tpot'; ",
            ),
            (("--detect", "0.05", "--min-effect", "0.05"), "--detect 0.05 must be more than --min-effect 0.05"),
        ],
    )
    def test_what_makes_no_sense_together(self, call, files, arguments, complaint):
        """A metric that no file has would be passed over in silence beside one that both have."""
        done = call(*files(BASE, BASE), *arguments)

        assert (USAGE, "") == (done.code, done.out)
        (line,) = done.complaints
        assert line.startswith(f"pytest-llmperf compare: {complaint}")

    def test_a_file_with_itself(self, call, files, tmp_path):
        """Always equal, and never what was meant; under another name, too."""
        base, _ = files(BASE, BASE)
        (tmp_path / "link.json").symlink_to(tmp_path / base)

        for new in (base, tmp_path / base, "link.json"):
            done = call(base, new)
            assert USAGE == done.code
            assert [
                f"pytest-llmperf compare: BASE and NEW are the same file, {new}; give two results"
            ] == done.complaints

    @pytest.mark.slow
    def test_a_reader_that_has_seen_enough_does_not_turn_red_green(self, files, tmp_path):
        """`compare ... | head -0`: the code is that of the verdict."""
        base, new = files(document(*(benchmark(test=f"{'t' * 500}{n}") for n in range(40))), scaled(1.0))
        written(tmp_path / new, document(*(benchmark(runs(0.2), test=f"{'t' * 500}{n}") for n in range(40))))
        read_end, write_end = os.pipe()
        os.close(read_end)
        command = "import sys; from pytest_llmperf.cli import main; sys.exit(main())"

        done = subprocess.run(
            [sys.executable, "-c", command, "compare", base, new],
            cwd=tmp_path, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        os.close(write_end)

        assert (REGRESSED, "") == (done.returncode, done.stderr)


class TestOptions:
    """What they change in the verdict."""

    def test_only_some_metrics(self, call, files):
        """The others are neither judged nor missed."""
        arguments = files(BASE, document(benchmark(), benchmark(runs(0.02), "output_throughput")))

        assert REGRESSED == call(*arguments).code
        assert OK == call(*arguments, "--metric", "ttft_p50").code

    def test_only_some_metrics_of_which_the_base_has_none(self, call, files):
        """Nothing to judge is no pass."""
        done = call(*files(document(benchmark()), document(benchmark(metric="itl_p50"))), "--metric", "itl_p50")

        assert (INVALID, f"new: itl_p50 of {TEST}: only in the new result") == (done.code, done.lines[-1])

    def test_the_same_night(self, call, files):
        """3 % between two nights say nothing, in turn they do."""
        arguments = files(BASE, scaled(1.03))

        assert (OK, REGRESSED) == (call(*arguments).code, call(*arguments, "--same-night").code)

    def test_how_much_nights_differ(self, call, files):
        arguments = files(BASE, scaled(1.03))

        assert REGRESSED == call(*arguments, "--night-spread", "0").code

    def test_what_a_pass_must_have_been_able_to_see(self, call, files):
        done = call(*files(BASE, BASE), "--same-night", "--detect", "0.001")

        assert (OK, "1 INCONCLUSIVE") == (done.code, done.lines[-1])

    def test_what_a_change_has_to_exceed(self, call, files):
        arguments = (*files(BASE, scaled(1.05)), "--same-night")

        assert (REGRESSED, OK) == (call(*arguments).code, call(*arguments, "--min-effect", "0.06").code)

    def test_the_error_rate(self, call, files):
        """What 1 % lets pass 30 % do not."""
        arguments = (*files(BASE, scaled(1.005)), "--same-night")

        assert (OK, REGRESSED) == (call(*arguments).code, call(*arguments, "--alpha", "0.3").code)

    def test_new_names(self, call, files):
        """Suggested where a test seems to have one, and taken."""
        arguments = files(document(benchmark(test="t.py::test[h100]")), document(benchmark(test="t.py::test[gh200]")))

        lost, found = call(*arguments), call(*arguments, "--rename", "h100=gh200")

        assert (INVALID, OK) == (lost.code, found.code)
        assert "; was it renamed to t.py::test[gh200]? (--rename OLD=NEW)" in lost.out


class TestFolder:
    """The nights of a folder as the base."""

    def test_all_of_them(self, call, nights, files):
        done = call(nights(BASE, BASE, BASE), files(BASE, BASE)[1])

        assert OK == done.code
        assert f"base: baselines/{KEY}/0003_main.json and 2 nights before it ({KEY})" == done.lines[0]
        assert f"PASS {TEST}, against 3 nights up to 0003_main.json (15 + 5 runs)" in done.lines

    def test_the_newest_of_them(self, call, nights, files):
        done = call(nights(scaled(9), BASE, BASE), files(BASE, BASE)[1], "--nights", "2")

        assert f"base: baselines/{KEY}/0003_main.json and 1 night before it ({KEY})" == done.lines[0]
        assert OK == done.code

    def test_a_night_is_not_held_against_itself(self, call, nights):
        """It would be a part of its own base, and more like it than it is."""
        folder = nights(BASE, BASE, scaled(1.2))

        done = call(folder, f"{folder}/0003_main.json")

        assert REGRESSED == done.code
        assert f"REGRESSED {TEST}, against 2 nights up to 0002_main.json (10 + 5 runs)" in done.lines

    def test_one_that_is_alone(self, call, nights):
        folder = nights(BASE)

        done = call(folder, f"{folder}/0001_main.json")

        assert INVALID == done.code
        assert "has no other stored result" in done.complaints[0]

    @pytest.mark.parametrize("spelling", [".", "./", "../{key}", "../{key}/"])
    def test_however_it_is_spelled(self, call, nights, files, monkeypatch, tmp_path, spelling):
        """Also from within."""
        folder = nights(BASE)
        files(BASE, BASE)
        monkeypatch.chdir(tmp_path / folder)

        assert OK == call(spelling.format(key=KEY), tmp_path / "new.json").code

    def test_it_is_not_of_one_night(self, call, nights, files):
        """`--same-night` would pool nights as if they were one."""
        done = call(nights(BASE), files(BASE, BASE)[1], "--same-night")

        assert USAGE == done.code
        assert [
            f"pytest-llmperf compare: --same-night takes two files, and baselines/{KEY} is a folder of nights"
        ] == done.complaints

    def test_it_is_no_new_result(self, call, nights, files):
        done = call(files(BASE, BASE)[0], nights(BASE))

        assert (INVALID, "") == (done.code, done.out)
        assert "is a folder; the new result is one file, such as " in done.complaints[0]

    def test_an_empty_one(self, call, files, tmp_path):
        (tmp_path / "empty").mkdir()

        done = call("empty", files(BASE, BASE)[1])

        assert INVALID == done.code
        assert "empty has no other stored result: expected files such as 0001_main.json in it" in done.complaints[0]

    def test_every_night_that_cannot_be_used_is_named(self, call, nights, files):
        """A line for each."""
        done = call(nights("", BASE, "[]"), files(BASE, BASE)[1])

        assert (INVALID, 2) == (done.code, len(done.complaints))

    def test_nights_of_other_hardware(self, call, nights, files):
        done = call(nights(document(benchmark(), key="H100"), folder="baselines/H100"), files(BASE, BASE)[1])

        assert INVALID == done.code
        assert f"  hardware was H100, is {KEY}" in done.lines


NESTED = "[" * 100_000
BAD = {
    "empty": "",
    "truncated": json.dumps(BASE)[:-30],
    "another tool's": {"results": [{"command": "sleep 1"}]},
    "a list": [BASE],
    "a number": "7",
    "nested": NESTED,
    "nested within": json.dumps(BASE).replace('"round_robin()"', "[" * 900 + "]" * 900),
    "NaN": document(benchmark([0.1, float("nan")])),
    "infinite": document(benchmark([0.1, float("inf")])),
    "negative": document(benchmark([0.1, -0.1])),
    "zero": document(benchmark([0.1, 0.0])),
    "no values": document(benchmark([])),
    "from the future": document(benchmark(), datetime="2999-01-01T00:00:00"),
    "twice": document(benchmark(), benchmark()),
    "no hardware": document(benchmark(), key=None),
    "another release's": {**BASE, "machine_info": {"llmperf": {"schema_version": 9, "hardware_key": KEY}}},
}


class TestBadInput:
    """One sentence, no traceback, never a pass."""

    @pytest.mark.parametrize("name", BAD)
    @pytest.mark.parametrize("side", ["base", "new"])
    def test_on_either_side(self, call, files, name, side):
        done = call(*(files(BAD[name], BASE) if side == "base" else files(BASE, BAD[name])))

        assert (INVALID, "", 1) == (done.code, done.out, len(done.complaints))
        assert done.complaints[0].startswith(f"pytest-llmperf compare: {side}.json")

    @pytest.mark.parametrize("name", ["none.json", "none/none.json", "x" * 5000, "new.json/none.json"])
    def test_a_file_that_is_not_there(self, call, files, name):
        _, new = files(BASE, BASE)

        for arguments in ((name, new), (new, name)):
            done = call(*arguments)
            assert (INVALID, "", 1) == (done.code, done.out, len(done.complaints))

    def test_one_that_may_not_be_read(self, call, files, monkeypatch):
        """Whoever runs these tests as root may read everything."""
        arguments = files(BASE, BASE)

        def refuse(path, *_, **__):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("pytest_llmperf.files.os.open", refuse)
        done = call(*arguments)

        assert INVALID == done.code
        assert ["pytest-llmperf compare: new.json is not readable JSON: Permission denied"] == done.complaints

    @pytest.mark.slow
    def test_names_that_the_terminal_has_no_letters_for(self, files, tmp_path):
        """They are spelled out."""
        odd = document(benchmark(test="t.py::test[\ud800 \u221e]"))
        base, new = files(odd, odd)
        command = "import sys; from pytest_llmperf.cli import main; sys.exit(main())"

        done = subprocess.run(
            [sys.executable, "-c", command, "compare", base, new],
            cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert (OK, "") == (done.returncode, done.stderr)
        assert r"PASS t.py::test[\ud800 \u221e]" in done.stdout


def places(value, path=()):
    """The path of everything within a document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


PLACES = list(places(BASE))
ODDITIES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**400)
    | st.floats()
    | st.text(max_size=5)
    | st.just([])
    | st.just({})
    | st.just([0.1, 0.2])
    | st.just({"a": {"b": 1}})
)


class TestMutations:
    """Whatever stands anywhere in a file, the command ends in order."""

    @pytest.mark.slow
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        changes=st.lists(st.tuples(st.sampled_from(PLACES), ODDITIES | st.just("gone")), min_size=1, max_size=3),
        side=st.sampled_from(["base", "new", "both"]),
        force=st.booleans(),
    )
    def test_the_only_ends_are_exit_codes(self, call, files, changes, side, force):
        """No exception, a complaint wherever nothing was printed, and green only with a verdict."""
        odd = copy.deepcopy(BASE)
        for path, value in changes:
            place = odd
            try:
                for step in path[:-1]:
                    place = place[step]
                if value == "gone":
                    del place[path[-1]]
                else:
                    place[path[-1]] = copy.deepcopy(value)
            except (KeyError, IndexError, TypeError):
                continue  # an earlier change has taken the place away
        base, new = files(BASE if side == "new" else odd, BASE if side == "base" else odd)

        done = call(base, new, *(["--force"] if force else []))

        assert done.code in (OK, REGRESSED, INVALID)
        assert (not done.out) == (len(done.complaints) == 1)
        assert done.code != OK or any(line.startswith(("PASS ", "IMPROVED ", "INCONCLUSIVE ")) for line in done.lines)
        assert done.code != REGRESSED or any(line.startswith("REGRESSED ") for line in done.lines)


GOLDEN = """\
base: base.json (NVIDIA-GH200-96GB)
new:  new.json (NVIDIA-GH200-96GB)
REGRESSED perf_tests/test_it.py::test_rounds[4], against base.json (5 + 5 runs)
  metric per run       baseline         now   change  could see  verdict
  ttft_p50               123 ms      150 ms  +22.0 %     +1.4 %  REGRESSED
      change +20.5 % .. +23.4 %, p <1e-6
  output_throughput  81.3 tok/s  81.3 tok/s   +0.0 %     -1.4 %  PASS
      change -1.2 % .. +1.2 %, p 0.5
  doubt: the engine differs: prefix_caching None -> False
  what to do: look for the change between the two builds that caused it
MISSING: ttft_p50 of t.py::test_old: only in the base (base.json); was it
    renamed to t.py::test_new? (--rename OLD=NEW)
new: ttft_p50 of t.py::test_new: only in the new result
1 REGRESSED
"""
GOLDEN_REFUSAL = """\
base: base.json (sim-gh200)
new:  new.json (NVIDIA-GH200-96GB)
NOT COMPARABLE:
  hardware was sim-gh200, is NVIDIA-GH200-96GB
  load was 'round_robin()', is 'poisson(1)' (perf_tests/test_it.py::test_rounds[4])
  engine dtype was None, is 'fp8' (perf_tests/test_it.py::test_rounds[4])
perf_tests/test_it.py::test_rounds[4]
  metric      base     new   change
  ttft_p50  123 ms  150 ms  +22.0 %
"""


class TestText:
    """What is printed, to the letter."""

    def test_a_comparison(self, call, files, monkeypatch):
        """The verdict first, a line for each metric, what else bears on it, and a line that counts."""
        monkeypatch.setenv("COLUMNS", "80")
        base = document(
            benchmark(runs(0.123)),
            benchmark(runs(0.0123), "output_throughput"),
            benchmark(test="t.py::test_old", load="x"),
        )
        new = document(
            benchmark(runs(0.15), words={"prefix_caching": False}),
            benchmark(runs(0.0123), "output_throughput", words={"prefix_caching": False}),
            benchmark(test="t.py::test_new", load="x"),
        )

        assert GOLDEN == call(*files(base, new), "--same-night").out

    def test_a_refusal(self, call, files):
        base = document(benchmark(runs(0.123)), key="sim-gh200")
        new = document(benchmark(runs(0.15), **{"load": "poisson(1)", "engine dtype": "fp8"}))

        assert GOLDEN_REFUSAL == call(*files(base, new), "--force").out

    def test_twice_the_same(self, call, files):
        arguments = files(BASE, scaled(1.1))

        assert call(*arguments).out == call(*arguments).out
