"""Where a prompt's KV cache comes from on the real vLLM, told by its counters and by the time to the first token."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
from fakes import no_progress
from real_vllm import MARKS, PYTHON, START_TIMEOUT_S, WORDS

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines import Surroundings, make_engine, make_spec
from pytest_llmperf.engines.host import Launch
from pytest_llmperf.engines.vllm_offload import offload_arguments
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.load import round_robin
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.workloads import multi_round

pytestmark = [*MARKS, pytest.mark.timeout(START_TIMEOUT_S)]

BLOCK = 128
CONTEXT = 3_600
CACHED = CONTEXT // BLOCK * BLOCK
INPUT = 16
"""So few that context and input together end in the block that the context ends in, as the disk tier wants it."""
# Two contexts fit, and what pushes them out takes a few seconds.
SMALL = {**WORDS, "max_model_len": 8_000, "args": [*WORDS["args"], "--num-gpu-blocks-override", "64"]}
OFFLOAD = {"kv_offload_gib": 1, "kv_offload_backend": "disk"}
KV_BYTES_PER_TOKEN = 2 * 4 * 2 * 32 * 2
"""Of tiny-llama: keys and values, layers, heads, their size, 16-bit numbers."""


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiers")
    return Surroundings(
        clock=RealClock(),
        log_dir=folder / "log",
        cache_dir=folder / "cache",
        start_timeout_s=START_TIMEOUT_S,
        limits=Limits(silence_s=60),
        api_key=None,
        progress=no_progress,
    )


def started(around, words):
    made = make_engine(make_spec("vllm", words), around)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def plain(around):
    """A server whose KV cache holds two contexts."""
    yield from started(around, SMALL)


@pytest.fixture(scope="module")
def tiered(around, plain):
    """The same with a tier on disk, once the other one has gone: they would take each other's processors."""
    plain.stop()
    yield from started(around, {**SMALL, **OFFLOAD})
    assert not list(around.log_dir.glob("*.kv")), "the tier's files are gone with the server"


def measured(engine, folder, workload, **words):
    given = {"load": round_robin(), "runs": 1, "warmup_runs": 0, "prefill_context": False, "slo": None}
    request = checked_request(workload, **{**given, "cache": "as_is", "name": words.get("cache"), **words})
    setting = Setting(
        test=os.environ["PYTEST_CURRENT_TEST"],
        hardware_key="test",
        clock=RealClock(),
        record_dir=folder,
        progress=no_progress,
        team=LocalTeam(RealClock()),
    )
    return measure(engine, request, setting)


def users(number, **words):
    asked = {"rounds": 1, "context_tokens": CONTEXT, "input_tokens": INPUT, "output_tokens": 2, "seed": 7}
    return multi_round(users=number, **{**asked, **words})


USERS = users(2)
ALL = 2 * (CONTEXT + INPUT)
FOUND = 2 * CACHED


def sources(result):
    """Prompt tokens by where they came from, of those that there are."""
    return {tier: tokens for tier, tokens in result.cache.tiers.items() if tokens}


def test_the_capacity_is_the_engines_own_word(plain):
    """What it says in its metrics is what it says in its log, and users fit in whole blocks."""
    (told,) = re.findall(r"KV cache size: ([\d,]+) tokens", plain.host._process.log.read_text())
    assert int(told.replace(",", "")) == plain.kv_capacity_tokens
    assert plain.kv_capacity_tokens // (29 * BLOCK) == plain.users_that_fit(CONTEXT + INPUT + 2) == 2


def test_users_that_fit_find_their_contexts_again(plain, tmp_path):
    """As many as fit lose nothing; one more, and each finds less than it left."""
    fit = plain.users_that_fit(CONTEXT + INPUT + 2)
    fitting = measured(plain, tmp_path, users(fit), cache="primed", name="fitting")
    crowded = measured(plain, tmp_path, users(fit + 1), cache="primed", name="crowded")
    assert {"gpu": fit * CACHED, "recomputed": fit * (CONTEXT + INPUT - CACHED)} == sources(fitting)
    assert crowded.cache.tiers["gpu"] < 0.5 * (fit + 1) * CACHED


def test_cache_states_without_an_outer_tier(plain, tmp_path):
    """Cold and evicted contexts are computed, primed ones are found, and TTFT shows which it was."""
    cold, primed, evicted = (measured(plain, tmp_path, USERS, cache=state) for state in ("cold", "primed", "evicted"))
    assert all(result.validity for result in (cold, primed, evicted))
    assert {"recomputed": ALL} == sources(cold) == sources(evicted)
    assert {"gpu": FOUND, "recomputed": ALL - FOUND} == sources(primed)
    assert min(cold.ttft.p50, evicted.ttft.p50) > 3 * primed.ttft.p50


def test_native_offload_is_refused_before_the_start(around, tmp_path):
    """This vLLM is built for processors, which its own offload is not; what does work is said."""
    engine = make_engine(make_spec("vllm", {**SMALL, "kv_offload_gib": 1}), around)
    with pytest.raises(ConfigurationError, match=r"needs a GPU, and this vLLM \S+ is built for CPUs; .*'disk'"):
        engine.start()
    assert engine.host._process is None


def test_three_tiers_are_told_apart(tiered, tmp_path):
    """Computed, from the device, from disk: by tokens, bytes and TTFT.

    With everything on the device, the tier that was asked for is not what was measured, and the run is
    invalid. On a quiet machine the disk takes half as long again as the device, which is not asserted.
    """
    cold, primed, evicted = (measured(tiered, tmp_path, USERS, cache=state) for state in ("cold", "primed", "evicted"))
    idle = "kv_offload_gib=1 was asked for, but the engine moved no KV cache out or back"
    assert [(), (idle,), ()] == [result.validity.reasons for result in (cold, primed, evicted)]
    assert {"recomputed": ALL} == sources(cold)
    assert {"gpu": FOUND, "recomputed": ALL - FOUND} == sources(primed)
    assert {"disk": FOUND, "recomputed": ALL - FOUND} == sources(evicted)
    moved = FOUND * KV_BYTES_PER_TOKEN
    assert [(moved, 0), (0, 0), (0, moved)] == [
        (result.cache.offloaded_bytes, result.cache.restored_bytes) for result in (cold, primed, evicted)
    ]
    assert cold.ttft.p50 > 3 * max(primed.ttft.p50, evicted.ttft.p50)


PARSED = """
import json, sys
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
for arguments in json.load(sys.stdin):
    config = AsyncEngineArgs.from_cli_args(parser.parse_args(arguments)).kv_transfer_config
    known = config.kv_connector in KVConnectorFactory._registry
    print(json.dumps([config.kv_connector, known, config.kv_role, config.kv_connector_extra_config]))
"""


def test_vllm_takes_our_arguments(tmp_path):
    """Its own parser, and its own table of connectors."""
    commands = []
    for backend in ("disk", "lmcache"):
        spec = make_spec("vllm", {"model": "m", "kv_offload_gib": 0.25, "kv_offload_backend": backend})
        launch = Launch(spec=spec, python="python", model="m", served_name="m", port=1, log=tmp_path / "a.log")
        commands.append(offload_arguments(launch))
    told = subprocess.run(
        [PYTHON, "-c", PARSED], input=json.dumps(commands), capture_output=True, text=True, check=False, timeout=120
    )
    assert not told.returncode, told.stderr
    disk, lmcache = (json.loads(line) for line in told.stdout.splitlines()[-2:])
    assert ["ExampleConnector", True, "kv_both", {"shared_storage_path": str(tmp_path / "a.kv")}] == disk
    assert ["LMCacheMPConnector", True, "kv_both"] == lmcache[:3]
    assert "--l1-size-gb 0.25 " in lmcache[3]["lmcache.mp.autostart.server_args"]


HAS_LMCACHE = (
    PYTHON
    and not subprocess.run(
        [PYTHON, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('lmcache') is None)"], check=False
    ).returncode
)


@pytest.fixture
def lmcached(around):
    yield from started(around, {**SMALL, "kv_offload_gib": 0.25, "kv_offload_backend": "lmcache"})


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LMCACHE, reason="the Python of LLMPERF_TEST_VLLM has no lmcache; pip install lmcache there")
def test_lmcache_brings_back_what_was_evicted(lmcached, tmp_path):
    """From the host's memory, all of it; what was emptied is gone from there, too."""
    cold, evicted = (measured(lmcached, tmp_path, USERS, cache=state) for state in ("cold", "evicted"))
    assert all(result.validity for result in (cold, evicted))
    assert {"recomputed": ALL} == sources(cold)
    assert evicted.cache.tiers["host"] > 0.9 * FOUND
    assert cold.ttft.p50 > 1.5 * evicted.ttft.p50
