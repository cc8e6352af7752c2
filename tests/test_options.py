"""Options: the command line, ini twins, and every mistake at once."""

from __future__ import annotations

import pytest

from pytest_llmperf.baselines import NIGHTS
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.gate import ALPHA, NIGHT_SPREAD
from pytest_llmperf.option_values import LOOKS, Budget, budget
from pytest_llmperf.options import OPTIONS, read_options


@pytest.fixture
def run(pytester):
    """A pytest run of one test that does not measure."""

    def start(*arguments):
        pytester.makepyfile("def test_plain():\n    pass\n")
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)

    return start


@pytest.mark.slow
def test_every_option_is_in_the_help_with_its_ini_twin(run):
    """`pytest --help` shows each option and each ini setting."""
    text = run("--help").stdout.str()

    assert [] == [option.flag for option in OPTIONS if option.flag not in text]
    assert [] == [option.key for option in OPTIONS if option.key not in text]


def test_all_mistakes_are_reported_at_once(run):
    """Every wrong value is named with what is accepted; nothing runs."""
    result = run(
        *("--llmperf-runs", "0", "--llmperf-engine", "vlm", "--llmperf-hardware", "NVIDIA-H1000"),
        *("--llmperf-set", "prefix_cachin=false", "--llmperf-set", "nonsense", "--llmperf-timeout", "soon"),
        *("--llmperf-save-baseline", "../main", "--llmperf-url", "localhost:8000"),
        *("--llmperf-workers", "many", "--llmperf-request-timeout", "0"),
    )

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines_random(
        [
            "*--llmperf-runs: expected a whole number of at least 1, auto, auto:N for N runs or auto:Nmin*got '0'",
            "*--llmperf-engine: unknown engine 'vlm'; did you mean 'vllm'? accepted: fleet, openai, *, vllm",
            "*--llmperf-hardware: unknown hardware key 'NVIDIA-H1000'; accepted: *NVIDIA-H200*",
            "*--llmperf-set: unknown word 'prefix_cachin'; did you mean 'prefix_caching'? accepted: *",
            "*--llmperf-set 'nonsense': expected WORD=VALUE*",
            "*--llmperf-timeout: expected a positive number of seconds, got 'soon'",
            "*--llmperf-request-timeout: expected a positive number of seconds, got '0'",
            "*--llmperf-workers: expected a number of processes from 1 to 256, or ray://..., got 'many'",
            "*--llmperf-save-baseline: '../main' cannot name a baseline*",
            "*--llmperf-url: not a server's URL: 'localhost:8000'*",
        ]
    )


def test_an_ini_setting_is_checked_like_its_option(pytester, run):
    """A wrong ini value gives the option's own message."""
    pytester.makeini("[pytest]\nllmperf_runs = many\nllmperf_gate = harsh\n")

    result = run()

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines_random(
        ["*--llmperf-runs: *got 'many'", "*--llmperf-gate: unknown mode 'harsh'; accepted: off, warn, fail, strict"]
    )


@pytest.mark.slow
def test_the_command_line_wins_over_the_ini_file(pytester):
    """An option given twice has the value of the command line; folders are relative to their source."""
    pytester.makeini("[pytest]\nllmperf_runs = 7\nllmperf_warmup_runs = 0\nllmperf_baselines = stored\n")

    options = read_options(pytester.parseconfig("--llmperf-runs", "3"), environ={})

    assert (Budget((3,)), 0) == (options.runs, options.warmup_runs)
    assert pytester.path / "stored" == options.baselines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("1", 1),
        ("256", 256),
        ("ray://auto", "ray://auto"),
        ("ray://10.0.0.7:10001", "ray://10.0.0.7:10001"),
    ],
)
def test_workers_are_a_number_of_processes_or_a_ray_cluster(pytester, given, expected):
    """Here on the command line, there in the ini file."""
    by_option = read_options(pytester.parseconfig("--llmperf-workers", given), environ={})
    pytester.makeini(f"[pytest]\nllmperf_workers = {given}\n")
    by_ini = read_options(pytester.parseconfig(), environ={})

    assert (expected, expected) == (by_option.workers, by_ini.workers)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["0", "-1", "257", "1.5", "two", "ray://", "ray:auto", "auto", "http://head:10001"])
def test_what_is_neither_is_refused(pytester, given):
    """The error says what is accepted."""
    from pytest_llmperf.errors import ConfigurationError

    with pytest.raises(ConfigurationError) as caught:
        read_options(pytester.parseconfig(f"--llmperf-workers={given}"), environ={})

    expected = f"--llmperf-workers: expected a number of processes from 1 to 256, or ray://..., got {given!r}"
    assert (expected,) == caught.value.problems


def test_a_server_may_take_so_long(pytester):
    """Over a byte, over a request, over its start: three limits with a default each."""
    default = read_options(pytester.parseconfig(), environ={})
    given = read_options(
        pytester.parseconfig(
            *("--llmperf-timeout", "0.5", "--llmperf-request-timeout", "7200", "--llmperf-start-timeout", "60")
        ),
        environ={},
    )

    assert (300.0, 3600.0, 900.0) == (default.timeout_s, default.request_timeout_s, default.start_timeout_s)
    assert (0.5, 7200.0, 60.0) == (given.timeout_s, given.request_timeout_s, given.start_timeout_s)
    assert 1 == default.workers


@pytest.mark.parametrize(("given", "hz"), [("0.5", 0.5), ("100", 100.0), ("off", None)])
def test_telemetry_has_a_rate_or_is_off(pytester, given, hz):
    """Ten samples a second unless something else is said, on the command line or in the ini file."""
    pytester.makeini(f"[pytest]\nllmperf_telemetry = {given}\n")

    assert read_options(pytester.parseconfig("-c", "/dev/null"), environ={}).telemetry_hz == 10.0
    assert read_options(pytester.parseconfig(), environ={}).telemetry_hz == hz
    assert read_options(pytester.parseconfig("--llmperf-telemetry", "25"), environ={}).telemetry_hz == 25.0


@pytest.mark.parametrize("given", ["0", "0.05", "101", "inf", "nan", "on", ""])
def test_another_rate_of_telemetry_is_a_mistake(pytester, given):
    """It says what is accepted."""
    accepted = "a number of samples per second from 0.1 to 100, or off"
    with pytest.raises(ConfigurationError, match=f"--llmperf-telemetry: expected {accepted}, got"):
        read_options(pytester.parseconfig(f"--llmperf-telemetry={given}"), environ={})


@pytest.mark.parametrize("given", ["0", "-3", "inf", "nan", "soon", ""])
@pytest.mark.parametrize("name", ["timeout", "request-timeout", "start-timeout"])
def test_a_limit_is_a_positive_number_of_seconds(pytester, name, given):
    """None of them can be switched off."""
    from pytest_llmperf.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match=f"--llmperf-{name}: expected a positive number of seconds, got"):
        read_options(pytester.parseconfig(f"--llmperf-{name}={given}"), environ={})


def test_words_are_python_or_json_literals_or_text(pytester):
    """`--llmperf-set` takes numbers, booleans and lists as one would write them."""
    words = ["prefix_caching=false", "kv_offload_gib=1.5", "dtype=float16", "args=['--a', 'b']", "tensor_parallel=2"]

    options = read_options(
        pytester.parseconfig(*(part for word in words for part in ("--llmperf-set", word))), environ={}
    )

    expected = {"prefix_caching": False, "kv_offload_gib": 1.5, "dtype": "float16", "args": ["--a", "b"]}
    assert expected | {"tensor_parallel": 2} == options.overrides


def test_the_api_key_is_read_from_the_environment_and_not_shown(pytester):
    """The key reaches the options, and neither their repr nor a log."""
    options = read_options(pytester.parseconfig(), environ={"LLMPERF_API_KEY": "s3cret"})

    assert "s3cret" == options.api_key
    assert "s3cret" not in repr(options)


@pytest.mark.parametrize(("given", "kept"), [(" s3cret\n", "s3cret"), ("  ", None)])
def test_the_api_key_loses_its_margins(pytester, given, kept):
    """White space around the key, as files and secrets managers leave it, is no part of it."""
    assert kept == read_options(pytester.parseconfig(), environ={"LLMPERF_API_KEY": given}).api_key


def test_an_unusable_api_key_is_refused_unquoted(pytester):
    """A key that fits into no header is a mistake, and is not shown."""
    from pytest_llmperf.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="LLMPERF_API_KEY holds characters that no key has") as caught:
        read_options(pytester.parseconfig(), environ={"LLMPERF_API_KEY": "s3cret\r\nX: y"})

    assert "s3cret" not in str(caught.value)


def test_a_url_goes_with_the_openai_engine_only(run):
    """A URL for another kind of engine is refused."""
    result = run("--llmperf-url", "http://localhost:1", "--llmperf-engine", "vllm")

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(["*--llmperf-url goes with the engine openai*"])


def test_the_gate_has_its_defaults_once(pytester):
    """Options import nothing, so their defaults stand there again; they are the gate's own."""
    options = read_options(pytester.parseconfig(), environ={})

    assert (ALPHA, NIGHT_SPREAD, NIGHTS) == (options.alpha, options.night_spread, options.nights)


@pytest.mark.parametrize(
    ("option", "given", "expected"),
    [
        ("alpha", "0", "a probability from 1e-9 to 0.5"),
        ("alpha", "nan", "a probability from 1e-9 to 0.5"),
        ("night-spread", "-0.1", "a share from 0 to 1"),
        ("night-spread", "2%", "a share from 0 to 1"),
        ("nights", "0", "a whole number of at least 1"),
    ],
)
def test_numbers_of_the_gate_have_bounds(pytester, option, given, expected):
    """What cannot be a probability, a share or a count is refused with what would be."""
    with pytest.raises(ConfigurationError, match=f"--llmperf-{option}: expected {expected}.*got '{given}'"):
        read_options(pytester.parseconfig(f"--llmperf-{option}", given), environ={})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("5", Budget((5,))),
        ("auto", Budget(LOOKS)),
        ("auto:12", Budget((3, 5, 8, 12))),
        ("auto:6", Budget((3, 5, 6))),
        ("auto:2", Budget((2,))),
        ("auto:30", Budget((*LOOKS, 30))),
        ("auto:15min", Budget(LOOKS, minutes=15.0)),
    ],
)
def test_a_budget_of_runs(given, expected):
    """A number is that many; auto looks in between, up to a number of runs or for a time."""
    assert expected == budget(given)


@pytest.mark.parametrize(
    "given", ["0", "-1", "", "auto:", "auto:0", "auto:0min", "auto:1.5min", "auto5", "five", "5min"]
)
def test_what_is_no_budget_is_refused(given):
    """The sentence says which forms there are."""
    with pytest.raises(ConfigurationError, match="auto:N for N runs or auto:Nmin for N minutes, got "):
        budget(given)
