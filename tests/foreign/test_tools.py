"""What is read of each tool's files, and what is not mistaken for a metric of ours."""

from __future__ import annotations

import json
import re

import pytest
from foreign_files import (
    DATA,
    aiperf,
    aiperf_request,
    changed,
    distribution,
    guidellm,
    guidellm_benchmark,
    guidellm_request,
    sglang,
    summary,
    vllm,
    vllm_details,
    without,
    written,
)

from pytest_llmperf.errors import ForeignResultError
from pytest_llmperf.foreign import TOOLS, read_runs
from pytest_llmperf.foreign.runs import family
from pytest_llmperf.foreign.source import plain
from pytest_llmperf.metrics import METRICS


@pytest.fixture
def read(tmp_path):
    """The only run of a file with these documents."""

    def one(*documents):
        (run,) = read_runs([written(tmp_path, *documents)])
        return run

    return one


@pytest.fixture
def complaint(tmp_path):
    """The only sentence on a file with these documents."""

    def one(*documents):
        with pytest.raises(ForeignResultError) as caught:
            read_runs([written(tmp_path, *documents)])
        (problem,) = str(caught.value).splitlines()
        assert str(tmp_path / "result.json") in problem
        return problem

    return one


@pytest.mark.parametrize(
    ("files", "tool", "e2e"),
    [
        (["vllm-1.json"], "vllm", True),
        (["vllm-detailed.json"], "vllm", True),
        (["aiperf/profile_export_aiperf.json"], "aiperf", True),
        (["aiperf/profile_export_aiperf.json", "aiperf/profile_export.jsonl"], "aiperf", True),
        (["guidellm.json"], "guidellm", True),
        (["sglang.jsonl"], "sglang", False),
        (["sglang-details.jsonl"], "sglang", True),
    ],
)
def test_every_tool_is_understood_to_say_what_the_server_did(files, tool, e2e):
    """Its first token came after 50 ms, each further one of 16 after 5 ms; the tools took these files themselves."""
    for run in read_runs([DATA / file for file in files]):
        assert run.tool == tool
        assert 0.050 < run.values["ttft_p50"] < 0.054
        assert 0.0048 < run.values["tpot_p50"] < 0.0051
        assert ("e2e_p50" in run.values) is e2e
        assert 0.124 < run.values.get("e2e_p50", 0.125) < 0.130
        assert run.output_tokens == 16 * run.answered
        ratio = run.values["output_throughput"] / run.values["request_throughput"]
        assert ratio == pytest.approx(16, rel=1e-6)
        assert run.values["duration"] == pytest.approx(run.answered / run.values["request_throughput"], rel=0.05)
        assert set(run.values) <= set(METRICS)
        assert {family(name) for name in run.values} <= set(run.definitions)


def test_both_clients_of_vllm_are_two_tools():
    """They write the same fields, and the one in Python reports four times the TTFT under load."""
    (run,) = read_runs([DATA / "vllm-rust.json"])
    assert run.tool == "vllm-rust"
    assert run.load == "closed_loop(1000)"
    assert 0.100 < run.values["ttft_p50"] < 0.102


class TestVllm:
    def test_milliseconds_become_seconds(self, read):
        run = read(vllm())
        assert run.values["ttft_mean"] == pytest.approx(0.110)
        assert run.values["ttft_p50"] == pytest.approx(0.100)
        assert run.values["tpot_p99"] == pytest.approx(0.019)
        assert run.values["duration"] == 2.0
        assert run.values["total_throughput"] == 220.0
        assert "ttft_p90" not in run.values

    def test_gaps_between_chunks_are_not_taken_for_itl(self, read):
        """Without details nobody knows how many tokens a chunk held."""
        run = read(vllm())
        assert not [name for name in run.values if name.startswith("itl")]
        assert run.apart["chunk_gap_mean"] == pytest.approx(0.012)

    def test_gaps_are_itl_where_each_chunk_held_one_token(self, read):
        assert read(vllm_details()).values["itl_mean"] == pytest.approx(0.012)
        several = read(vllm_details(lengths=(6, 6, 6, 0)))
        assert "itl_mean" not in several.values
        assert "chunk_gap_mean" in several.apart

    def test_failed_requests_do_not_enter_the_lists(self, read):
        """They stand there with times of 0."""
        run = read(vllm_details())
        assert run.values["ttft_p90"] == pytest.approx(0.1)
        assert run.values["e2e_mean"] == pytest.approx(0.12)
        assert run.failed == 1
        assert run.doubts == ("1 of 4 requests failed; measured here, such a run would be invalid",)

    def test_failed_requests_make_no_other_workload_where_details_name_all_prompts(self, read):
        whole = read(vllm_details(lengths=(3, 3, 3, 3), total_input_tokens=400))
        assert read(vllm_details(total_input_tokens=300)).configuration == whole.configuration
        assert read(vllm(total_output_tokens=12)).configuration == whole.configuration

    def test_a_list_whose_failures_cannot_be_told_is_not_used(self, read):
        assert "e2e_mean" not in read(vllm(latencies=[0.1, 0.1, 0.0], completed=2, failed=1)).values
        assert "e2e_mean" not in read(without(vllm(latencies=[0.1, 0.1, 0.0]), "failed")).values
        assert read(vllm(latencies=[0.1] * 4)).values["e2e_mean"] == pytest.approx(0.1)

    def test_zero_is_what_it_writes_for_nothing(self, read):
        run = read(vllm(mean_tpot_ms=0.0, median_tpot_ms=0.0, p99_tpot_ms=0.0))
        assert not [name for name in run.values if name.startswith("tpot")]

    @pytest.mark.parametrize(
        ("fields", "load", "is_open"),
        [
            ({}, "closed_loop(2)", False),
            ({"max_concurrency": None}, "all at once", True),
            ({"request_rate": 5.0}, "poisson(5), at most 2 open", True),
            ({"request_rate": 5.0, "max_concurrency": None}, "poisson(5)", True),
            ({"request_rate": 5, "burstiness": 0.5, "max_concurrency": None}, "burst(5, shape=0.5)", True),
            ({"ramp_up_strategy": "linear"}, "closed_loop(2), ramped up", False),
        ],
    )
    def test_the_load_in_words(self, read, fields, load, is_open):
        run = read(vllm(**fields))
        assert (run.load, run.open_load) == (load, is_open)

    @pytest.mark.parametrize("rate", ["fast", 0, -1, True, [], float("nan"), 10**400])
    def test_a_rate_that_is_none(self, complaint, rate):
        assert "request_rate of vllm bench serve" in complaint(vllm(request_rate=rate))

    def test_what_metadata_says_is_of_the_engine(self, read):
        """It must not make another workload of the same one."""
        run = read(vllm(build="abc", precision="fp8", tp=4))
        assert run.engine_words == {"build": "abc", "precision": "fp8", "tp": 4, "backend": "openai"}
        assert run.configuration == read(vllm()).configuration

    def test_the_original_is_kept_without_single_requests(self, read):
        run = read(vllm_details(rtfx=0.5))
        assert run.original["rtfx"] == 0.5
        assert not {"ttfts", "errors", "itls"} & run.original.keys()


class TestAIPerf:
    def test_its_inter_token_latency_is_tpot(self, read):
        run = read(aiperf())
        assert run.values["tpot_mean"] == pytest.approx(0.010)
        assert run.values["ttft_p99"] == pytest.approx(0.1 * 1.099)
        assert run.values["output_throughput"] == 20.0
        assert run.load == "closed_loop(2)"

    def test_its_inter_chunk_latency_is_itl_where_the_counts_prove_it(self, read):
        """36 gaps of 40 tokens in 4 answers: each chunk held one."""
        assert read(aiperf()).values["itl_mean"] == pytest.approx(0.009)
        run = read(aiperf(inter_chunk_latency=distribution("ms", 9.0, count=20)))
        assert "itl_mean" not in run.values
        assert run.apart["chunk_gap_mean"] == pytest.approx(0.009)

    def test_its_inter_token_latency_is_not_tpot_where_a_chunk_held_several(self, read, tmp_path):
        """It leaves out all tokens of the first chunk; the requests, if they are there, tell TPOT."""
        summary = aiperf(inter_chunk_latency=distribution("ms", 9.0, count=20))
        run = read(summary)
        assert not [name for name in run.values if name.startswith("tpot")]
        assert run.apart["tpot_after_first_chunk_mean"] == pytest.approx(0.010)
        assert "no TPOT" in run.doubts[0]

        rows = written(tmp_path, *[aiperf_request() for _ in range(4)], name="profile_export.jsonl")
        (told,) = read_runs([written(tmp_path, summary), rows])
        assert told.values["tpot_p50"] == pytest.approx(0.010)
        assert told.definitions["tpot"] != read(aiperf()).definitions["tpot"]
        assert told.doubts == ()

    def test_units_are_read(self, read, complaint):
        assert read(aiperf(time_to_first_token=distribution("sec", 0.2))).values["ttft_mean"] == pytest.approx(0.2)
        assert read(aiperf(time_to_first_token=distribution("us", 5e4))).values["ttft_mean"] == pytest.approx(0.05)
        problem = complaint(aiperf(time_to_first_token=distribution("fortnights", 1.0)))
        assert 'time_to_first_token.unit of AIPerf is "fortnights"; expected one of ns, us, ms' in problem

    def test_who_counted_the_tokens_is_part_of_the_definition(self, read):
        theirs = read(changed(aiperf(), ("input_config", "endpoint", "use_server_token_count"), False))
        assert theirs.definitions["tpot"].endswith("tokens as AIPerf's tokenizer counts them")
        assert read(aiperf()).definitions["tpot"].endswith("tokens as the server counts them")
        assert theirs.definitions["ttft"] == read(aiperf()).definitions["ttft"]

    @pytest.mark.parametrize(
        "fields",
        [
            {"error_request_count": {"unit": "requests", "avg": 2.0}},
            {"completed_request_count": {"unit": "requests", "avg": 6.0}},
        ],
    )
    def test_failures(self, read, fields):
        run = read(aiperf(**fields))
        assert run.failed == 2
        assert "2 of 6 requests failed" in run.doubts[0]

    def test_what_it_says_against_itself(self, read):
        cancelled = read(aiperf(was_cancelled=True, incomplete_reason="Ctrl-C"))
        assert cancelled.doubts == ("the run was not completed: Ctrl-C",)
        late = read(aiperf(credit_to_start_latency=distribution("ms", 3000.0)))
        assert late.doubts == ("AIPerf sent requests 3.00 s late on average, which none of its latencies contains",)
        assert read(aiperf()).doubts == ()

    def test_secrets_and_places_are_not_copied(self, read):
        original = json.dumps(read(aiperf()).original)
        assert "sk-of-nobody" not in original
        assert "somebody" not in original
        assert "127.0.0.1" not in original
        assert {"total_osl", "time_to_first_token", "inter_token_latency"} <= json.loads(original).keys()

    def test_requests_beside_the_summary_tell_the_turns_apart(self, tmp_path):
        rows = [aiperf_request(turn, ttft=100.0 * (turn + 1)) for turn in (0, 1, 0, 1)]
        warm = aiperf_request(0, ttft=9e5, phase="warmup")
        failed = aiperf_request(0, error="refused")
        files = [
            written(tmp_path, warm, *rows, failed, name="profile_export.jsonl"),
            written(tmp_path, aiperf(), name="profile_export_aiperf.json"),
        ]
        (run,) = read_runs(files)
        first, second = run.apart["by_round"]
        assert (first["ttft"]["count"], first["ttft"]["mean"]) == (2, pytest.approx(0.1))
        assert second["e2e"]["p50"] == pytest.approx(0.29)
        assert run.doubts == ()

    def test_requests_that_are_not_those_of_the_summary(self, tmp_path):
        files = [written(tmp_path, aiperf_request(), name="r.jsonl"), written(tmp_path, aiperf(), name="s.json")]
        (run,) = read_runs(files)
        assert run.doubts == ("1 answered requests in the JSONL, 4 in the summary",)

    def test_requests_alone_say_too_little(self, complaint):
        problem = complaint(aiperf_request(), aiperf_request())
        assert "no profile_export_aiperf.json of the same folder was given" in problem

    def test_each_folder_has_its_own_requests(self, tmp_path):
        files = []
        for folder, turns in (("a", 2), ("b", 3)):
            rows = [aiperf_request(turn) for turn in range(turns)]
            files.append(written(tmp_path / folder, *rows, name="profile_export.jsonl"))
            files.append(written(tmp_path / folder, aiperf(), name="profile_export_aiperf.json"))
        assert [len(run.apart["by_round"]) for run in read_runs(files)] == [2, 3]


class TestGuideLLM:
    def test_its_time_per_output_token_is_not_tpot(self, read):
        """It contains the first token; without the requests the inter-token latency is meant."""
        run = read(guidellm())
        assert run.values["tpot_p50"] == pytest.approx(0.011)
        assert run.apart["tpot_with_first_token_p50"] == pytest.approx(0.019)
        assert run.values["itl_mean"] == pytest.approx(0.011)

    def test_its_request_latency_is_not_e2e(self, read):
        """It ends with the response, a second after the last token here."""
        run = read(guidellm())
        assert not [name for name in run.values if name.startswith("e2e")]
        assert run.apart["e2e_to_end_of_response_mean"] == pytest.approx(1.19)
        whole = read(guidellm(guidellm_benchmark(requests=[guidellm_request()] * 4)))
        assert whole.values["e2e_p50"] == pytest.approx(0.19, rel=1e-5)

    def test_requests_count_once_each_whatever_their_length(self, read):
        """A long slow answer weighs as much as a short fast one, as in our TPOT."""
        short = guidellm_request(tokens=2, span_s=0.001)
        long = guidellm_request(tokens=101, span_s=0.9)
        run = read(guidellm(guidellm_benchmark(requests=[short, short, short, long])))
        assert run.values["tpot_mean"] == pytest.approx((3 * 0.001 + 0.009) / 4, rel=1e-3)
        assert run.values["tpot_p50"] == pytest.approx(0.001, rel=1e-3)

    def test_no_tpot_of_a_summary_that_weighs_by_length(self, read):
        run = read(guidellm(guidellm_benchmark(output_token_count=summary(10.0, std_dev=3.0))))
        assert not [name for name in run.values if name.startswith("tpot")]
        assert run.values["itl_mean"] == pytest.approx(0.011)
        assert "no TPOT" in run.doubts[0]

    def test_a_sample_of_the_requests_is_not_all_of_them(self, read):
        run = read(guidellm(guidellm_benchmark(requests=[guidellm_request(ttft_s=7.0)] * 2)))
        assert run.values["ttft_p50"] == pytest.approx(0.101)
        assert "percentiles are values that occurred" in run.definitions["ttft"]

    def test_answers_that_were_not_streamed_have_no_ttft(self, read):
        """GuideLLM writes distributions of zeros then."""
        request = changed(guidellm_request(), ("info", "timings", "first_token_iteration"), None)
        nothing = {"time_to_first_token_ms": summary(0.0), "inter_token_latency_ms": summary(0.0)}
        run = read(guidellm(guidellm_benchmark(requests=[request] * 4, **nothing)))
        assert {"duration", "request_throughput", "output_throughput", "total_throughput"} == run.values.keys()

    def test_throughput_is_the_mean_of_its_distribution(self, read):
        """Its other statistics are of moments, not of the run."""
        assert read(guidellm()).values["output_throughput"] == 20.0

    def test_every_benchmark_of_a_sweep_is_a_run_of_its_own(self, tmp_path):
        runs = read_runs([written(tmp_path, guidellm(guidellm_benchmark(2), guidellm_benchmark(8)))])
        assert [run.load for run in runs] == ["closed_loop(2)", "closed_loop(8)"]
        assert runs[0].configuration != runs[1].configuration

    @pytest.mark.parametrize(
        ("strategy", "load"),
        [
            ({"type_": "synchronous"}, "closed_loop(1)"),
            ({"type_": "throughput", "max_concurrency": 512}, "all at once, at most 512 open"),
            ({"type_": "constant", "rate": 2.5}, "constant(2.5)"),
            ({"type_": "poisson", "rate": 2.5, "max_concurrency": 9}, "poisson(2.5), at most 9 open"),
            ({"type_": "incremental"}, "incremental"),
        ],
    )
    def test_the_load_in_words(self, read, strategy, load):
        assert read(changed(guidellm(), ("benchmarks", 0, "config", "strategy"), strategy)).load == load

    @pytest.mark.parametrize(
        ("strategy", "scheduled"),
        [
            ({"type_": "constant", "rate": 2.5}, True),
            ({"type_": "poisson", "rate": 2.5}, True),
            ({"type_": "concurrent", "streams": 2}, False),
            ({"type_": "throughput"}, False),
        ],
    )
    def test_ttft_from_the_schedule_where_there_is_one(self, read, strategy, scheduled):
        """Requests were sent half a second late, and that of a closed loop is due when another ends."""
        whole = guidellm(guidellm_benchmark(requests=[guidellm_request()] * 4))
        run = read(changed(whole, ("benchmarks", 0, "config", "strategy"), strategy))
        assert run.values["ttft_p50"] == pytest.approx(0.1, rel=1e-5)
        assert run.values.get("scheduled_ttft_p50") == (pytest.approx(0.6, rel=1e-5) if scheduled else None)

    def test_a_token_before_its_schedule(self, complaint):
        whole = guidellm(guidellm_benchmark(requests=[guidellm_request(late_s=-0.2)] * 4))
        constant = changed(whole, ("benchmarks", 0, "config", "strategy"), {"type_": "constant", "rate": 1})
        assert "targeted_start" in complaint(constant)

    def test_its_warnings_are_doubts(self, read):
        warned = changed(guidellm(), ("benchmarks", 0, "warnings"), [{"message": "p95 dispatch delay was 13.2s."}])
        assert read(warned).doubts == ("GuideLLM: p95 dispatch delay was 13.2s.",)

    def test_errored_and_incomplete_requests_have_failed(self, read):
        totals = {"successful": 4, "errored": 1, "incomplete": 2, "total": 7}
        run = read(guidellm(guidellm_benchmark(request_totals=totals)))
        assert run.failed == 3

    @pytest.mark.parametrize("ttft_s", [-0.1, 0.0])
    def test_a_token_before_its_request(self, complaint, ttft_s):
        """Its clock is the day's, which may step back."""
        requests = [guidellm_request(ttft_s=ttft_s)] * 4
        problem = complaint(guidellm(guidellm_benchmark(requests=requests)))
        assert "first_token_iteration" in problem
        assert "expected a time after request_start" in problem

    def test_another_version_of_the_form(self, complaint):
        problem = complaint(changed(guidellm(), ("metadata", "version"), 1))
        assert "metadata.version of GuideLLM is 1; expected 2, the form of GuideLLM 0.8" in problem

    def test_secrets_are_not_copied(self, read):
        run = read(guidellm())
        assert "sk-of-nobody" not in json.dumps([run.original, run.configuration])


class TestSGLang:
    def test_each_line_is_a_run(self, tmp_path):
        runs = read_runs([written(tmp_path, sglang(), sglang(median_ttft_ms=200.0))])
        assert [run.values["ttft_p50"] for run in runs] == [pytest.approx(0.1), pytest.approx(0.2)]

    def test_its_latency_ends_with_the_answer_and_not_with_the_last_token(self, read):
        run = read(sglang())
        assert not [name for name in run.values if name.startswith(("e2e", "itl"))]
        assert run.apart["e2e_to_done_p50"] == pytest.approx(0.191)
        assert "[DONE] included" in run.definitions["tpot"]

    def test_details_give_times_to_the_last_token(self, read):
        details = {
            "output_lens": [3, 5, 0],
            "ttfts": [0.1, 0.2, 0.0],
            "itls": [[0.01, 0.03], [0.02], []],
            "errors": ["", "", "refused"],
            "completed": 2,
            "total_output_tokens": 8,
        }
        run = read(sglang(**details))
        assert run.values["ttft_mean"] == pytest.approx(0.15)
        assert run.values["tpot_mean"] == pytest.approx((0.02 + 0.005) / 2)
        assert run.values["e2e_mean"] == pytest.approx((0.14 + 0.22) / 2)
        assert run.failed == 1
        assert any("1 of 3 requests failed" in doubt for doubt in run.doubts)

    def test_without_streaming_its_ttft_is_the_whole_latency(self, read):
        run = read(sglang(mean_ttft_ms=191.0, median_ttft_ms=191.0, mean_tpot_ms=0.0, median_tpot_ms=0.0))
        assert {"duration", "request_throughput", "output_throughput", "total_throughput"} == run.values.keys()
        assert "no TTFT and no TPOT: the answers were not streamed" in run.doubts

    def test_what_it_does_not_say(self, read):
        run = read(sglang())
        assert run.failed is None
        assert run.doubts == ("the file does not say whether requests failed; --output-details does",)

    def test_token_counts_that_disagree(self, read):
        """A server without usage is taken to have answered as long as was asked."""
        assert "but 12 in the answers' texts" in read(sglang(total_output_tokens_retokenized=12)).doubts[1]

    @pytest.mark.parametrize(
        ("fields", "load"),
        [
            ({}, "closed_loop(2)"),
            ({"request_rate": 3.5, "max_concurrency": None}, "poisson(3.5)"),
            ({"request_rate": "trace"}, "replay(), at most 2 open"),
        ],
    )
    def test_the_load_in_words(self, read, fields, load):
        assert read(sglang(**fields)).load == load

    def test_the_server_is_known_by_its_own_words(self, read):
        server = {"model_path": "m", "tp_size": 4, "api_key": "sk-of-nobody"}
        run = read(sglang(server_info=server, tag="nightly"))
        assert run.model == "m"
        assert run.engine_words == {"backend": "sglang-oai", "tag": "nightly", "model_path": "m", "tp_size": 4}
        assert "sk-of-nobody" not in json.dumps(run.original)


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("time_to_first_token", True),
        ("total_input_tokens", True),
        ("tokenizer_id", True),
        ("keys", True),
        ("api_key", False),
        ("openai-api-key", False),
        ("API_KEY", False),
        ("hf_token", False),
        ("token", False),
        ("headers", False),
        ("extra_headers", False),
        ("Authorization", False),
        ("cli_command", False),
    ],
)
def test_which_fields_are_taken_for_secrets(name, copied):
    assert plain({"inside": [{name: "value"}]}) == {"inside": [{name: "value"} if copied else {}]}


class TestFilesThatCannotBeUsed:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "is empty; expected the JSON or JSONL that a benchmark wrote"),
            (" \n\n", "is empty"),
            ("# Title", "is not JSON (Expecting value, character 0)"),
            ('{"completed": 4, "dur', "it may have been cut off"),
            ('{"completed": ', "it may have been cut off"),
            ("[1, 2]", "holds [1, 2]; expected a JSON object"),
            ("null", "holds null"),
            ("{}", "no known tool writes such a file; expected one of vllm bench serve: the JSON of --save-result; "),
            ('{"benchmarks": [], "machine_info": {}}', "this is pytest-benchmark's form already"),
            ('{"a": ' * 5000 + "1" + "}" * 5000, "too deep"),
            ('{"a": ' * 200 + "1" + "}" * 200, "too deep"),
            ('{"a": ' + "9" * 5000 + "}", "numbers too long"),
        ],
    )
    def test_texts(self, tmp_path, text, expected):
        path = tmp_path / "r.json"
        path.write_text(text)
        with pytest.raises(ForeignResultError) as caught:
            read_runs([path])
        assert str(caught.value).startswith(str(path))
        assert expected in str(caught.value)

    def test_no_text(self, tmp_path):
        path = tmp_path / "r.json"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ForeignResultError, match="not text in UTF-8"):
            read_runs([path])

    def test_no_file(self, tmp_path):
        with pytest.raises(ForeignResultError, match=r"r\.json cannot be read: No such file"):
            read_runs([tmp_path / "r.json"])

    def test_a_line_that_was_cut_off(self, tmp_path):
        path = written(tmp_path, sglang(), sglang())
        path.write_text(path.read_text()[:-40])
        with pytest.raises(ForeignResultError, match=r"line 2 is not JSON .* it may have been cut off"):
            read_runs([path])

    def test_all_mistakes_at_once(self, tmp_path):
        files = [
            written(tmp_path / "a", {}),
            written(tmp_path / "b", vllm(completed=0)),
            written(tmp_path / "c", vllm()),
            written(tmp_path / "d", vllm(duration=-1)),
        ]
        with pytest.raises(ForeignResultError) as caught:
            read_runs(files)
        assert [re.search(r"/([abcd])/", problem).group(1) for problem in str(caught.value).splitlines()] == [
            "a",
            "b",
            "d",
        ]

    @pytest.mark.parametrize(
        "document",
        [
            vllm(completed=0),
            aiperf(request_count={"unit": "requests", "avg": 0.0}),
            without(aiperf(), "request_count"),
            guidellm(guidellm_benchmark(request_totals={"successful": 0, "errored": 4, "incomplete": 0})),
            sglang(completed=0),
        ],
    )
    def test_nothing_was_answered(self, complaint, document):
        assert "at least one answered request" in complaint(document)

    @pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "fast", True, [], 1e19, 10**400])
    @pytest.mark.parametrize(
        ("document", "place"),
        [
            (vllm(), ("mean_ttft_ms",)),
            (vllm(), ("duration",)),
            (vllm_details(), ("ttfts", 1)),
            (vllm_details(), ("itls", 1, 0)),
            (aiperf(), ("time_to_first_token", "p50")),
            (guidellm(), ("benchmarks", 0, "duration")),
            (guidellm(), ("benchmarks", 0, "metrics", "time_to_first_token_ms", "successful", "percentiles", "p50")),
            (sglang(), ("median_ttft_ms",)),
        ],
    )
    def test_numbers_that_are_no_measurement(self, complaint, document, place, value):
        problem = complaint(changed(document, place, value))
        assert "expected a finite number of at least 0; leave the file out, or measure again" in problem
        assert str(place[-1]) in problem

    @pytest.mark.parametrize(
        ("document", "field"),
        [
            (vllm(), "duration"),
            (vllm(), "completed"),
            (vllm(), "total_output_tokens"),
            (guidellm(), "benchmarks"),
            (sglang(), "completed"),
            (sglang(), "duration"),
            (sglang(), "total_output_tokens"),
        ],
    )
    def test_missing_fields(self, complaint, document, field):
        gone = without(document, field) if field != "benchmarks" else {**document, "benchmarks": None}
        assert re.search(rf"{field} of .* is (missing|null); expected", complaint(gone))

    def test_figures_that_nothing_measures(self, tmp_path):
        with pytest.raises(
            ForeignResultError, match="output_throughput would be 1e-30 tokens/s, which nothing measures"
        ):
            read_runs([written(tmp_path, vllm(output_throughput=1e-30))])


def test_a_tool_is_known_by_its_files_alone():
    """No two of them claim the same file."""
    for document in (vllm(), vllm(input_throughput=1.0), aiperf(), aiperf_request(), guidellm(), sglang()):
        assert len([name for name, tool in TOOLS.items() if tool.recognises(document)]) == 1
