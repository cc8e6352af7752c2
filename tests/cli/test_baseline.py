"""`pytest-llmperf baseline` as its users meet it."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from night_files import KEY, TEST, acknowledged, document, put, row

from pytest_llmperf.cli import main

OTHER = "perf_tests/test_it.py::test_other"
SIM = "sim-h100"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of baselines that is meant without `--baselines`, on a fixed day."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "pytest_llmperf.baselines.timestamp", lambda: datetime.fromisoformat("2026-11-21T12:00:00+00:00")
    )
    return tmp_path / "baselines"


@pytest.fixture
def run(folder, capsys):
    """One command: exit code, standard output, standard error."""

    def go(*words):
        capsys.readouterr()
        try:
            code = main(["baseline", *map(str, words)])
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


@pytest.fixture
def nights(folder):
    """Two nights of a machine and one simulated."""
    put(folder, 1, row([0.1, 0.1]), row([2000, 2000], metric="output_throughput"), day="2025-11-01")
    put(folder, 2, row([0.1, 0.1]), row([0.3], test=OTHER), name="nightly", day="2025-11-02")
    put(folder, 1, row([0.2, 0.2], simulated=True), key=SIM)
    return folder


class TestList:
    def test_by_hardware(self, run, nights):
        """How many nights, the newest, what they hold, and whether they were measured at all."""
        code, out, err = run("list")

        assert (0, "") == (code, err)
        assert [line.split() for line in out.splitlines()] == [
            ["hardware", "key", "results", "nights", "newest", "date", "tests", "metrics"],
            [KEY, "measured", "2", "0002_nightly.json", "2025-11-02", "2", "ttft_p50,", "output_throughput"],
            [SIM, "simulated", "1", "0001_main.json", "-", "1", "ttft_p50"],
        ]

    def test_night_by_night(self, run, nights):
        """Newest first, one hardware only."""
        code, out, _ = run("list", KEY)

        assert 0 == code
        assert SIM not in out
        assert [line.split()[:3] for line in out.splitlines()[-2:]] == [
            ["0002_nightly.json", "2025-11-02", "2"],
            ["0001_main.json", "2025-11-01", "1"],
        ]

    def test_of_another_folder(self, run, nights):
        nights.rename(nights.parent / "elsewhere")

        assert KEY in run("list", "--baselines", "elsewhere")[1]
        assert (0, "nothing is stored in baselines\n", "") == run("list")

    def test_a_file_that_cannot_be_used(self, run, nights):
        """Each is named; the exit code says that nothing was told."""
        (nights / KEY / "0003_main.json").write_text("no")
        acknowledged(nights, {"since": 0}, key=SIM)

        code, out, err = run("list", KEY)
        other = run("list", SIM)

        assert (2, "") == (code, out)
        assert err.startswith(f"pytest-llmperf baseline list: baselines/{KEY}/0003_main.json is not readable JSON")
        assert 2 == other[0]
        assert "acknowledged.json, entry 1: since is 0" in other[2]


class TestShow:
    def test_levels_and_what_is_not_known_yet(self, run, nights):
        """In the metric's own unit; a dash where there is no number."""
        code, out, _ = run("show", KEY)

        assert 0 == code
        lines = [" ".join(line.split()) for line in out.splitlines()]
        assert lines == [
            OTHER,
            "metric level nights runs nights differ runs differ newest",
            "ttft_p50 300 ms 1 1 - - 0002_nightly.json",
            "ttft_p50: by how much nights differ is not known yet; that takes 4 more nights of at least 2 runs",
            "ttft_p50: by how much runs differ is not known; no night has 2 of them",
            TEST,
            "metric level nights runs nights differ runs differ newest",
            "ttft_p50 100 ms 2 4 - 0.0 % 0002_nightly.json",
            "output_throughput 2,000 tok/s 1 2 - 0.0 % 0001_main.json",
            "ttft_p50: by how much nights differ is not known yet; that takes 4 more nights of at least 2 runs",
            "output_throughput: by how much nights differ is not known yet; "
            "that takes 5 more nights of at least 2 runs",
        ]

    def test_the_spread_between_nights_once_it_is_known(self, run, folder):
        """From six nights on; it is shared by all tests of the metric, also by one that is new."""
        for night in range(1, 7):
            level = 0.1 * (1.05 if night % 2 else 1)
            put(folder, night, row([level, level * 1.001]), *([row([0.3, 0.3], test=OTHER)] if night == 6 else []))

        _, out, _ = run("show", KEY)

        of_other, of_test = [line.split() for line in out.splitlines() if "ttft_p50" in line]
        assert ["1", "2", "2.7", "%", "0.0", "%"] == of_other[3:9]
        assert ["6", "12", "2.7", "%", "0.1", "%"] == of_test[3:9]
        assert "not known" not in out

    @pytest.mark.parametrize(
        ("words", "shown"),
        [
            ((OTHER,), {OTHER}),
            (("*rounds[*]",), {TEST}),
            (("*", "--metric", "output_throughput"), {TEST}),
            (("*", "--metric", "output_throughput", "--metric", "ttft_p50"), {TEST, OTHER}),
        ],
    )
    def test_only_some(self, run, nights, words, shown):
        _, out, _ = run("show", KEY, *words)

        assert shown == {line for line in out.splitlines() if not line.startswith(" ")}

    def test_simulated_nights_do_not_differ(self, run, nights):
        """They are told not to, however many there are and whatever they hold."""
        for night in range(1, 8):
            put(nights, night, row([0.1 * night, 0.1 * night], simulated=True), key=SIM)

        _, out, _ = run("show", SIM)

        assert "7    14              -        0.0 %" in out
        assert "ttft_p50: simulated nights are taken not to differ" in out
        assert "not known" not in out

    def test_the_level_is_the_expected_one(self, run, nights):
        """With what is accepted of it."""
        acknowledged(nights, {"change": 0.5, "since": 3})

        _, out, _ = run("show", KEY, TEST)

        assert "150 ms" in out
        assert "  ttft_p50: an accepted change of +50.0 % is in the baseline until 2026-12-31: safer sampling" in out

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (("NVIDIA-GH200-96",), f"unknown hardware key 'NVIDIA-GH200-96'; did you mean '{KEY}'?"),
            ((KEY, TEST[:-3]), f"no stored test of {KEY} is {TEST[:-3]!r}; did you mean {TEST!r}?"),
            ((KEY, OTHER, "--metric", "output_throughput"), "unknown metric 'output_throughput'; accepted: ttft_p50"),
        ],
    )
    def test_what_is_not_stored(self, run, nights, words, complaint):
        """What was probably meant is named."""
        code, out, err = run("show", *words)

        assert (3, "") == (code, out)
        assert err.startswith(f"pytest-llmperf baseline show: {complaint}")

    def test_an_empty_folder(self, run):
        code, _, err = run("show", KEY)

        assert 3 == code
        assert "nothing is stored in baselines; store a night with pytest --llmperf-save-baseline NAME" in err


class TestSave:
    def test_a_result_becomes_the_next_night(self, run, nights, tmp_path):
        """What is left out is told below it."""
        (tmp_path / "out.json").write_text(
            json.dumps(document(row([0.2], verdict="REGRESSED"), row([0.3], test=OTHER)))
        )

        assert (
            0,
            f"stored: out.json as baselines/{KEY}/0003_pr-7.json (1 test)\n"
            f"  left out: ttft_p50 of {TEST} is REGRESSED\n",
            "",
        ) == run("save", "out.json", "--name", "pr-7")
        assert f"there already: out.json is baselines/{KEY}/0003_pr-7.json" in run("save", "out.json", "--name", "x")[1]

    def test_an_accepted_regression_is_stored(self, run, folder, tmp_path):
        (tmp_path / "out.json").write_text(json.dumps(document(row([0.2], verdict="REGRESSED"))))

        refused = run("save", "out.json", "--name", "main")
        stored = run("save", "out.json", "--name", "main", "--accept-regressed")

        assert (2, "") == refused[:2]
        assert "--accept-regressed stores what regressed as well" in refused[2]
        assert (0, f"stored: out.json as baselines/{KEY}/0001_main.json (1 test)\n", "") == stored

    def test_a_name_that_cannot_be_one(self, run, folder):
        code, _, err = run("save", "out.json", "--name", "a/b")

        assert (3, False) == (code, folder.exists())
        assert "'a/b' cannot name a baseline" in err

    def test_a_file_where_the_folder_should_be(self, run, folder, tmp_path):
        (tmp_path / "out.json").write_text(json.dumps(document(row([0.2]))))
        folder.write_text("in the way")

        code, _, err = run("save", "out.json", "--name", "main")

        assert 2 == code
        assert err.startswith("pytest-llmperf baseline save: baselines")


class TestPrune:
    def test_the_oldest_go(self, run, nights):
        """After they were only named; the others and what is accepted stay."""
        acknowledged(nights, {})

        dry = run("prune", KEY, "--keep", "1", "--dry-run")
        assert (0, f"would remove: baselines/{KEY}/0001_main.json\n", "") == dry
        assert (nights / KEY / "0001_main.json").exists()
        assert (0, f"removed: baselines/{KEY}/0001_main.json\n", "") == run("prune", KEY, "--keep", "1")
        assert {"0002_nightly.json", "acknowledged.json"} == {path.name for path in (nights / KEY).iterdir()}
        assert (0, f"nothing to remove: 1 night of {KEY}\n", "") == run("prune", KEY, "--keep", "1")

    @pytest.mark.parametrize("keep", ["0", "-1", "all", "1.5", "٣", "9" * 5000])
    def test_a_number_that_is_none(self, run, nights, keep):
        """At least the newest night stays."""
        code, _, err = run("prune", KEY, f"--keep={keep}")

        assert 3 == code
        assert "--keep: expected a whole number of at least 1, got" in err
        assert 2 == len(list((nights / KEY).iterdir()))


class TestPromote:
    def test_the_nights_of_a_pull_request(self, run, nights, tmp_path):
        """What is new joins, what is known does not, and what is accepted there is told."""
        put(tmp_path / "pr", 1, row([0.1, 0.1]), row([2000, 2000], metric="output_throughput"))
        put(tmp_path / "pr", 2, row([0.7]), name="pr-7")
        acknowledged(tmp_path / "pr", {})

        code, out, _ = run("promote", "pr")

        assert 0 == code
        assert out.splitlines() == [
            f"there already: pr/{KEY}/0001_main.json is baselines/{KEY}/0001_main.json",
            f"stored: pr/{KEY}/0002_pr-7.json as baselines/{KEY}/0003_pr-7.json (1 test)",
            f"left behind: pr/{KEY}/acknowledged.json, as its nights have other numbers here",
        ]

    def test_only_those_of_a_name(self, run, nights, tmp_path):
        put(tmp_path / "pr", 1, row([0.9]))
        put(tmp_path / "pr", 2, row([0.7]), name="pr-7")

        _, out, _ = run("promote", "pr", "--only", "pr-7")

        assert f"stored: pr/{KEY}/0002_pr-7.json as baselines/{KEY}/0003_pr-7.json (1 test)\n" == out

    def test_a_folder_that_is_not_there(self, run, nights):
        code, _, err = run("promote", "nowhere")

        assert (
            3,
            "pytest-llmperf baseline promote: nowhere is not a folder; give one with nights by hardware key\n",
        ) == (
            code,
            err,
        )


GIVEN = {
    "--metric": "ttft_p50",
    "--change": "+8%",
    "--reason": "safer sampling",
    "--expires": "2026-12-31",
}


def words(**changed):
    """The options of an acknowledgement, some of them changed or left out (None)."""
    given = {**GIVEN, **{f"--{name}": value for name, value in changed.items()}}
    return [f"{option}={value}" for option, value in given.items() if value is not None]


class TestAcknowledge:
    def test_what_is_accepted_is_on_file(self, run, nights):
        """From the next night on, unless it is said."""
        code, out, err = run("acknowledge", KEY, TEST, *words(reason=" safer \n sampling"))

        assert (0, "") == (code, err)
        assert out.splitlines() == [
            f"accepted in baselines/{KEY}/acknowledged.json, for 1 test since night 0003",
            "  ttft_p50: an accepted change of +8.0 % is in the baseline until 2026-12-31: safer sampling",
        ]
        assert [{"test": TEST, "metric": "ttft_p50", "change": 0.08, "reason": "safer sampling", "since": 3}] == [
            {name: value for name, value in entry.items() if name != "expires"}
            for entry in json.loads((nights / KEY / "acknowledged.json").read_text())
        ]

    def test_all_tests_and_since_when(self, run, nights):
        _, out, _ = run("acknowledge", KEY, "perf_tests/*", *words(since="2"))

        assert "for 2 tests since night 0002" in out

    def test_the_last_that_is_allowed(self, run, nights):
        """The next night by its number, and today as the last day."""
        _, out, _ = run("acknowledge", KEY, TEST, *words(since="3", expires="2026-11-21"))

        assert "since night 0003" in out
        assert "is in the baseline until 2026-11-21" in out

    @pytest.mark.parametrize(
        ("text", "share"), [("8%", 0.08), ("-5 %", -0.05), ("+8.3%", 0.083), ("+150%", 1.5), (" +0.1% ", 0.001)]
    )
    def test_a_change_is_read_to_its_last_digit(self, run, nights, text, share):
        run("acknowledge", KEY, TEST, *words(change=text))

        (entry,) = json.loads((nights / KEY / "acknowledged.json").read_text())
        assert share == entry["change"]

    @pytest.mark.parametrize(
        ("changed", "complaint"),
        [
            ({"change": "0.08"}, "--change: expected a change in percent such as +8% or -5%, above -100%"),
            ({"change": "+0%"}, "--change: expected a change in percent"),
            ({"change": "-100%"}, "--change: expected a change in percent"),
            ({"change": "1e2%"}, "--change: expected a change in percent"),
            ({"change": "9" * 400 + "%"}, "--change: expected a change in percent"),
            ({"expires": "2026-11-20"}, "--expires: 2026-11-20 is over"),
            ({"expires": "tomorrow"}, "--expires: expected a day such as 2026-12-31, got 'tomorrow'"),
            ({"reason": " "}, "--reason: expected a sentence on why the change is accepted"),
            ({"reason": "WHY"}, "--reason: WHY stands for your own sentence"),
            ({"metric": "ttft_p99"}, "unknown metric 'ttft_p99'; did you mean 'ttft_p50'?"),
            ({"since": "4"}, "--since 4: the next night will be 0003"),
            ({"since": "0"}, "--since: expected a whole number of at least 1"),
            ({"reason": None}, "missing: --reason; as in acknowledge KEY TEST --metric ttft_p50"),
        ],
    )
    def test_a_mistake(self, run, nights, changed, complaint):
        """Nothing is written."""
        code, out, err = run("acknowledge", KEY, TEST, *words(**changed))

        assert (3, "") == (code, out)
        assert err.startswith(f"pytest-llmperf baseline acknowledge: {complaint}")
        assert not (nights / KEY / "acknowledged.json").exists()

    def test_less_of_a_throughput_is_slower(self, run, nights):
        """Its sign is the report's own, and a dash begins no option."""
        given = [word for word in words(metric="output_throughput", change=None) if word]
        code, out, err = run("acknowledge", KEY, TEST, *given, "--change", "-7.4%")

        assert (0, "") == (code, err)
        (entry,) = json.loads((nights / KEY / "acknowledged.json").read_text())
        assert -0.074 == entry["change"]
        assert "for the better" not in out

    @pytest.mark.parametrize(
        ("metric", "change", "slower"), [("output_throughput", "+7.4%", "-7.4%"), ("ttft_p50", "-8%", "+8%")]
    )
    def test_a_change_for_the_better_is_said_to_be_one(self, run, nights, metric, change, slower):
        """It is accepted, and may have been a slip of the pen."""
        code, out, _ = run("acknowledge", KEY, TEST, *words(metric=metric, change=change))

        assert 0 == code
        assert f"  that is for the better: a slowdown is --change {slower}; if that was meant," in out

    def test_all_mistakes_at_once(self, run, nights):
        _, _, err = run("acknowledge", KEY, "another", *words(change="8", expires="8", reason="", since="x"))

        assert 5 == len(err.splitlines())

    def test_the_same_twice(self, run, nights):
        """Two steps at one night are one."""
        run("acknowledge", KEY, TEST, *words())
        before = (nights / KEY / "acknowledged.json").read_bytes()

        code, _, err = run("acknowledge", KEY, TEST, *words(change="+3%"))

        assert (3, before) == (code, (nights / KEY / "acknowledged.json").read_bytes())
        assert f"a change of ttft_p50 of {TEST} since night 0003 is accepted already; take it back" in err

    def test_listed_and_taken_back(self, run, nights):
        """By the number in the list, which is the file's order; the last leaves no file."""
        run("acknowledge", KEY, TEST, *words())
        run("acknowledge", KEY, TEST, *words(metric="output_throughput", change="-5%"))
        run("acknowledge", SIM, "*", *words())

        assert run("acknowledge", "--list")[1].splitlines() == [
            f"{KEY} 1: {TEST}, since night 0003",
            "  output_throughput: an accepted change of -5.0 % is in the baseline until 2026-12-31: safer sampling",
            f"{KEY} 2: {TEST}, since night 0003",
            "  ttft_p50: an accepted change of +8.0 % is in the baseline until 2026-12-31: safer sampling",
            f"{SIM} 1: *, since night 0002",
            "  ttft_p50: an accepted change of +8.0 % is in the baseline until 2026-12-31: safer sampling",
        ]
        assert (3, "") == run("acknowledge", KEY, "--remove", "3")[:2]
        taken = run("acknowledge", KEY, "--remove", "1")
        assert (0, f"taken back in baselines/{KEY}/acknowledged.json: {TEST}, output_throughput -5.0 %\n", "") == taken
        assert 2 == len(run("acknowledge", KEY, "--list")[1].splitlines())
        run("acknowledge", KEY, "--remove", "1")
        assert not (nights / KEY / "acknowledged.json").exists()
        assert (0, "nothing is accepted\n", "") == run("acknowledge", KEY, "--list")

    @pytest.mark.parametrize(
        ("given", "complaint"),
        [
            (("--remove", "1"), "KEY is missing"),
            ((KEY, TEST, "--remove", "1"), "--remove goes without TEST"),
            ((KEY, "--list", "--remove", "1", "--metric", "x"), "--list goes without --remove, --metric"),
            ((), "missing: KEY, TEST, --metric, --change, --reason, --expires"),
        ],
    )
    def test_words_that_do_not_go_together(self, run, nights, given, complaint):
        code, _, err = run("acknowledge", *given)

        assert 3 == code
        assert complaint in err


SESSION = """
import pytest
from pytest_llmperf import single_turn

@pytest.mark.llm_engine("sim", part="gh200", model="llama-3.1-8b")
def test_it(llm_engine, llm_perf):
    llm_perf(llm_engine, single_turn(requests=2, input_tokens=100, output_tokens=8, seed=7))
"""

# Of the plugins that are installed here, these sessions need two; loading the rest takes longer than a session.
PLUGINS = ("-p", "pytest_benchmark.plugin", "-p", "pytest_llmperf.plugin")


@pytest.mark.slow
def test_an_accepted_slowdown_in_sessions(pytester, run, monkeypatch):
    """A session fails, says what to do, passes once that is done, and fails again when it is over."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_it=SESSION)

    def session(*more):
        return pytester.runpytest_inprocess(*PLUGINS, "-p", "no:cacheprovider", "-W", "default", *more)

    monkeypatch.chdir(pytester.path)
    session("--llmperf-save-baseline", "main").assert_outcomes(passed=1)
    slow = ("--llmperf-set", "slow=decode:+8%", "--benchmark-json", "out.json")
    failed = session(*slow)
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(["*what to do: *if it is accepted, say so until a day with pytest-llmperf baseline*"])

    for metric, change in (("tpot_p50", "+8%"), ("output_throughput", "-7%")):
        options = words(metric=metric, change=change)
        assert 0 == run("acknowledge", "sim-gh200", "*", *options)[0]

    passed = session(*slow, "-rA")
    passed.assert_outcomes(passed=1)
    passed.stdout.fnmatch_lines(["*doubt: tpot_p50: an accepted change of +8.0 % is in the baseline until*sampling"])
    session("--llmperf-set", "slow=decode:+20%").assert_outcomes(failed=1)
    assert 0 == run("save", "out.json", "--name", "main")[0]
    session(*slow).assert_outcomes(passed=1)
    monkeypatch.setattr(
        "pytest_llmperf.baselines.timestamp", lambda: datetime.fromisoformat("2027-01-01T00:00:00+00:00")
    )
    over = session(*slow)
    over.assert_outcomes(failed=1)
    over.stdout.fnmatch_lines(["*doubt: tpot_p50: an accepted change of +8.0 % expired on 2026-12-31,*"])


def test_a_wrong_file_stops_a_session_before_it_starts(pytester, monkeypatch):
    """A usage error with the place, like any stored file that cannot be used."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_it=SESSION)
    acknowledged(pytester.path / "baselines", {"change": "8 %"}, key="sim-gh200")

    result = pytester.runpytest_inprocess(*PLUGINS)

    assert 4 == result.ret
    result.stderr.fnmatch_lines(["*acknowledged.json, entry 1: change is '8 %', expected a share above -1*"])
