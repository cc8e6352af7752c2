"""What can be reached of that which is started here, and by whom: sockets, files, routes for control."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat

import psutil
import pytest
from engine_cases import CASES, cases, made, surroundings
from servers import CompletionsServer

from pytest_llmperf.engines import make_engine, make_spec
from pytest_llmperf.engines.process import ServerProcess
from pytest_llmperf.files import create
from pytest_llmperf.origin import Origin
from pytest_llmperf.record_file import RecordFile
from pytest_llmperf.telemetry.series import SeriesFile

pytestmark = pytest.mark.real_time


def listening(pids):
    """The addresses on which these processes accept connections."""
    return {
        (pid, one.laddr.ip, one.laddr.port)
        for pid in pids
        for one in psutil.Process(pid).net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }


def exposed(found):
    return {one for one in found if not ipaddress.ip_address(one[1]).is_loopback}


def descendants():
    return [child.pid for child in psutil.Process().children(recursive=True)]


@pytest.fixture
def engine(name, tmp_path, request):
    """A started one; of the real ones, which take their time, that of all tests."""
    if name.startswith("real-"):
        yield request.getfixturevalue(name.replace("-", "_"))
        return
    with made(name, tmp_path) as engine:
        engine.start()
        yield engine


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(lambda case: case.has_process))
def test_a_server_of_ours_listens_on_loopback_only(engine):
    """With all the processes that it has started: others on the network have no business with it."""
    found = listening(descendants())

    assert engine.server.address.port in {port for _, _, port in found} or engine.spec.words.get("in_process")
    assert set() == exposed(found)


def test_the_known_answer_listens_on_loopback_only():
    """As do `calibration` and `serve`, which start it; `--host` is for other machines."""
    with contextlib.closing(Origin()) as origin:
        assert ipaddress.ip_address(origin.address[0]).is_loopback


def test_what_listens_everywhere_would_be_found():
    """So that the tests above can fail."""
    with socket.create_server(("0.0.0.0", 0)):
        assert exposed(listening([os.getpid()]))


def test_routes_for_control_are_for_servers_of_ours(tmp_path):
    """Of a server at a URL no cache is emptied, no development mode is asked for, nothing is profiled."""
    with CompletionsServer() as server:
        engine = make_engine(make_spec("openai", {"url": server.url}), surroundings(tmp_path))
        engine.start()
        assert not engine.reset_cache()
        engine.request_timings()
        engine.describe()
        engine.stop()

    assert all(request.method == "GET" or request.path == "/v1/completions" for request in server.requests)
    assert {"/v1/models", "/v1/completions", "/metrics", "/prometheus/metrics", "/version", "/server_info"} >= {
        *server.paths()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_development_mode_is_in_the_environment_of_ours_alone(name, tmp_path, monkeypatch):
    """vLLM's reset of the cache needs it; it is not left in the environment of the tests."""
    monkeypatch.delenv("VLLM_SERVER_DEV_MODE", raising=False)
    with made(name, tmp_path) as engine:
        engine.start()
        process = psutil.Process(engine.host._process.pid)
        assert (name == "vllm") == ("VLLM_SERVER_DEV_MODE" in process.environ())
        assert "VLLM_SERVER_DEV_MODE" not in os.environ


@pytest.fixture
def no_umask():
    """As in many build containers: what is made is everybody's, unless its maker says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_not_for_others_to_write(tmp_path, no_umask):
    """Records and samples are for all to read; the log of a server, which may hold a secret, for its owner."""
    RecordFile(tmp_path / "records.jsonl", {}).close()
    SeriesFile(tmp_path / "series.ndjson", {}, []).close()
    surrounding = surroundings(tmp_path)
    server = ServerProcess(["true"], env={}, log=tmp_path / "server.log", clock=surrounding.clock)
    server.stop()

    assert [0o644, 0o644, 0o600] == [mode(tmp_path / name) for name in ("records.jsonl", "series.ndjson", "server.log")]


def test_a_private_file_takes_the_place_of_an_open_one(tmp_path):
    path = tmp_path / "log"
    path.touch(0o666)
    create(path, private=True).close()

    assert 0o600 == mode(path)


def test_every_engine_with_processes_is_looked_at():
    assert {"vllm", "sglang", "tensorrt_llm", "fleet"} <= {case.kind for case in CASES.values() if case.has_process}
