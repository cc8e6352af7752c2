"""`engines/fleet`: replicas and a router as one engine. The servers are stubs, their processes are real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from fakes import no_progress
from real_routers import router
from stub_engine import BLOCK, CAPACITY, installed

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines import make_engine, make_spec
from pytest_llmperf.engines.base import Generation, Surroundings
from pytest_llmperf.errors import ConfigurationError, EngineDiedError, EngineStartError

pytestmark = pytest.mark.real_time

IDS = list(range(1100, 1100 + 10 * BLOCK))


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python that has a stub of each engine, and a router beside it."""
    return installed(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def fleet(python, tmp_path):
    """Make fleets; what still runs is stopped after the test."""
    around = Surroundings(
        clock=RealClock(),
        log_dir=tmp_path / "log",
        cache_dir=tmp_path / "cache",
        start_timeout_s=15.0,
        limits=Limits(silence_s=5.0),
        api_key=None,
        progress=no_progress,
    )
    made = []

    def make(**words):
        given = {"model": "m", "replicas": 2, "executable": python, "router": str(Path(python).parent / "vllm-router")}
        made.append(make_engine(make_spec("fleet", {**given, **words}), around))
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


def answer(engine, ids=IDS):
    channel = engine.connector().open(RealClock())
    try:
        channel.send(0, channel.encode(Generation(ids, 3, return_token_ids=True)))
        replies = []
        while not replies:
            channel.poll(1.0)
            replies += channel.ended()
        return replies[0].read()
    finally:
        channel.close()


def pids(engine):
    return [engine.host._router.pid, *(replica.host._process.pid for replica in engine.replicas)]


def runs(pid):
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until_dead(engine):
    """Its end is seen a moment after it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        engine.check()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vllm", "sglang", "tensorrt_llm"])
def test_a_whole_life(fleet, kind):
    """One address; sums over the replicas, each by itself beside them; all emptied together; all gone."""
    engine = fleet(engine=kind, max_model_len=2048)
    engine.start()
    before = engine.cache_counters()

    answers = [answer(engine) for _ in range(4)]  # each replica has it twice

    assert [None] * 4 == [each.failure for each in answers]
    assert (1001, 1002, 1003) == answers[0].token_ids
    assert [0, 0, 9 * BLOCK, 9 * BLOCK] == [each.cached_tokens for each in answers]
    counted = engine.cache_counters().since(before)
    assert (40 * BLOCK, 18 * BLOCK) == (counted.queried_tokens, counted.hit_tokens)
    assert [9 * BLOCK] * 2 == [
        replica.cache_counters().hit_tokens - before_one
        for replica, before_one in zip(engine.replicas, probe_hits(before), strict=True)
    ]
    assert (2048, 2 * CAPACITY, True) == (engine.max_model_len, engine.kv_capacity_tokens, engine.returns_token_ids)
    per_user = 7 * BLOCK  # does not divide the capacity of one
    assert 2 * (CAPACITY // per_user) == engine.users_that_fit(per_user) < 2 * CAPACITY // per_user
    assert (kind != "tensorrt_llm") is engine.reset_cache()
    if kind != "tensorrt_llm":
        assert [0, 0] == [answer(engine).cached_tokens for _ in range(2)]
    processes = pids(engine)
    engine.stop()
    assert [False] * 3 == [runs(pid) for pid in processes]


def probe_hits(counters):
    """What connecting has found cached: its prompt once more through the router, at the first replica."""
    return (counters.hit_tokens, 0)


@pytest.mark.slow
def test_what_it_tells(fleet):
    """The router's command and each replica's own."""
    engine = fleet(cpus="0|0", gpus="3|2")
    told = engine.describe()  # which starts it
    assert 3 == len({replica.host._process.log for replica in engine.replicas} | {engine.host._router.log})
    assert 3 == len(list(engine.host._router.log.parent.iterdir()))  # each once
    first, second = (replica.url for replica in engine.replicas)
    assert f"--worker-urls {first} {second} --policy round_robin" in told["router"]
    assert ("round_robin", 2 * CAPACITY, "0.0-stub") == (told["policy"], told["kv_capacity_tokens"], told["version"])
    assert [CAPACITY] * 2 == [replica["kv_capacity_tokens"] for replica in told["replicas"]]
    assert "CUDA_VISIBLE_DEVICES=3" in told["replicas"][0]["command"]
    assert " taskset --cpu-list 0 " in told["replicas"][1]["command"]
    logs = [replica.host._process.log.read_text() for replica in engine.replicas]
    assert all("processors [0]" in log for log in logs)
    assert ["CUDA_VISIBLE_DEVICES=3", "CUDA_VISIBLE_DEVICES=2"] == [
        next(line for line in log.splitlines() if line.startswith("CUDA")) for log in logs
    ]


@pytest.mark.slow
def test_a_replica_dies(fleet):
    """Which one it was, with the last lines of its log; the next start is one of all."""
    engine = fleet()
    engine.start()
    first = pids(engine)
    os.killpg(first[2], signal.SIGKILL)
    with pytest.raises(EngineDiedError, match=r"^replica 2 of 2 \(vllm\): the server has ended: killed by SIGKILL\n"):
        until_dead(engine)
    engine.start()
    assert [False] * 3 == [runs(pid) for pid in first]
    assert answer(engine).failure is None


@pytest.mark.slow
def test_the_router_dies(fleet):
    """It is named, and its log quoted."""
    engine = fleet()
    engine.start()
    os.killpg(pids(engine)[0], signal.SIGKILL)
    with pytest.raises(EngineDiedError, match=r"^the router .*/vllm-router: the server has ended(.|\n)*routing to \["):
        until_dead(engine)


@pytest.mark.slow
def test_a_replica_that_does_not_start(fleet):
    """Which one, in its own words; nothing is left running."""
    engine = fleet(args=["--no-such-flag"])
    with pytest.raises(EngineStartError, match=r"^replica 1 of 2 \(vllm\): (.|\n)*arguments: --no-such-flag"):
        engine.start()
    assert [None, None] == [replica.host._process for replica in engine.replicas]


@pytest.mark.slow
def test_a_router_that_does_not_start(fleet):
    """Its own words, and nothing is left running."""
    engine = fleet(router_args=["--no-such-flag"])
    with pytest.raises(EngineStartError, match=r"^the router (.|\n)*arguments: --no-such-flag"):
        engine.start()
    assert [None, None] == [replica.host._process for replica in engine.replicas]


def test_a_router_that_is_not_there(fleet, tmp_path):
    """How to get it, before any replica starts."""
    path = tmp_path / "vllm-router"
    with pytest.raises(ConfigurationError, match=rf"router='{path}' is not there; give the path of one, or its name"):
        fleet(router=str(path)).start()
    path.touch()
    with pytest.raises(ConfigurationError, match=rf"router='{path}' is no program that may be run; give the path"):
        fleet(router=str(path)).start()
    assert not (tmp_path / "log").exists()


def test_a_router_that_is_not_installed(fleet, tmp_path, monkeypatch):
    """How to get it, or to say where it is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ConfigurationError, match=r"is not installed; pip install vllm-router, or give its path"):
        fleet(router="vllm-router").start()


def test_a_router_at_a_url_where_nothing_is(fleet, tmp_path):
    """Before any replica starts."""
    port = free_port()
    engine = fleet(router=f"http://127.0.0.1:{port}", ports=[free_port(), free_port()])
    said = (
        f"router='http://127.0.0.1:{port}' is to run already, and nothing listens at http://127.0.0.1:{port}; start it"
    )
    with pytest.raises(EngineStartError, match=said):
        engine.start()
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("cpus", ["0|7999", "0-7999", "7998|7999"])
def test_processors_that_are_not_there(fleet, tmp_path, cpus):
    """Before any replica starts, with those that are."""
    with pytest.raises(
        ConfigurationError, match=r"there is no processor .*7999|there is no processor [0-9, ]+ here"
    ) as e:
        fleet(cpus=cpus).start()
    assert f"fleet: cpus={cpus!r}: there is no processor" in str(e.value)
    assert "those that may be used are 0" in str(e.value)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("name", "words", "hits"),
    [
        ("vllm-router", {}, [0, 0, 9 * BLOCK]),
        ("vllm-router", {"policy": "cache_aware"}, [0, 9 * BLOCK, 9 * BLOCK]),
        ("sglang-router", {"prompts": "text", "policy": "cache_aware"}, [0, 9 * BLOCK, 9 * BLOCK]),
    ],
)
def test_a_real_router(fleet, name, words, hits):
    """It is ready when it has found all replicas, takes our prompts, and passes answers and what they count on."""
    program = router(name)
    if program is None:
        pytest.skip(f"no {name}: pip install {name}, or LLMPERF_TEST_ROUTERS=FOLDER")
    engine = fleet(router=program, **words)
    answers = [answer(engine) for _ in range(3)]
    assert [None] * 3 == [each.failure for each in answers]
    assert hits == [each.cached_tokens for each in answers]
    assert [(10 * BLOCK, 3)] * 3 == [(each.prompt_tokens, each.output_tokens) for each in answers]
    assert engine.returns_token_ids is (name == "vllm-router")
    assert engine.reset_cache()


@pytest.mark.slow
def test_sharing_a_gpu(fleet):
    """Each gets its share of the memory by the engine's own flag."""
    engine = fleet(engine="sglang", gpus="0", gpu_memory_fraction=0.4)
    commands = [replica["command"] for replica in engine.describe()["replicas"]]
    assert all("CUDA_VISIBLE_DEVICES=0" in command for command in commands)
    assert all("--mem-fraction-static 0.4" in command for command in commands)


@pytest.mark.slow
def test_each_replica_has_an_outer_tier_of_its_own(fleet, tmp_path):
    """By the words of one; counted together, emptied together, gone with them."""
    engine = fleet(kv_offload_gib=1, kv_offload_backend="disk")
    assert 0 == engine.cache_counters().offloaded_bytes
    folders = list((tmp_path / "log").glob("*.kv"))
    assert [True, True] == [
        sum(str(folder) in replica["command"] for replica in engine.describe()["replicas"]) == 1 for folder in folders
    ]
    for folder in folders:
        (folder / "prompt").mkdir()
    assert engine.reset_cache()
    assert [] == list((tmp_path / "log").glob("*.kv/*"))
    engine.stop()
    assert [] == list((tmp_path / "log").glob("*.kv"))


@pytest.mark.slow
def test_behind_a_router_at_a_url(fleet, python):
    """Replicas on given ports, requests to the URL, where the router listens before they do."""
    ports, port = [free_port(), free_port()], free_port()
    workers = [f"http://127.0.0.1:{one}" for one in ports]
    options = ["--policy", "round_robin", "--port", str(port), "--prometheus-port", "1", "--host", "127.0.0.1"]
    options += ["--prometheus-host", "127.0.0.1", "--disable-retries", "--disable-circuit-breaker"]
    program = str(Path(python).parent / "vllm-router")
    with subprocess.Popen([program, "--worker-urls", *workers, *options]) as running:
        try:
            until_listening(port)
            engine = fleet(router=f"http://127.0.0.1:{port}", ports=ports)
            assert f"http://127.0.0.1:{port}" == engine.url == engine.describe()["router"]
            assert workers == [replica.url for replica in engine.replicas]
            assert [None] * 2 == [answer(engine).failure for _ in range(2)]
        finally:
            running.terminate()


def until_listening(port):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
    return pytest.fail("the router does not listen")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"engine": "openai"}, "engine: unknown engine of a fleet 'openai'; .*accepted: vllm, sglang, tensorrt_llm"),
        ({"router": "nginx"}, "router: unknown router 'nginx'; accepted: vllm-router, sglang-router, the path of one"),
        (
            {"router": "/opt/bin/mine"},
            "router='/opt/bin/mine': by its file's name .* vllm-router or sglang-router; a link",
        ),
        ({"policy": "prefix_hash"}, "policy: unknown policy of vllm-router 'prefix_hash'"),
        ({"router": "sglang-router"}, r"sglang-router takes no token ids; send text \(prompts='text'\)"),
        ({"router": "sglang-router", "prompts": "text", "policy": "kv_aware"}, "unknown policy of sglang-router"),
        ({"router": "http://h:1"}, r"say on which ports: ports=\[\.\.\.\]"),
        ({"router": "http://h:1", "ports": [1, 2], "policy": "cache_aware"}, "http://h:1 has its own"),
        ({"engine": "tensorrt_llm", "dtype": "fp8"}, "does not quantise"),
    ],
)
def test_words_that_do_not_fit(words, problem):
    """Each mistake is said before anything starts."""
    with pytest.raises(ConfigurationError, match=problem):
        make_spec("fleet", {"model": "m", "replicas": 2, **words})


def test_what_is_compared():
    """Another engine behind the router is another test; another policy is not."""
    one, other = (make_spec("fleet", {"model": "m", "replicas": 2, "engine": kind}) for kind in ("vllm", "sglang"))
    assert one.identity() != other.identity()
    aware = make_spec("fleet", {"model": "m", "replicas": 2, "engine": "vllm", "policy": "cache_aware"})
    assert one.identity() == aware.identity()
    assert "engine" not in make_spec("vllm", {"model": "m"}).identity()
