"""Shares of the roofline: bounds that truthful figures do not pass, and what is known before one is given."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import VirtualEngine, no_progress
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.ceiling import Ceiling, Roof, ceiling_of, roof_of
from pytest_llmperf.client import Limits
from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines.sim.engine import SimulatedEngine
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.hardware.detect import Gpu, Hardware, declared, remote, simulated
from pytest_llmperf.hardware.parts import part_named
from pytest_llmperf.load import closed_loop, poisson
from pytest_llmperf.records import CacheCounters, Failure, Phase, RequestRecord, RunRecord, Window
from pytest_llmperf.reports.figures import figures_json
from pytest_llmperf.reports.text import assumptions, measurement, roofline
from pytest_llmperf.request import checked_request
from pytest_llmperf.roofline import deployed, shape_of
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.suite import _hold_against_roof
from pytest_llmperf.workloads import multi_round, shared_prefix, single_turn

DEPLOYMENT = deployed(shape_of("llama-3.1-8b"), part_named("h100"))
ROOF = Roof(deployment=DEPLOYMENT)
SPEC = EngineSpec(kind="vllm", model="meta-llama/Llama-3.1-8B-Instruct")
H100 = declared("NVIDIA-H100-80GB-HBM3")
PERFECT = {
    "compute_efficiency": 1,
    "fp8_efficiency": 1,
    "geforce_efficiency": 1,
    "memory_efficiency": 1,
    "link_efficiency": 1,
    "gpu_link_efficiency": 1,
    "all_reduce_latency_s": 0,
    "step_overhead_s": 0,
    "sequence_overhead_s": 0,
    "request_overhead_s": 0,
}
ROUNDING = 1e-4


def ns(seconds):
    return round(seconds * NS_PER_S)


def answer(sent_s, first_s, last_s=None, *, tokens=1, prompt=1000, cached=0, chunks=None, **words):
    """An answered request; its tokens come evenly, or in these chunks."""
    chunks = [1] * tokens if chunks is None else chunks
    gap_s = 0 if len(chunks) == 1 else (last_s - first_s) / (len(chunks) - 1)
    arrivals = Arrivals([ns(first_s + gap_s * n) for n in range(len(chunks))], chunks, [0] * len(chunks))
    given = {
        "run": 0,
        "phase": Phase.MEASURED,
        "session": 0,
        "turn": 0,
        "released_ns": ns(sent_s),
        "sent_ns": ns(sent_s),
        "end_ns": arrivals.at_ns[-1],
        "arrivals": arrivals,
        "new_tokens": prompt,
        "input_tokens": prompt,
        "output_tokens_asked": tokens,
        "prompt_tokens": prompt,
        "output_tokens": tokens,
        "cached_tokens": cached,
    }
    return RequestRecord(**{**given, **words})


def run(*requests, restored=None, preemptions=0, **words):
    counters = CacheCounters(restored_bytes=restored, preemptions=preemptions)
    end_ns = max((request.end_ns for request in requests), default=0)
    return RunRecord(
        index=0, phase=Phase.MEASURED, start_ns=0, end_ns=end_ns, requests=requests, cache=counters, **words
    )


def ceiling(*requests, roof=ROOF, shared=(), **words):
    return ceiling_of([run(*requests, **words)], roof, shared)


# Prefill.


def test_prefill_is_the_flops_of_a_prompt_over_its_ttft():
    """Linear layers, attention and the head of one token, against the dense 16-bit peak."""
    shape = DEPLOYMENT.model
    flops = 2 * shape.linear_parameters * 1000 + 4 * 32 * 4096 * 1000 * 500 + 2 * shape.head_parameters

    assert flops / 989e12 / 0.5 == pytest.approx(ceiling(answer(0, 0.5)).prefill)


def test_only_prompt_tokens_that_were_computed_count():
    """Those from the cache are attended to and not computed."""
    flops = DEPLOYMENT.prefill_flops(200, 800)

    assert flops / 989e12 / 0.1 == pytest.approx(ceiling(answer(0, 0.1, cached=800)).prefill)


def test_requests_that_wait_together_share_the_gpu():
    """Their work is added, and the time in which both wait counts once."""
    both = ceiling(answer(0, 1), answer(0.5, 2))
    alone = ceiling(answer(0, 1))

    assert 2 * alone.prefill / 2 == pytest.approx(both.prefill)


def test_time_in_which_nobody_waits_does_not_count():
    assert ceiling(answer(0, 1)).prefill == pytest.approx(ceiling(answer(0, 1), answer(7, 8)).prefill)


def test_runs_are_added_up():
    """A run that took twice as long for the same work counts for twice the time."""
    together = ceiling_of([run(answer(0, 1)), run(answer(0, 2))], ROOF)

    assert 2 * ROOF.prefill_s(1000, 0) / 3 == pytest.approx(together.prefill)


def test_the_linear_layers_are_held_against_the_arithmetic_of_the_weights():
    """FP8 weights against the FP8 peak; attention follows the KV cache; the head stays in 16 bits."""
    deployment = deployed(DEPLOYMENT.model, DEPLOYMENT.part, dtype="fp8", kv_cache_dtype="fp8")
    roof = Roof(deployment=deployment)
    pairs = deployment.attention_pairs(1000, 0) * deployment.attention_flops_per_pair
    expected = (1000 * deployment.linear_flops_per_token + pairs) / 1978e12
    expected += deployment.head_flops_per_sample / 989e12

    assert expected == pytest.approx(ceiling(answer(0, 1), roof=roof).prefill)
    assert 989e12 == Roof(deployment=deployed(DEPLOYMENT.model, DEPLOYMENT.part, dtype="fp8")).attention_peak
    on_a100 = deployed(DEPLOYMENT.model, part_named("a100"), kv_cache_dtype="fp8")
    assert 312e12 == Roof(deployment=on_a100).attention_peak


@pytest.mark.parametrize(("prefix_caching", "known"), [(None, False), (True, False), (False, True)])
def test_without_cached_tokens_prefill_is_known_only_where_nothing_is_cached(prefix_caching, known):
    """A server that does not say what it cached is believed only if it caches nothing."""
    found = ceiling(answer(0, 1, cached=None), restored=5, roof=replace(ROOF, prefix_caching=prefix_caching))

    assert known == (found.prefill is not None)


def test_one_request_of_unknown_work_leaves_prefill_unknown():
    assert ceiling(answer(0, 1), answer(1, 2, cached=None), restored=5).prefill is None
    assert ceiling(answer(0, 1), answer(1, 2, prompt_tokens=None), restored=5).prefill is None


def test_as_many_replicas_work_as_there_are_requests_for():
    """Two waiting requests can keep two of four replicas at work, not four."""
    two = ceiling(answer(0, 1), answer(0, 1), roof=replace(ROOF, replicas=4))
    three = ceiling(*[answer(0, 1)] * 3, roof=replace(ROOF, replicas=2))

    assert ROOF.prefill_s(1000, 0) == pytest.approx(two.prefill)
    assert ROOF.prefill_s(1000, 0) * 3 / 2 == pytest.approx(three.prefill)


# Decode.


def test_decode_is_the_bytes_of_a_step_over_the_time_of_a_step():
    """Weights and the KV cache of the context, for a single answer."""
    found = ceiling(answer(0, 1, 2, tokens=101, prompt=8000))
    step = DEPLOYMENT.read_bytes + (8000 + 49.5) * DEPLOYMENT.kv_bytes_per_token

    assert step / 3.35e12 / 0.01 == pytest.approx(found.decode)


def test_answers_that_come_together_share_the_weights():
    """In one step the weights are read once and every sequence's KV cache."""
    found = ceiling(*[answer(0, 1, 2, tokens=101, prompt=8000)] * 10)
    step = DEPLOYMENT.read_bytes + 10 * (8000 + 49.5) * DEPLOYMENT.kv_bytes_per_token

    assert step / 3.35e12 / 0.01 == pytest.approx(found.decode)


def test_answers_one_after_the_other_are_steps_of_their_own():
    first, second = answer(0, 1, 2, tokens=101), answer(3, 4, 5, tokens=101)

    assert ceiling(first).decode == pytest.approx(ceiling(first, second).decode)


def test_answers_that_overlap_are_followed_from_one_to_the_next():
    """Of the second, the tokens after the first one's end are further steps, all but one."""
    found = ceiling(answer(0, 1, 2, tokens=101), answer(0, 1.505, 2.505, tokens=101))
    context = 2 * (100 * 1000 + 100 * 99 // 2)

    assert ROOF.decode_s(100 + 50, context) / 1.505 == pytest.approx(found.decode)


def test_an_answer_within_another_adds_no_step():
    found = ceiling(answer(0, 1, 3, tokens=201), answer(0, 1.5, 2, tokens=51))
    context = 200 * 1000 + 200 * 199 // 2 + 50 * 1000 + 50 * 49 // 2

    assert ROOF.decode_s(200, context) / 2 == pytest.approx(found.decode)


def test_an_answer_that_was_interrupted_is_not_the_one_to_follow():
    """A preempted one lasts longest, and shows few of the steps that were made meanwhile."""
    slow = answer(0, 1, 4, tokens=11)
    found = ceiling(slow, *(answer(0, 1 + n, 2 + n, tokens=101) for n in range(3)))
    context = 10 * 1000 + 45 + 3 * (100 * 1000 + 100 * 99 // 2)

    assert ROOF.decode_s(300, context) / 3 == pytest.approx(found.decode)


def test_an_answer_that_is_about_to_end_is_not_the_one_to_follow():
    """Each change loses a token, which a slightly slower answer that goes on does not."""
    ended, ending = answer(0, 1, 2, tokens=101), answer(0, 1.5055, 2.0145, tokens=52)
    longer = answer(0, 1.501, 3.001, tokens=151)
    context = sum(k * 1000 + k * (k - 1) // 2 for k in (100, 51, 150))

    # Of the longer one's tokens 101 came after the first answer's end; by way of the other there would be 99 steps.
    assert ROOF.decode_s(100 + 100, context) / 2.001 == pytest.approx(ceiling(ended, ending, longer).decode)


def test_tokens_of_the_first_chunk_took_no_time_that_was_seen():
    """Only steps between the first and the last arrival count."""
    found = ceiling(answer(0, 1, 2, tokens=20, chunks=[10, 10]))

    assert ROOF.decode_s(10, sum(1000 + t - 1 for t in range(10, 20))) == pytest.approx(found.decode)


def test_chunks_of_unknown_size_hold_one_token_at_least():
    found = ceiling(answer(0, 1, 2, tokens=20, chunks=[-1] * 6), answer(0, 1.5, 3, tokens=20, chunks=[-1] * 4))
    context = sum(1000 + t - 1 for t in range(15, 20)) + sum(1000 + t - 1 for t in range(17, 20))

    assert ROOF.decode_s(5 + 1, context) / 2 == pytest.approx(found.decode)


def test_a_shared_prefix_may_be_read_once_for_all():
    """What other sessions begin with, too, is left out of the KV cache that is read."""
    found = ceiling(answer(0, 1, 2, tokens=11, prompt=1000), shared=(900,))

    assert ROOF.decode_s(10, 10 * 100 + 45) == pytest.approx(found.decode)


def test_answers_without_time_between_tokens_say_nothing_of_decode():
    """A single token, or all at once."""
    assert ceiling(answer(0, 1)).decode is None
    assert ceiling(answer(0, 1, tokens=20, chunks=[20])).decode is None


def test_decode_is_unknown_where_tokens_are_not_counted():
    assert ceiling(answer(0, 1, 2, tokens=11), answer(0, 1, 2, tokens=11, output_tokens=None)).decode is None


def test_decode_is_unknown_behind_a_router():
    """How often the weights were read depends on who served whom."""
    found = ceiling(answer(0, 1, 2, tokens=11), roof=replace(ROOF, replicas=2))

    assert found.decode is None
    assert found.prefill is not None


# The host link.


def test_the_link_is_held_against_the_time_in_which_a_first_token_is_waited_for():
    found = ceiling(answer(0, 1, 5, tokens=11), answer(0, 2, 5, tokens=11), restored=64 * 10**9)

    assert 0.5 == pytest.approx(found.link)


@pytest.mark.parametrize("preemptions", [3, None])
def test_a_preempted_request_may_be_restored_later(preemptions):
    """Then the whole time of its answer counts."""
    found = ceiling(answer(0, 1, 4, tokens=11), restored=64 * 10**9, preemptions=preemptions)

    assert 0.25 == pytest.approx(found.link)


def test_each_gpu_has_a_link_of_its_own():
    roof = Roof(deployment=replace(DEPLOYMENT, gpus=4))

    assert 0.25 == pytest.approx(ceiling(answer(0, 1), restored=64 * 10**9, roof=roof).link)


@pytest.mark.parametrize(("gpus", "replicas"), [({}, 4), ({"gpus": ("0",)}, 1), ({"gpus": ("0", "0", "1", "1")}, 2)])
def test_replicas_that_share_gpus_do_what_these_can(gpus, replicas):
    """A roof is of the GPUs, however many engines are on them."""
    spec = EngineSpec(kind="fleet", model="meta-llama/Llama-3.1-8B-Instruct", replicas=4, **gpus)
    four = simulated(4, "h100")
    assert replicas == roof_of(spec, four, model="m").replicas


def test_the_link_is_unknown_where_the_engine_does_not_count():
    """An idle link is known: nothing of it was used."""
    assert ceiling(answer(0, 1)).link is None
    assert 0 == ceiling(answer(0, 1), restored=0).link


# What enters.


def test_failed_requests_and_those_outside_the_window_do_not_count():
    failed = answer(0, 9, failure=Failure("timeout", "boom"))
    early = answer(0, 9)
    window = Window(ns(10))

    assert ceiling(answer(10, 11)) == ceiling(failed, early, answer(10, 11), window=window)


def test_nothing_measured_is_no_ceiling():
    assert ceiling() is None
    assert ceiling_of([], ROOF) is None
    assert ceiling(answer(0, 1, failure=Failure("timeout", "boom"))) is None


def test_a_share_beyond_the_roofline_is_a_doubt():
    """It names the share; what rounding explains is none."""
    doubts = Ceiling(prefill=0.5, decode=1.3, link=1.004, assumptions="").doubts

    assert len(doubts) == 1
    assert doubts[0].startswith("more than the roofline allows (decode 130.0 %): the model, a dtype or the part")
    assert () == Ceiling(prefill=0.5, decode=1.004, link=None, assumptions="").doubts


@pytest.mark.slow
def test_many_requests_take_about_a_second():
    """100,000 of them; of a fifth, ten times the time that it should take is allowed."""
    requests = [answer(n * 0.01, n * 0.01 + 0.5, n * 0.01 + 2, tokens=16) for n in range(20_000)]
    record = run(*requests, restored=5)
    started = time.perf_counter()

    ceiling_of([record], ROOF)

    assert time.perf_counter() - started < 2


# What is known.


def test_an_engine_on_a_known_part_has_a_roof():
    roof = roof_of(SPEC, H100, model="served")

    assert roof == Roof(deployment=DEPLOYMENT)
    assert roof.describe().startswith("llama-3.1-8b with bfloat16 weights (15.0 GiB) and 128 KiB")
    assert "1978 TFLOP/s in FP8, 989 TFLOP/s in 16 bits, 3.35 TB/s, host link 64 GB/s" in roof.describe()


def test_the_words_of_the_specification_decide():
    spec = replace(SPEC, dtype="fp8", kv_cache_dtype="fp8", tensor_parallel=2, prefix_caching=False)
    roof = roof_of(spec, declared("2x-NVIDIA-H100-80GB-HBM3"), model="served")

    expected = deployed(DEPLOYMENT.model, DEPLOYMENT.part, dtype="fp8", kv_cache_dtype="fp8", gpus=2)
    assert Roof(deployment=expected, prefix_caching=False) == roof
    assert roof_of(spec, declared("2x-NVIDIA-H100-80GB-HBM3"), model="m", prefix_caching=True).prefix_caching


@pytest.mark.parametrize(
    "hardware",
    [
        Hardware(cpu="a processor", key="CPU"),
        remote("far.example"),
        Hardware(gpus=(Gpu(name="NVIDIA H100 80GB HBM3", mig=True),), key="k"),
        Hardware(gpus=(Gpu(name="An Unknown GPU"),), key="k"),
        Hardware(gpus=(Gpu(name="NVIDIA H100 80GB HBM3"), Gpu(name="NVIDIA L4")), key="k"),
    ],
    ids=["cpu", "remote", "MIG", "unknown", "mixed"],
)
def test_without_one_known_part_there_is_no_roof(hardware):
    assert roof_of(SPEC, hardware, model="served") is None


@pytest.mark.parametrize(
    "words",
    [
        {"model": "nobody/knows-this"},
        {"dtype": "float32"},
        {"kv_cache_dtype": "turboquant"},
        {"tensor_parallel": 2},
        {"model": "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8"},
        {"model": "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "dtype": "bfloat16"},
        {"args": ("--quantization", "fp8")},
        {"args": ("--kv_cache_dtype=fp8",)},
        {"args": ("-tp", "2")},
        {"args": ("--speculative-config", "{}")},
        {"args": ("--data-parallel-size=2",)},
    ],
)
def test_what_is_not_known_of_an_engine_gives_no_roof(words):
    """A model or dtype that is unknown, more GPUs than there are, arguments that change what is served."""
    assert roof_of(replace(SPEC, **words), H100, model="served") is None


@pytest.mark.parametrize("arguments", [("--max-model-len", "2000"), ("--model-loader-extra-config", "{}"), ("-q8",)])
def test_other_arguments_change_nothing(arguments):
    assert roof_of(replace(SPEC, args=arguments), H100, model="served") is not None


def test_a_server_at_a_url_is_known_by_what_the_specification_says():
    """Its dtype must be given; of several GPUs also how many serve together."""
    spec = EngineSpec(kind="openai", url="http://127.0.0.1:8000")
    several = declared("4x-NVIDIA-H100-80GB-HBM3")
    given = replace(spec, dtype="bfloat16")

    assert roof_of(spec, H100, model="llama-3.1-8b") is None
    assert Roof(deployment=DEPLOYMENT) == roof_of(given, H100, model="llama-3.1-8b")
    assert roof_of(given, several, model="llama-3.1-8b") is None
    assert roof_of(replace(given, tensor_parallel=8), several, model="llama-3.1-8b") is None
    assert 2 == roof_of(replace(given, tensor_parallel=2), several, model="llama-3.1-8b").replicas


def test_a_quantised_checkpoint_stays_so_whatever_it_is_multiplied_in():
    """In vLLM `dtype` is that of the activations."""
    roof = roof_of(replace(SPEC, model="Qwen/Qwen2-72B-Instruct-AWQ".lower(), dtype="float16"), H100, model="m")
    named = roof_of(replace(SPEC, model="qwen2-72b-awq", dtype="float16"), H100, model="m")

    assert roof is None or "int4" == roof.deployment.weights.name
    assert "int4" == named.deployment.weights.name


@pytest.mark.parametrize("config", [[], {}, {"text_config": None}, {"quantization_config": "fp8"}, {"text_config": 7}])
def test_an_odd_configuration_is_an_unknown_model(tmp_path, config):
    """Whatever a model's folder holds, no measurement is lost to it."""
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert roof_of(replace(SPEC, model=str(tmp_path)), H100, model="m") is None


def test_the_small_model_of_the_tests_is_known():
    assert "tiny-llama" == roof_of(replace(SPEC, model="tiny-llama"), H100, model="m").deployment.model.name


# Held against an engine whose every step takes exactly what the roofline says.


def perfect(**words):
    given = {"kind": "sim", "model": "llama-3.1-8b", "part": "h100", "constants": tuple(sorted(PERFECT.items()))}
    return EngineSpec(**{**given, **words})


def asked(workload, load=None):
    return checked_request(
        workload, load=load, runs=1, warmup_runs=0, cache="as_is", prefill_context=False, slo=None, name=None
    )


def result_of(engine, request):
    """What `llm_perf` would measure."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            test="t",
            hardware_key="k",
            clock=engine.clock,
            record_dir=Path(folder),
            progress=no_progress,
            team=LocalTeam(engine.clock),
        )
        return measure(engine, request, setting)


def measured(spec, workload, load):
    """What `llm_perf` would measure of it, held against its roofline."""
    engine = SimulatedEngine(spec, Limits(silence_s=1e9, exchange_s=1e9))
    result = result_of(engine, asked(workload, load))
    roof = roof_of(spec, simulated(1, spec.part), model=engine.model)
    return ceiling_of(result.records, roof, [session.shared_tokens for session in workload])


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_perfect_engine_does_not_pass_its_roofline(data):
    """Whatever is asked of it, with whatever load: no share exceeds 1."""
    draw = data.draw
    users, length = draw(st.integers(1, 12)), draw(st.sampled_from([10, 500, 5000, 30_000]))
    output = draw(st.integers(1, 80))
    workload = draw(
        st.sampled_from(
            [
                single_turn(requests=3 * users, input_tokens=length, output_tokens=output),
                multi_round(users=users, rounds=3, context_tokens=length, input_tokens=64, output_tokens=output),
                shared_prefix(
                    prefixes=2, requests_per_prefix=users, prefix_tokens=length, input_tokens=9, output_tokens=output
                ),
            ]
        )
    )
    load = draw(st.sampled_from([closed_loop(users), poisson(0.5), poisson(20.0, max_in_flight=10_000)]))
    spec = perfect(
        dtype=draw(st.sampled_from(["bfloat16", "fp8"])),
        kv_cache_dtype=draw(st.sampled_from(["bfloat16", "fp8"])),
        like=draw(st.sampled_from(["vllm", "tensorrt_llm", "sglang"])),
        kv_offload_gib=draw(st.sampled_from([None, 8.0])),
        prefix_caching=draw(st.booleans()),
        replicas=draw(st.sampled_from([None, 3])),
        args=("--gpu-memory-utilization", draw(st.sampled_from(["0.27", "0.35", "0.9"]))),
    )

    found = measured(spec, workload, load)

    assert all(share <= 1 + ROUNDING for share in found.shares.values()), found


@pytest.mark.parametrize("transfer", ["overlapped", "blocking"])
def test_a_perfect_engine_short_of_memory_stays_near_its_roofline(transfer):
    """Preempted requests are computed again, and their answers wait in between."""
    spec = perfect(
        constants=tuple(sorted({**PERFECT, "transfer": transfer}.items())),
        args=("--gpu-memory-utilization", "0.225"),
        max_model_len=4000,
        kv_offload_gib=1.0,
    )
    workload = single_turn(requests=60, input_tokens=100, output_tokens=400)

    found = measured(spec, workload, closed_loop(60))

    assert 0.6 < found.decode < 1
    assert 0 < found.link < 1


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen2-7b"])
@pytest.mark.parametrize("length", [10, 4000])
def test_a_single_answer_of_a_perfect_engine_reaches_the_memorys_roofline(model, length):
    """What is left is the step's arithmetic, which it adds to the reading."""
    found = measured(perfect(model=model), single_turn(requests=3, input_tokens=length, output_tokens=50), None)

    assert 0.97 < found.decode <= 1 + ROUNDING


def test_a_long_prompt_of_a_perfect_engine_reaches_the_arithmetics_roofline():
    """What is left is the reading of the weights and of what was computed before."""
    found = measured(perfect(), single_turn(requests=3, input_tokens=30_000, output_tokens=2), None)

    assert 0.9 < found.prefill <= 1 + ROUNDING


# What a reader gets.

SUITE = """
import pytest
from pytest_llmperf import multi_round

@pytest.mark.parametrize("dtype", ["fp8", "fp8", "bfloat16"])
def test_rounds(llm_engine_factory, llm_perf, dtype):
    engine = llm_engine_factory("vllm", model="meta-llama/Llama-3.1-8B", dtype=dtype, kv_offload_gib=10)
    rounds = multi_round(users=2, rounds=2, context_tokens=512, input_tokens=16, output_tokens=16)
    result = llm_perf(engine, rounds, prefill_context=True)
    assert 0.4 < result.ceiling.decode < 0.8
    assert result.ceiling.link == 0
"""


def test_each_result_has_its_shares_and_the_session_the_assumptions_once(pytester):
    """Each model and dtype once; the JSON has both with each result."""
    pytester.makepyfile(test_it=SUITE)

    ended = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-W", "default", "--llmperf-hardware", "sim:gh200", "--benchmark-json", "out.json"
    )

    ended.assert_outcomes(passed=3, warnings=3)
    lines = ended.outlines
    shown = [line for line in lines if line.startswith("  roofline: ")]
    assumed = [number for number, line in enumerate(lines) if line.startswith("roofline of ")]
    assert 3 == len(shown)
    assert all(line.startswith("  roofline: prefill ") and ", decode " in line for line in shown)
    assert not any("host link" in line for line in shown)
    assert 2 == len(assumed)
    assert lines[assumed[0]].startswith("roofline of llama-3.1-8b with fp8 weights (")
    written = json.loads((pytester.path / "out.json").read_text())["benchmarks"][0]["extra_info"]["llmperf"]["result"]
    assert {"prefill", "decode", "link", "assumptions"} == set(written["ceiling"])


def test_what_cannot_be_is_a_doubt_on_the_result():
    """An engine that is said to serve a large model, and answers as a small one does."""
    engine = VirtualEngine(spec=EngineSpec(kind="vllm", model="llama-3.1-70b", dtype="fp8"))
    request = asked(single_turn(requests=2, input_tokens=64, output_tokens=8))
    result = result_of(engine, request)

    _hold_against_roof(result, engine, request, H100)

    assert result.ceiling.decode > 5
    assert result.doubts == result.ceiling.doubts
    assert 1 == len(result.doubts)
    assert f"  roofline: {next(roofline(result)).removeprefix('roofline: ')}" in list(measurement(result))


def test_without_a_roof_nothing_is_said():
    """Of an unknown model, or on the CPU."""
    engine = VirtualEngine()
    request = asked(single_turn(requests=2, input_tokens=64, output_tokens=8))
    result = result_of(engine, request)

    _hold_against_roof(result, engine, request, H100)

    assert result.ceiling is None
    assert [] == [*roofline(result), *assumptions([result])]
    assert "ceiling" not in figures_json(result)
