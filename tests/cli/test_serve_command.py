"""`pytest-llmperf serve` as its users meet it: a process on loopback, driven by our own client."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import pytest
from fakes import no_progress

from pytest_llmperf.cli import main
from pytest_llmperf.client import Limits
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines import make_spec
from pytest_llmperf.engines.sim.engine import SimulatedEngine
from pytest_llmperf.engines.sim.plan import planned
from pytest_llmperf.load import closed_loop
from pytest_llmperf.reports.figures import result_json
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.workloads import single_turn

pytestmark = pytest.mark.real_time

COMMAND = (sys.executable, "-c", "import sys; from pytest_llmperf.cli import main; sys.exit(main())", "serve")
SIMULATED = ("--part", "gh200", "--model", "llama-3.1-8b")
WAIT_S = 10.0
ATTEMPTS = 4
"""How often the client is asked anew where a neighbour on the machine kept it or the server waiting."""


def interruptible():
    """A shell that runs the tests in the background has them ignore Ctrl-C, which is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def serving(*arguments):
    """The command in a process of its own, ready: its process, its URL and what it said."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,  # noqa: PLW1509 - it starts no thread
    )
    try:
        line = process.stdout.readline()
        url = re.match(r"listening on (http://127\.0\.0\.1:\d+) \(", line)
        yield SimpleNamespace(process=process, url=url and url[1], said=line)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server():
    with serving(*SIMULATED) as running:
        yield running


def loaded(server, folder, *arguments):
    """What `pytest-llmperf load` measures there."""
    target = folder / "result.json"
    main(["load", server.url, *map(str, arguments), "--output", str(folder), "--json", str(target)])
    return figures(json.loads(target.read_text()))


def figures(result):
    """The medians, seconds."""
    return {name: result[name]["p50"] for name in ("ttft", "tpot", "e2e")}


def in_virtual_time(folder, *, concurrency, requests, input_tokens, output_tokens):
    """What the same workload gives where no time passes."""
    spec = make_spec("sim", {"part": "gh200", "model": "llama-3.1-8b"})
    engine = SimulatedEngine(spec, Limits(silence_s=300, exchange_s=3600))
    workload = single_turn(requests=requests, input_tokens=input_tokens, output_tokens=output_tokens, seed=0)
    request = checked_request(
        workload,
        load=closed_loop(concurrency),
        runs=1,
        warmup_runs=0,
        cache="as_is",
        prefill_context=False,
        slo=None,
        name=None,
    )
    setting = Setting(
        test="load",
        hardware_key="sim",
        clock=engine.clock,
        record_dir=folder,
        progress=no_progress,
        team=LocalTeam(engine.clock),
    )
    return figures(result_json(measure(engine, request, setting)))


def complaints(capsys, *arguments):
    """What is wrong with these."""
    assert main(["serve", *arguments]) == 3
    return capsys.readouterr().err.splitlines()


class TestAgreement:
    """Measured over HTTP is what virtual time says, but for the way there and back."""

    @pytest.mark.slow
    @pytest.mark.parametrize("concurrency", [1, 4])
    def test_with_virtual_time(self, server, tmp_path, concurrency):
        """TTFT and gaps of one client; with several, which come a little apart, what their requests take in all."""
        sizes = {"requests": 3 * concurrency, "input_tokens": 512, "output_tokens": 24}
        expected = in_virtual_time(tmp_path, concurrency=concurrency, **sizes)
        words = [word for name, value in sizes.items() for word in (f"--{name.replace('_', '-')}", value)]
        for attempt in range(ATTEMPTS):
            found = loaded(server, tmp_path, "--concurrency", concurrency, "--seed", attempt, *words)
            excess = {name: found[name] - expected[name] for name in expected}
            if concurrency > 1:
                excess["ttft"] = 0.0
            if 0 <= excess["ttft"] < 3e-3 and abs(excess["tpot"]) < 3e-4 and abs(excess["e2e"]) < 5e-3:
                return
        pytest.fail(f"beyond virtual time by {excess}")

    @pytest.mark.slow
    @pytest.mark.parametrize("prompts", ["text", "chat"])
    def test_prompts_of_each_form(self, server, tmp_path, prompts, capsys):
        """Texts have the tokens that were asked for, with what a chat puts around them."""
        loaded(server, tmp_path, *("--concurrency", 2, "--requests", 4, "--output-tokens", 4, "--prompts", prompts))
        assert "Successful requests:                             4" in capsys.readouterr().out
        result = json.loads((tmp_path / "result.json").read_text())
        assert {"asked": 4 * 512, "served": 4 * 512} == result["input_tokens"]
        assert "server tokenizer" == result["provenance"]["engine"]["prompt_lengths"]


class TestPlugin:
    """Our own tests with `--llmperf-url`."""

    @pytest.mark.slow
    def test_sessions_with_a_cache(self, server, pytester):
        """Sessions continue from the server's token ids, and its counters say what was reused."""
        capacity = planned(make_spec("sim", {"part": "gh200", "model": "llama-3.1-8b"})).kv_capacity_tokens
        pytester.makepyfile(
            f"""
            import pytest
            from pytest_llmperf import multi_round

            @pytest.mark.llm_engine("openai")
            def test_it(llm_engine, llm_perf):
                users = multi_round(users=2, rounds=2, context_tokens=800, input_tokens=32, output_tokens=40, seed=1)
                result = llm_perf(llm_engine, users)
                assert result.cache.hit_rate > 0.4
                assert llm_engine.kv_capacity_tokens == {capacity}
            """
        )
        for _ in range(ATTEMPTS):
            result = pytester.runpytest_subprocess(
                *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-W", "ignore", "--llmperf-gate", "off"),
                *("--llmperf-url", server.url, "--llmperf-runs", "1", "--llmperf-warmup-runs", "0"),
            )
            if "the client itself may account for" not in result.stdout.str():
                break
        result.assert_outcomes(passed=1)


class TestProcess:
    """How it begins and ends."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "number", "what"),
        [
            (SIMULATED, signal.SIGINT, "(llama-3.1-8b, 1 x NVIDIA-GH200-96GB, simulated)"),
            (
                (*SIMULATED, "--replicas", "2", "--tensor-parallel", "4"),
                signal.SIGTERM,
                "(llama-3.1-8b, 2 replicas on 4 x NVIDIA-GH200-96GB, simulated)",
            ),
            (("--ttft-ms", "20"), signal.SIGINT, "(TTFT 20 ms, ITL 10 ms)"),
            (("--itl-ms", "5"), signal.SIGTERM, "(TTFT 100 ms, ITL 5 ms)"),
        ],
    )
    def test_until_it_is_told(self, arguments, number, what):
        """One line when it is ready, nothing else; exit code 0, also with a request under way."""
        with serving(*arguments) as running:
            assert running.said.rstrip("\n").endswith(what)
            port = int(running.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), WAIT_S) as client:
                body = b'{"prompt": "a", "max_tokens": 1000, "stream": true}'
                client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                assert client.recv(1)
                running.process.send_signal(number)
                out, err = running.process.communicate(timeout=WAIT_S)
        assert (running.process.returncode, out, err) == (0, "", "")

    @pytest.mark.slow
    def test_a_known_answer(self):
        """It is the one of `pytest_llmperf.origin`."""
        with (
            serving("--itl-ms", "1", "--ttft-ms", "5") as running,
            urllib.request.urlopen(f"{running.url}/stats", timeout=WAIT_S) as answer,
        ):
            assert json.load(answer)["requests"] == 0

    @pytest.mark.parametrize("arguments", [SIMULATED, ("--ttft-ms", "20")])
    def test_a_port_in_use(self, capsys, arguments):
        """Is said, with what to do."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            (line,) = complaints(capsys, *arguments, "--port", str(port))
        assert line.startswith(f"pytest-llmperf serve: cannot listen on 127.0.0.1, port {port}: ")
        assert line.endswith("; give another --host or --port (0: any port that is free)")


class TestMistakes:
    """All of them, before anything is started."""

    def test_nothing_said(self, capsys):
        """What is needed, and what else could be meant."""
        (line,) = complaints(capsys)
        assert line == (
            "pytest-llmperf serve: --model and --part missing: a simulated engine needs a part and a model, such as "
            "--part gh200 --model llama-3.1-8b; --ttft-ms and --itl-ms serve a known answer without them"
        )

    def test_both_kinds(self, capsys):
        """The options of the one do not go with the other."""
        first, *rest = complaints(capsys, "--part", "gh200", "--set", "a=1", "--no-prefix-caching", "--ttft-ms", "-1")
        assert first == (
            "pytest-llmperf serve: --part, --no-prefix-caching, --set: for a simulated engine; --ttft-ms and --itl-ms "
            "serve a known answer, which simulates nothing. Give the one or the other"
        )
        expected = "--ttft-ms: expected a number of milliseconds of at least 0, got '-1'"
        assert rest == [f"pytest-llmperf serve: {expected}"]

    def test_all_at_once(self, capsys):
        """What was given, and what is accepted, in the words of this command."""
        given = {
            "--part": "gh20",
            "--model": "llama-9",
            "--slow": "decode:5",
            "--replicas": "0",
            "--policy": "zz",
            "--like": "qq",
            "--kv-offload-gib": "-3",
            "--request-noise": "abc",
            "--port": "http",
        }
        words = [word for option in given.items() for word in option]
        lines = complaints(capsys, *words, "--set", "nope=1", "--set", "x")
        for expected in (
            "--port: expected a whole number from 0 to 65535, got 'http'",
            "--set 'x': expected CONSTANT=VALUE, such as max_num_seqs=128",
            "--kv-offload-gib -3; expected a positive number of GiB",
            "--replicas 0; expected a whole number of engines, at least 1",
            "--request-noise 'abc'; expected a share from 0 to 1, such as 0.1",
            "--slow 'decode:5': expected a change in percent, above -100 %, such as decode:+5%",
            "--like: unknown engine 'qq'; ",
            "--policy: unknown routing policy 'zz'; ",
            "unknown constant of the simulation 'nope'; ",
            "unknown part 'gh20'; did you mean 'gh200'? ",
            "unknown model 'llama-9'; ",
        ):
            assert any(line.startswith(f"pytest-llmperf serve: {expected}") for line in lines), expected
        assert len(lines) == len(set(lines)) == 11

    def test_one_missing_and_another_wrong(self, capsys):
        """What can be known of the rest is said, too."""
        lines = complaints(capsys, "--part", "gh200", "--policy", "zz", "--slow", "decode:5")
        assert [line.removeprefix("pytest-llmperf serve: ").split(":")[0] for line in lines] == [
            "--model missing",
            "--policy",
            "--slow 'decode",
        ]

    def test_what_does_not_fit(self, capsys):
        """With the bytes that it would need."""
        (line,) = complaints(capsys, "--part", "rtx4090", "--model", "llama-3.1-70b")
        assert "does not fit" in line
        assert "use more GPUs (--tensor-parallel)" in line

    def test_the_options_reach_the_engine(self, capsys):
        """A length that the model does not have is refused by the plan, under the option's name."""
        (first, *_) = complaints(capsys, *SIMULATED, "--max-model-len", "9999999")
        assert first == "pytest-llmperf serve: --max-model-len 9999999: llama-3.1-8b was made for 131072"
