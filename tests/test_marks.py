"""Marks: what they mean, how options change them, and every mistake at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_llmperf import marks
from pytest_llmperf.errors import ConfigurationError


def options(**given):
    return SimpleNamespace(
        **{
            "url": None,
            "engine": None,
            "model": None,
            "hardware": None,
            "is_simulated": False,
            "overrides": {},
            "head": {},
            **given,
        }
    )


@pytest.fixture
def item(pytester):
    """A collected test with the given decorators."""

    def collect(*decorators):
        lines = [f"@pytest.mark.{decorator}" for decorator in decorators]
        return pytester.getitem("\n".join(["import pytest", *lines, "def test_it(): pass"]), "test_it")

    return collect


def test_a_specification_holds_the_marks_words(item):
    """Words arrive in their final types; what is left out stays unknown."""
    spec = marks.engine_spec(
        item("llm_engine('vllm', model='m', prefix_caching=True, args=['--x'], env={'A': 1})"), options()
    )

    assert ("vllm", "m", True, ("--x",), (("A", "1"),)) == (
        spec.kind,
        spec.model,
        spec.prefix_caching,
        spec.args,
        spec.env,
    )
    assert spec.dtype is None
    env = {"A": "sha256:6b86b273"}  # the value is on no record
    assert {"kind": "vllm", "model": "m", "prefix_caching": True, "args": ("--x",), "env": env} == spec.words()


def test_all_mistakes_of_a_mark_are_reported_at_once(item):
    """Each wrong word and value is named with what is accepted."""
    with pytest.raises(ConfigurationError) as caught:
        marks.engine_spec(
            item("llm_engine('vllm', prefix_cachin=True, max_model_len=0, kv_offload_gib='4')"), options()
        )

    missing, unknown, length, offload = caught.value.problems
    assert "vllm: model is missing; give model=... in the mark or --llmperf-model MODEL" == missing
    assert "did you mean 'prefix_caching'?" in unknown
    assert "max_model_len=0; expected a whole number of tokens, at least 1" in length
    assert "kv_offload_gib='4'; expected a positive number of GiB" in offload


def test_a_url_puts_the_openai_engine_in_place_and_keeps_common_words(item):
    """The same words are kept; those that only the mark's own kind knows are not."""
    marked = item("llm_engine('vllm', model='m', prefix_caching=True, executable='/python')")

    spec = marks.engine_spec(marked, options(url="http://localhost:1", model="other"))

    assert ("openai", "other", True, None) == (spec.kind, spec.model, spec.prefix_caching, spec.executable)
    assert "http://localhost:1" == spec.url


def test_a_part_mark_takes_no_arguments(item):
    """They would be passed over."""
    with pytest.raises(ConfigurationError) as caught:
        marks.requirement(item("gh200(count=2)"))

    assert ("gh200 takes no arguments; say how many with gpu(count=...)",) == caught.value.problems


def test_two_parts_contradict_each_other(item):
    """What no machine could meet is said with the test's name."""
    said = marks.contradiction(item("gh200", "h100"))

    assert said.endswith(
        "::test_it is marked h100 and gh200, and no GPU is both; parametrize the test with values that have a mark "
        "each, such as pytest.param('h100', marks=pytest.mark.h100)"
    )


def test_the_same_part_twice_is_no_contradiction(item):
    """A class and its method may both have the mark."""
    assert marks.contradiction(item("gh200", "gh200", "gpu(count=2)")) is None


@pytest.mark.slow
def test_requirements_combine(item):
    """A part's mark and the gpu mark ask for the same GPU."""
    assert "1 x GH200 with 90 GiB" == str(marks.requirement(item("gh200", "gpu(memory_gib=90)")))


def test_overrides_apply_to_the_kinds_that_know_them(item):
    """`--llmperf-set` changes a mark's word, and is passed over by a kind without it."""
    marked = item("llm_engine('openai', url='http://localhost:1', prefix_caching=True)")

    spec = marks.engine_spec(marked, options(overrides={"prefix_caching": False, "executable": "/python"}))

    assert (False, None) == (spec.prefix_caching, spec.executable)


FLEET = (
    "llm_engine('fleet', engine='sglang', model='llama-3.1-8b', replicas=2, policy='cache_aware', gpus='0', "
    "cpus='0|1', gpu_memory_fraction=0.45, router='/usr/bin/vllm-router')"
)


@pytest.mark.slow
def test_a_fleet_is_simulated_as_replicas_of_its_engine(item):
    """What means the same there is kept; router and processors have no meaning."""
    spec = marks.engine_spec(item(FLEET), options(is_simulated=True, hardware="sim:gh200"))

    assert ("sim", "gh200", "sglang") == (spec.kind, spec.part, spec.like)
    assert (2, "cache_aware", ("0",), 0.45) == (spec.replicas, spec.policy, spec.gpus, spec.gpu_memory_fraction)
    assert (None, None, ()) == (spec.engine, spec.router, spec.cpus)
    assert "sim-gh200" == marks.simulated_hardware(spec).key


@pytest.mark.slow
def test_a_fleet_can_be_one_engine(item):
    """`--llmperf-engine` leaves out what is about several."""
    spec = marks.engine_spec(item(FLEET), options(engine="vllm"))

    assert ("vllm", None, None, 0.45) == (spec.kind, spec.replicas, spec.policy, spec.gpu_memory_fraction)


@pytest.mark.slow
def test_a_policy_that_is_not_simulated_is_refused(item):
    """Another one in its place would be another measurement."""
    marked = item(FLEET.replace("cache_aware", "power_of_two"))
    with pytest.raises(ConfigurationError, match="unknown routing policy 'power_of_two'; accepted: round_robin"):
        marks.engine_spec(marked, options(is_simulated=True, hardware="sim:gh200"))


@pytest.mark.slow
def test_a_test_without_a_mark_needs_an_option(item):
    """Without mark and option the message says how to give an engine."""
    assert "openai" == marks.engine_spec(item(), options(url="http://localhost:1")).kind
    with pytest.raises(ConfigurationError, match=r"add @pytest.mark.llm_engine\('vllm', model=...\)"):
        marks.engine_spec(item(), options())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("llm_gate(metric='tftt_p50')", "unknown metric 'tftt_p50'; did you mean 'ttft_p50'"),
        ("llm_gate('ttft_p50')", "expected llm_gate(metric=NAME, detect=SHARE, min_effect=SHARE)"),
        ("llm_gate(metric='ttft_p50', detect=0)", "detect must be a positive share"),
        ("llm_gate(metric='ttft_p50', min_effect=-1)", "min_effect must be a share of at least 0"),
        ("llm_gate(metric='ttft_p50', min_effect=0.2)", "detect=0.1 must be more than min_effect=0.2"),
        ("llm_gate(metric='ttft_p50', threshold=1)", "expected llm_gate(metric=NAME, detect=SHARE, min_effect=SHARE)"),
    ],
)
def test_a_wrong_gate_mark_says_what_is_accepted(item, mark, message):
    """Unknown metrics, words and values are refused in one sentence."""
    with pytest.raises(ConfigurationError) as caught:
        marks.criteria(item(mark))

    assert message in str(caught.value)


MISTAKES = """
import pytest

@pytest.mark.llm_engine("vlm")
def test_kind(llm_engine, llm_perf): pass

@pytest.mark.llm_engine("vllm", model="m", prefixcaching=1)
def test_word(llm_engine, llm_perf): pass

@pytest.mark.llm_gate(metric="speed")
def test_metric(llm_perf): pass

def test_none(llm_engine): pass
"""


@pytest.mark.slow
def test_mistakes_in_marks_end_the_session_before_anything_starts(pytester):
    """All tests' mistakes are one usage error, each with its node id."""
    pytester.makepyfile(test_a=MISTAKES)

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(
        [
            "*test_a.py::test_kind: unknown engine 'vlm'*",
            "*test_a.py::test_word: vllm: unknown word 'prefixcaching'*",
            "*test_a.py::test_metric: llm_gate: unknown metric 'speed'*",
            "*test_a.py::test_none: uses llm_engine, but has no llm_engine mark*",
        ]
    )


@pytest.mark.slow
def test_under_xdist_the_tests_say_what_is_wrong_with_the_marks(pytester):
    """A worker's usage error would be lost as an internal one; there each test errs with all of it."""
    pytester.makepyfile(test_a=MISTAKES)

    result = pytester.runpytest_subprocess("-n", "1", "-p", "no:cacheprovider")

    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines(["*test_a.py::test_kind: unknown engine 'vlm'*"])
