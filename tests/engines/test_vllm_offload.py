"""`engines/vllm_offload.py`: one word for the size, one for what keeps it, and what is said before a start."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from fakes import no_progress
from stub_engine import BLOCK, installed

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines import make_engine, make_spec
from pytest_llmperf.engines.base import Surroundings
from pytest_llmperf.engines.host import Launch
from pytest_llmperf.engines.vllm import RECIPE
from pytest_llmperf.engines.vllm_offload import offload_doubts, offload_lack
from pytest_llmperf.errors import ConfigurationError


def spec(**words):
    return make_spec("vllm", {"model": "m", **words})


def command(folder, **words):
    """The options for offload."""
    launch = Launch(spec=spec(**words), python="python", model="m", served_name="m", port=1, log=folder / "vllm-1.log")
    return RECIPE.command(launch)[RECIPE.command(launch).index("--enable-prompt-tokens-details") + 1 :]


def transfer(arguments):
    return json.loads(arguments[arguments.index("--kv-transfer-config") + 1])


def test_its_own_offload_is_the_default(tmp_path):
    """Written out or not, it is one engine and one flag."""
    assert ["--enable-per-request-metrics", "--kv-offloading-size", "4"] == command(tmp_path, kv_offload_gib=4)
    assert spec(kv_offload_gib=4) == spec(kv_offload_gib=4, kv_offload_backend="native")
    assert ["--enable-per-request-metrics"] == command(tmp_path)


def test_a_tier_on_disk(tmp_path):
    """A folder beside the log, and prompts in one piece, before the arguments of the test's own."""
    arguments = command(tmp_path, kv_offload_gib=4, kv_offload_backend="disk", args=["--last"])
    assert ["--no-enable-chunked-prefill", "--kv-transfer-config"] == arguments[1:3]
    assert "--last" == arguments[-1]
    assert not list(tmp_path.iterdir()), "it is made with the server, once its lease is on file"
    assert {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path / "vllm-1.kv")},
    } == transfer(arguments)


def test_lmcache(tmp_path):
    """Its server gets the size, and starts with vLLM, on ports that no other one has."""
    first, second = (transfer(command(tmp_path, kv_offload_gib=1.5, kv_offload_backend="lmcache")) for _ in range(2))
    extra = first["kv_connector_extra_config"]
    assert ("LMCacheMPConnector", "kv_both", True) == (
        first["kv_connector"],
        first["kv_role"],
        extra["lmcache.mp.autostart"],
    )
    server = shlex.split(extra["lmcache.mp.autostart.server_args"])
    assert "1.5" == server[server.index("--l1-size-gb") + 1]
    ports = [config["kv_connector_extra_config"]["lmcache.mp.port"] for config in (first, second)]
    assert 3 == len({*ports, int(server[server.index("--http-port") + 1])})


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            {"kv_offload_backend": "disc", "kv_offload_gib": 1},
            "unknown backend 'disc'.*accepted: native, disk, lmcache",
        ),
        ({"kv_offload_backend": "disk"}, r"kv_offload_backend='disk' without a size; give kv_offload_gib=\.\.\., too"),
        (
            {"kv_offload_backend": "disk", "kv_offload_gib": 1, "tensor_parallel": 2},
            "ranks would write into each other",
        ),
        (
            {"kv_offload_backend": "lmcache", "kv_offload_gib": 1, "args": ["--kv-transfer-config={}"]},
            "'lmcache' is itself a --kv-transfer-config, and args has another one",
        ),
        ({"kv_offload_backend": 3, "kv_offload_gib": 1}, "kv_offload_backend=3; expected a backend such as 'native'"),
    ],
)
@pytest.mark.parametrize("kind", ["vllm", "fleet"])
def test_words_that_do_not_go_together(kind, words, problem):
    """Said before anything starts, of one server and of several."""
    with pytest.raises(ConfigurationError, match=problem):
        make_spec(kind, {"model": "m", **words})


def test_other_engines_have_one_way_only():
    """The word is vLLM's."""
    with pytest.raises(ConfigurationError, match="unknown word 'kv_offload_backend'"):
        make_spec("sglang", {"model": "m", "kv_offload_gib": 1, "kv_offload_backend": "disk"})
    with pytest.raises(ConfigurationError, match=r"kv_offload_backend='disk' is a word of vllm's; sglang has one way"):
        make_spec("fleet", {"model": "m", "engine": "sglang", "kv_offload_gib": 1, "kv_offload_backend": "disk"})


@pytest.mark.parametrize(
    ("facts", "backend", "lack"),
    [
        (
            {"vllm": "0.32.0", "cpu": True, "lmcache": False, "lmcache_version": None},
            "native",
            "vLLM 0.32.0 is built for CPUs; .*='disk' keeps",
        ),
        ({"vllm": "0.32.0", "cpu": False, "lmcache": False, "lmcache_version": None}, "native", None),
        ({"vllm": "0.32.0", "cpu": True, "lmcache": False, "lmcache_version": None}, "disk", None),
        (
            {"vllm": "0.32.0", "cpu": True, "lmcache": False, "lmcache_version": None},
            "lmcache",
            "pip install lmcache there",
        ),
        ({"vllm": "0.32.0", "cpu": True, "lmcache": True, "lmcache_version": "0.5.6"}, "lmcache", None),
        ({"vllm": None, "cpu": True, "lmcache": False, "lmcache_version": None}, "native", None),
        ("no JSON", "native", None),
    ],
)
def test_what_an_installation_lacks(tmp_path, facts, backend, lack):
    """One that does not say what it is gets the benefit of the doubt: its own start will tell."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {shlex.quote(json.dumps(facts))}\n")
    python.chmod(0o755)
    found = offload_lack(spec(kv_offload_gib=1, kv_offload_backend=backend), str(python))
    assert (found is None) if lack is None else re.search(lack, found)


def test_without_offload_nothing_is_looked_up(tmp_path):
    """The Python is not even run."""
    assert offload_lack(spec(), str(tmp_path / "gone")) is None
    assert [] == list(offload_doubts(spec(), str(tmp_path / "gone")))


@pytest.mark.parametrize(
    ("vllm", "lmcache", "backend", "doubt"),
    [
        ("0.32.0", "0.5.6", "lmcache", None),
        ("0.32.0", "0.5.9", "lmcache", None),
        (
            "0.32.0",
            None,
            "lmcache",
            "LMCache has no metadata of its package, so its version was not checked; 0.5.6 was",
        ),
        ("0.32.0", "0.7.0", "lmcache", "this LMCache is 0.7.0, and 0.5.6 was tried"),
        (None, "0.5.6", "native", "this vLLM has no metadata of its package, so whether it is built for GPUs was not"),
        ("0.32.0", None, "native", None),
        (None, None, "disk", None),
    ],
)
def test_what_of_an_installation_was_not_checked(tmp_path, vllm, lmcache, backend, doubt):
    """It is said, not passed over."""
    python = tmp_path / "python"
    facts = {"vllm": vllm, "cpu": False, "lmcache": True, "lmcache_version": lmcache}
    python.write_text(f"#!/bin/sh\necho {shlex.quote(json.dumps(facts))}\n")
    python.chmod(0o755)
    found = list(offload_doubts(spec(kv_offload_gib=1, kv_offload_backend=backend), str(python)))
    assert ([] == found) if doubt is None else found[0].startswith(f"kv_offload_backend={backend!r}: {doubt}")


def test_a_python_that_tells_nothing_of_its_offload(tmp_path):
    (found,) = offload_doubts(spec(kv_offload_gib=1, kv_offload_backend="lmcache"), str(tmp_path / "gone"))
    assert "does not tell what it has of it, so nothing of that was checked" in found


def test_pieces_of_prompts_do_not_go_with_files(tmp_path):
    """The connector would store a prompt short, and end the engine when it is loaded."""
    words = {"kv_offload_gib": 1, "kv_offload_backend": "disk", "args": ["--enable_chunked_prefill"]}
    with pytest.raises(ConfigurationError, match="it stores prompts in one piece, and args has --enable-chunked-pref"):
        spec(**words)


@pytest.mark.slow
def test_the_tiers_files_live_as_long_as_the_server(tmp_path):
    """Emptied with its cache, gone with it; the counters have them."""
    around = Surroundings(
        clock=RealClock(),
        log_dir=tmp_path / "log",
        cache_dir=tmp_path / "cache",
        start_timeout_s=15.0,
        limits=Limits(silence_s=5.0),
        api_key=None,
        progress=no_progress,
    )
    words = {"executable": installed(tmp_path / "engines"), "kv_offload_gib": 1, "kv_offload_backend": "disk"}
    engine = make_engine(spec(**words), around)
    try:
        engine.start()
        (folder,) = around.log_dir.glob("*.kv")
        header = json.dumps({"kv_cache": {"dtype": "U8", "shape": [BLOCK], "data_offsets": [0, BLOCK]}}).encode()
        (folder / "prompt").mkdir()
        (folder / "prompt" / "layer.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(BLOCK))
        assert BLOCK == engine.cache_counters().offloaded_bytes
        assert engine.reset_cache()
        assert not (folder / "prompt").exists()
        assert BLOCK == engine.cache_counters().offloaded_bytes
        folder.mkdir(exist_ok=True)
    finally:
        engine.stop()
    assert [] == list(Path(around.log_dir).glob("*.kv"))
