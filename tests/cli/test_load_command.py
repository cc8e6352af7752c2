"""`pytest-llmperf load URL` as its users meet it, against a real server on loopback."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from groups import process_group
from nvml import GPUS
from servers import CompletionsServer

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.cli import load, main
from pytest_llmperf.judged import Provenance, Validity
from pytest_llmperf.origin import OriginProcess
from pytest_llmperf.record_file import read_requests
from pytest_llmperf.records import ClientStats, Failure, Phase, RequestRecord, RunRecord, Window
from pytest_llmperf.reports.serving import summary
from pytest_llmperf.results import PerfResult
from pytest_llmperf.telemetry import TOLERABLE

pytestmark = pytest.mark.real_time

KEY = "sk-of-nobody-in-particular"
WAIT_S = 10.0
SMALL = ("--requests", "12", "--input-tokens", "16", "--output-tokens", "25")


@pytest.fixture(scope="module")
def server():
    with OriginProcess(ttft_s=0.02, itl_s=0.001) as origin:
        yield origin


@pytest.fixture
def call(server, tmp_path, monkeypatch, capsys):
    """Run the command; returns the exit code, what it printed, and what it complained of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMPERF_API_KEY", raising=False)

    def run(*arguments, url=server.url):
        code = main(["load", url, *map(str, arguments)])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, complaints=err.splitlines())

    return run


def eventually(condition):
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def figure(done, label):
    """What stands behind a label of the summary."""
    (line,) = [line for line in done.out.splitlines() if line.startswith(label)]
    return line.removeprefix(label).strip()


class TestLoads:
    @pytest.mark.parametrize(
        ("arguments", "description"),
        [
            (("--concurrency", 4), "closed_loop(4)"),
            (("--concurrency", 4, "--ramp", 0.05), "closed_loop(4, ramp_s=0.05)"),
            (("--rate", 200), "poisson(200)"),
            (("--rate", 200, "--seed", 7), "poisson(200, seed=7)"),
            (("--rate", 200, "--constant"), "constant(200)"),
            (("--rate", 200, "--burstiness", 0.5), "burst(200, shape=0.5)"),
        ],
    )
    def test_the_words_make_the_load(self, call, arguments, description):
        """Each of them is sent to its end, and named in the summary."""
        done = call(*arguments, *SMALL)
        assert description == figure(done, "Load:")
        assert "12" == figure(done, "Successful requests:")
        assert "0" == figure(done, "Failed requests:")
        assert done.code in (0, 2)  # a busy machine may have spoiled it
        assert done.err == ""

    @pytest.mark.slow
    @pytest.mark.parametrize("prompts", ["ids", "text", "chat"])
    def test_prompts_of_each_form(self, tmp_path, monkeypatch, capsys, prompts):
        """As token ids, as a text, as a message."""
        monkeypatch.chdir(tmp_path)
        with OriginProcess(ttft_s=0.005, itl_s=0.001) as origin:
            main(["load", origin.url, "--concurrency", "2", *SMALL, "--prompts", prompts])
            found_out = origin.stats()["requests"] - 12
        out, err = capsys.readouterr()
        assert "Successful requests:                            12" in out
        assert found_out == 1 if prompts == "ids" else 1 < found_out < 50  # with the first contact
        guessed = "note: the server counts 12 of 12 inputs otherwise"
        told = "INVALID: the prompts have " in out, "Input tokens asked for / counted:" in out, guessed in out
        assert told == ((prompts != "ids"),) * 3  # this server takes four bytes for a token
        assert err == ""

    @pytest.mark.slow
    @pytest.mark.parametrize("prompts", ["text", "chat"])
    def test_texts_of_exact_lengths(self, tmp_path, monkeypatch, prompts):
        """Both lengths are in the result, and the run is as good as one with ids."""
        monkeypatch.chdir(tmp_path)
        words = ["--concurrency", "2", *SMALL, "--prompts", prompts, "--json", "x.json"]
        with CompletionsServer(template_tokens=7) as server:
            main(["load", server.url, *words])
        result = json.loads((tmp_path / "x.json").read_bytes())
        counted = result["requests"]
        assert {"asked": counted * 16, "served": counted * 16} == result["input_tokens"]
        assert {"asked": counted * 25, "served": counted * 25} == result["output_tokens"]
        assert "server usage" == result["provenance"]["engine"]["prompt_lengths"]
        assert not any("asked for" in reason for reason in result["validity"] + result["doubts"])

    def test_a_tokenizer_of_our_own(self, call, tmp_path):
        """It is looked for before anything is sent, and goes with texts."""
        done = call("--concurrency", 2, "--prompts", "chat", "--tokenizer", tmp_path / "none")
        assert done.code == 3
        assert f"tokenizer: there is no {tmp_path / 'none'}; give a tokenizer.json" in done.err
        done = call("--concurrency", 2, "--tokenizer", tmp_path)
        assert done.code == 3
        assert "give prompts='text' or 'chat', too" in done.err

    @pytest.mark.slow
    def test_several_workers(self, call):
        """They share the load, and the summary says how many they were."""
        done = call("--concurrency", 4, *SMALL, "--workers", 2)
        assert ("12", "2") == (figure(done, "Successful requests:"), figure(done, "Workers:"))

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ({"requests": 7, "rate": 10.0, "duration": 60.0}, 7),
            ({"concurrency": 4}, 100),
            ({"rate": 10.0}, 100),
            ({"rate": 10.0, "duration": 60.0}, 757),
            ({"rate": 10.0, "duration": 60.0, "burstiness": 0.25}, 904),
            ({"rate": float("nan"), "duration": 60.0}, 100),
        ],
    )
    def test_a_rate_for_a_duration_needs_no_number_of_requests(self, words, expected):
        """There are more than can become due, whatever is drawn."""
        given = {"requests": None, "rate": None, "duration": None, "burstiness": None, **words}
        assert expected == load._requests(SimpleNamespace(**given))

    @pytest.mark.slow
    def test_a_duration_is_filled(self, call):
        """Requests keep coming until it is over."""
        done = call("--rate", 200, "--duration", 1, "--input-tokens", 4, "--output-tokens", 2)
        assert float(figure(done, "Measured time (s):")) == pytest.approx(1, abs=0.1)
        assert 100 < int(figure(done, "Successful requests:")) < 300


class TestExitCode:
    @pytest.mark.slow
    def test_a_valid_run(self, call):
        """It is 0, and the last words are where the records are."""
        done = call("--concurrency", 2, "--requests", 8, "--input-tokens", 16, "--output-tokens", 100)
        assert "\nVALID\nrecords: .llmperf/load-" in done.out
        assert done.code == 0

    @pytest.mark.slow
    def test_an_invalid_run(self, tmp_path, monkeypatch, capsys):
        """Failures are counted by kind, and the reason stands last."""
        monkeypatch.chdir(tmp_path)
        with CompletionsServer() as server:
            answer, asked = server.answer, []

            def refusing(request):
                asked.append(request)
                return answer(request) if len(asked) < 6 else (503, b'{"error": {"message": "overloaded"}}')

            server.answer = refusing
            code = main(["load", server.url, "--concurrency", "2", *SMALL])
        out, err = capsys.readouterr()
        assert code == 2
        assert "\n  http_503:" in out
        assert "\nINVALID: " in out
        assert "http_503 (overloaded)" in out
        assert all(len(line) <= 80 for line in out.splitlines())
        assert err == ""

    def test_a_load_that_ended_before_it_was_to_be_measured(self, call):
        """Not a single figure is not a valid result."""
        done = call("--rate", 1000, "--warmup", 5, *SMALL)
        assert "\nINVALID: no request was meant to be sent within the window that counts" in done.out
        assert done.code == 2

    def test_a_server_that_is_not_there(self, call):
        """One sentence."""
        done = call("--concurrency", 2, url="http://127.0.0.1:1")
        assert (done.code, done.out) == (2, "")
        assert done.complaints == [
            "pytest-llmperf load: http://127.0.0.1:1 cannot be used, GET /v1/models: nothing listens at "
            "http://127.0.0.1:1. Is the server running, and is the URL right?"
        ]

    def test_all_mistakes_at_once(self, call, tmp_path):
        """Nobody wants to be told of one after another."""
        (tmp_path / "file").write_text("")
        done = call(
            "--concurrency", 0, "--rate", -1, "--constant", "--burstiness", 0, "--requests", 0, "--workers", "many",
            "--timeout", 0, "--slo-ttft", "nan", "--json", tmp_path / "none" / "x.json",
            "--output", tmp_path / "file", "--telemetry", "often", "--tolerate", "heat", url="here",
        )  # fmt: skip
        assert done.code == 3
        assert done.out == ""
        assert [line.removeprefix("pytest-llmperf load: ") for line in done.complaints] == [
            "give either --concurrency N or --rate R",
            "give --constant or --burstiness, not both",
            "openai: url='here'; expected http://HOST:PORT or https://HOST/PREFIX",
            "closed_loop: concurrency must be a whole number of at least 1, got 0",
            "single_turn: requests must be a whole number of at least 1, got 0",
            "--workers: expected a number of processes from 1 to 256, or ray://..., got 'many'",
            "--telemetry: expected a number of samples per second from 0.1 to 100, or off, got 'often'",
            f"--tolerate: unknown rule 'heat'; accepted: {', '.join(TOLERABLE)}",
            "--timeout: expected a positive number of seconds, got 0",
            "--slo-ttft: expected a positive number of seconds, got nan",
            f"--output: {tmp_path}/file cannot be written to: {tmp_path}/file is no folder; name another folder",
            f"--json: {tmp_path}/none/x.json cannot be written: there is no folder {tmp_path}/none; make it, or name "
            "another file",
        ]

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ((), "give either --concurrency N or --rate R"),
            (("--concurrency", 2, "--constant"), "--constant and --burstiness go with --rate"),
            (("--concurrency", 2, "--duration", 5), "--duration with --concurrency: give --requests, too, more than"),
            (("--rate", 5, "--duration", 5, "--warmup", 5), "poisson: duration_s must be longer than"),
            (("--concurrency", 2, "--output-tokens", 1 << 20), "grows to 1049088 tokens"),
        ],
    )
    def test_a_contradiction(self, call, arguments, complaint):
        """Whoever finds it, it is a mistake in the arguments."""
        done = call(*arguments)
        assert done.code == 3
        (line,) = done.complaints
        assert complaint in line

    @pytest.mark.slow
    def test_advice_names_the_options_of_this_command(self, call, monkeypatch):
        """They have no prefix here."""
        excess = "the client may account for it; give it more workers (--llmperf-workers)"
        monkeypatch.setattr("pytest_llmperf.selfcheck.excesses", lambda *_: [excess])
        done = call("--concurrency", 2, *SMALL)
        assert "INVALID: the client may account for it; give it more workers (--workers)" in done.out

    def test_a_full_disk(self, call, monkeypatch):
        """What the system says, without a traceback."""

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pytest_llmperf.record_file.RecordFile.request", full)
        done = call("--concurrency", 2, *SMALL)
        assert (done.code, done.complaints) == (3, ["pytest-llmperf load: [Errno 28] No space left on device"])


class TestJson:
    def test_it_has_the_figures(self, call, tmp_path):
        """Under the names that tests know; and whether they may be believed."""
        call("--rate", 100, *SMALL, "--slo-ttft", 5, "--json", tmp_path / "result.json")
        result = json.loads((tmp_path / "result.json").read_bytes())
        for name in ("ttft", "itl", "tpot", "e2e", "scheduled_ttft"):
            assert {"count", "mean", "gmean", "p50", "p90", "p95", "p99"} == set(result[name])
        assert 12 == result["requests"] == result["ttft"]["count"]
        assert {} == result["errors"]
        for name in ("duration_s", "request_throughput", "output_throughput", "total_throughput", "goodput"):
            assert result[name] > 0
        assert result["client"]["error_bounds"]["ttft_p50"] > 0
        assert result["client"]["workers"] == 1
        assert isinstance(result["validity"], list)
        assert result["provenance"]["load"] == "poisson(100)"

    @pytest.mark.slow
    def test_a_place_that_cannot_be_written_to_in_the_end(self, call, tmp_path, monkeypatch):
        """The summary is not lost, but the exit code tells."""
        monkeypatch.setattr(load, "_unwritable", lambda _: ())
        done = call("--concurrency", 2, *SMALL, "--json", tmp_path / "none" / "x.json")
        assert "Successful requests:" in done.out
        assert done.code == 3
        (line,) = done.complaints
        assert "--json: " in line
        assert "No such file or directory" in line


class TestTelemetry:
    """Beside a server on this machine, as in pytest."""

    LONGER = ("--rate", 40, "--constant", "--requests", 30, "--input-tokens", 16, "--output-tokens", 8)

    @pytest.mark.slow
    def test_gpus_are_sampled_and_told(self, call, nvml_here, tmp_path):
        """In the summary, in the file, and their samples beside the records."""
        nvml_here("h200", real_time=True)
        done = call(*self.LONGER, "--telemetry", "50", "--json", "result.json")
        assert figure(done, "Power, mean of all together (W):") == "70"
        assert float(figure(done, "Energy per output token (J):")) > 0
        assert figure(done, "SM clock, mean (MHz):") == "345"
        assert json.loads((tmp_path / "result.json").read_bytes())["gpu"]["mean_power_w"] == pytest.approx(70)
        assert len(list(tmp_path.glob(".llmperf/*/*.telemetry.ndjson"))) == 1

    @pytest.mark.slow
    def test_what_spoils_a_run_in_pytest_spoils_it_here(self, call, nvml_here):
        """Unless it is tolerated; then it is said."""
        nvml_here(GPUS["h200"] | {"pcie_width": 8}, real_time=True)
        done = call(*self.LONGER)
        assert done.code == 2
        assert "INVALID: GPU 0 has 8 PCIe lanes of 16" in done.out
        done = call(*self.LONGER, "--tolerate", "link")
        assert "INVALID: GPU" not in done.out
        assert "note: tolerated: GPU 0 has 8 PCIe lanes of 16" in done.out

    @pytest.mark.slow
    @pytest.mark.parametrize("arguments", [("--telemetry", "off"), ()], ids=["switched off", "no GPU"])
    def test_without_it_there_are_no_gpus(self, call, nvml_here, tmp_path, arguments):
        """Neither figures nor an error."""
        nvml_here(*(["h200"] if arguments else []))
        done = call("--concurrency", 2, *SMALL, "--json", "result.json", *arguments)
        assert "GPUs" not in done.out
        assert "gpu" not in json.loads((tmp_path / "result.json").read_bytes())


class TestApiKey:
    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [1, 2])
    def test_it_is_sent_and_nowhere_written(self, tmp_path, monkeypatch, capfd, workers):
        """Neither on the terminal nor in a file."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("LLMPERF_API_KEY", KEY)
        with CompletionsServer(api_key=KEY) as server:
            words = ["--concurrency", "2", *SMALL, "--workers", str(workers), "--json", "x.json"]
            main(["load", server.url, *words])
        out, err = capfd.readouterr()
        assert "Successful requests:                            12" in out
        written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
        assert len(written) == 2
        assert not any(KEY in text for text in (out, err, *written))

    def test_a_wrong_one_is_not_quoted(self, tmp_path, monkeypatch, capsys):
        """The complaint says only that there is one."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("LLMPERF_API_KEY", KEY)
        with CompletionsServer(api_key="another") as server:
            assert main(["load", server.url, "--concurrency", "2"]) == 2
        out, err = capsys.readouterr()
        assert "LLMPERF_API_KEY is set" in err
        assert KEY not in out + err

    def test_one_that_no_header_can_hold_is_a_mistake(self, call, monkeypatch):
        """Before anything is sent."""
        monkeypatch.setenv("LLMPERF_API_KEY", "schlüssel")
        done = call("--concurrency", 2)
        assert done.code == 3
        assert "schl" not in done.err


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestProgress:
    def test_a_terminal_shows_how_far_it_is(self, server, tmp_path, monkeypatch):
        """One line, rewritten, and taken away in the end."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(load, "_REPEAT_NS", 0)
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        main(["load", server.url, "--concurrency", "2", *SMALL])
        lines = terminal.getvalue().split("\r\x1b[K")
        assert f"connecting to {server.url}" == lines[1]
        assert lines[-1] == ""
        shown = [line for line in lines if line.startswith("12 requests done, ")]
        assert shown
        assert re.fullmatch(r"12 requests done, [\d,]+ tok/s, \d s", shown[-1])
        assert "\n" not in terminal.getvalue()

    def test_it_says_how_many_have_failed(self, monkeypatch):
        """There is no need to wait for the end to see that."""
        monkeypatch.setattr(load, "_REPEAT_NS", 0)
        terminal, rows = Terminal(), []

        def run(job, record, check_engine):
            record(request(0, released_ms=0, sent_ms=0, first_ms=1))
            record(request(1, released_ms=0, sent_ms=0, first_ms=1, failure=Failure("timeout", "x")))
            check_engine()

        team = SimpleNamespace(run=run)
        load._Watched(team, load._Progress(terminal)).run(None, rows.append, lambda: rows.append("looked"))
        assert ["1 requests done, ", "2 requests done, 1 failed, ", "2 requests done, 1 failed, "] == [
            re.sub(r"[\d,]+ tok/s, 0 s", "", line) for line in terminal.getvalue().split("\r\x1b[K")[1:]
        ]
        assert (3, "looked") == (len(rows), rows[-1])

    def test_it_is_not_said_more_often_than_one_can_read(self, monkeypatch):
        """A line stays for a while."""
        terminal = Terminal()
        progress = load._Progress(terminal)
        progress("first")
        progress("second")
        assert terminal.getvalue() == "\r\x1b[Kfirst"

    def test_a_line_is_no_longer_than_the_terminal(self):
        """One that wraps could not be rewritten."""
        terminal = Terminal()
        load._Progress(terminal)("x" * 200)
        assert terminal.getvalue() == "\r\x1b[K" + "x" * 79

    def test_a_log_is_left_alone(self):
        """What is no terminal gets nothing."""
        stream = io.StringIO()
        progress = load._Progress(stream)
        progress("first")
        progress.clear()
        assert stream.getvalue() == ""


@pytest.mark.slow
class TestInterrupt:
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_control_c(self, server, tmp_path, workers):
        """What was answered is on record, and nobody is left of the whole process group."""
        server.reset()
        command = [sys.executable, "-c", "import sys; from pytest_llmperf.cli import main; sys.exit(main())", "load"]
        words = ["--concurrency", "8", "--requests", "5000", "--output-tokens", "10", "--workers", workers]
        with process_group([*command, server.url, *words], tmp_path) as process:
            eventually(lambda: any(path.stat().st_size > 9999 for path in tmp_path.glob(".llmperf/*/*")))
            family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=WAIT_S)
            assert process.returncode == 130
            assert (out, err) == ("", "interrupted; what had been answered is recorded below .llmperf\n")
            eventually(lambda: not any(map(psutil.pid_exists, family)))
        (path,) = tmp_path.glob(".llmperf/*/*")
        answered = server.stats()["requests"] - 1  # without the first contact
        assert answered - 8 <= len(list(read_requests(path))) <= answered


def request(number, *, released_ms, sent_ms, first_ms, failure=None):
    ms = 1_000_000
    arrivals = [] if failure else [(first_ms + 10 * token) * ms for token in range(5)]
    return RequestRecord(
        run=0,
        phase=Phase.MEASURED,
        session=number,
        turn=0,
        released_ns=released_ms * ms,
        sent_ns=sent_ms * ms,
        flushed_ns=sent_ms * ms + 1000,
        end_ns=(arrivals or [sent_ms * ms])[-1],
        arrivals=Arrivals(arrivals, [1] * len(arrivals), [1000] * len(arrivals)),
        new_tokens=100,
        input_tokens=100,
        output_tokens_asked=5,
        prompt_tokens=100,
        output_tokens=None if failure else 5,
        failure=failure,
    )


def result_of(*requests, window=None, reasons=(), doubts=(), slo=None, shed=0, is_open=True):
    client = ClientStats(cpu_shares=[0.25, 0.125])
    client.away.add(100_000)
    client.unread.add(50_000)
    client.connects.add(200_000)
    run = RunRecord(
        index=0,
        phase=Phase.MEASURED,
        start_ns=0,
        end_ns=1_000_000_000,
        requests=requests,
        window=window,
        shed=shed,
        client=client,
    )
    provenance = Provenance(
        test="load",
        name=None,
        hardware_key="X",
        workload="single_turn",
        workload_digest="0",
        load="poisson(4)" if is_open else "closed_loop(4)",
        open_load=is_open,
        cache="as_is",
        engine_kind="openai",
        engine_identity={},
        engine_words={},
        engine={"url": "http://10.0.0.1:8000", "model": "a-model"},
    )
    return PerfResult([run], provenance=provenance, validity=Validity(reasons), slo=slo, doubts=doubts)


GOLDEN = """\
================== Serving load ==================
Server:                       http://10.0.0.1:8000
Model:                                     a-model
Load:                                   poisson(4)
Successful requests:                             3
Failed requests:                                 1
  timeout:                                       1
Requests that could not be sent:                 2
Requests sent in the measured time:              3
Measured time (s):                            0.50
Total input tokens:                            200
Total generated tokens:                         10
Offered load (req/s):                         4.00
Request throughput (req/s):                   4.00
Request goodput (req/s):                      2.00
Output token throughput (tok/s):             20.00
Total token throughput (tok/s):             420.00
------Time to first token, from the schedule------
Mean scheduled TTFT (ms):                   105.00
Median scheduled TTFT (ms):                 105.00
P99 scheduled TTFT (ms):                    109.90
---------------Time to first token----------------
Mean TTFT (ms):                             104.00
Median TTFT (ms):                           104.00
P99 TTFT (ms):                              107.92
------Time per output token, first left out-------
Mean TPOT (ms):                              10.00
Median TPOT (ms):                            10.00
P99 TPOT (ms):                               10.00
---------------Inter-token latency----------------
Mean ITL (ms):                               10.00
Median ITL (ms):                             10.00
P99 ITL (ms):                                10.00
--------------------End to end--------------------
Mean E2E (ms):                              144.00
Median E2E (ms):                            144.00
P99 E2E (ms):                               147.92
----------------The client itself-----------------
Error of scheduled_ttft_p50, at most:      1.00 ms
Error of tpot_p50, at most:               0.250 us
Error of output_throughput, at most:   0.138 tok/s
Event loop away, P99:                       100 us
Arrived to read, P99:                      50.2 us
Due to sent, P99:                          2.03 ms
Connecting, median:                         201 us
Workers:                                         2
CPU, of the busiest worker:                 25.0 %
Arrival times from:                         kernel
==================================================
INVALID: 1 of 4 requests failed: 1 timeout (no byte for 300 s), which is a
  sentence of more than 80 columns
note: nothing that would matter
"""


class TestSummary:
    def test_of_an_open_load(self):
        """Every figure at its place, to the letter."""
        result = result_of(
            request(0, released_ms=100, sent_ms=100, first_ms=200),
            request(1, released_ms=350, sent_ms=352, first_ms=460),
            request(2, released_ms=600, sent_ms=600, first_ms=0, failure=Failure("timeout", "no byte for 300 s")),
            request(3, released_ms=700, sent_ms=701, first_ms=810),
            window=Window(100_000_000, 600_000_000),
            reasons=(
                "1 of 4 requests failed: 1 timeout (no byte for 300 s), which is a sentence of more than 80 columns",
            ),
            doubts=("nothing that would matter",),
            slo={"ttft": 0.104},
            shed=2,
        )
        assert GOLDEN.splitlines() == list(summary(result))

    def test_of_a_closed_loop(self):
        """There is no schedule to count from, no part cut off, and nothing wrong."""
        result = result_of(request(0, released_ms=100, sent_ms=100, first_ms=200), is_open=False)
        lines = list(summary(result))
        assert not any("schedule" in line or "Offered" in line or "measured time" in line for line in lines)
        assert lines[-1] == "VALID"

    def test_without_an_answer_there_is_no_latency(self):
        """What was not measured is not 0."""
        failure = Failure("connection_refused", "nothing listens")
        text = "\n".join(summary(result_of(request(0, released_ms=1, sent_ms=1, first_ms=0, failure=failure))))
        assert "connection_refused:" in text
        assert not any(word in text for word in ("TTFT", "TPOT", "ITL", "nan", "None"))
