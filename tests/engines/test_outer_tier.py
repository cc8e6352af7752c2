"""`engines/outer_tier.py`: what is known of a tier outside the device beyond what the engine counts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.engines.outer_tier import DiskTier, NamedTier, Tensor, tensors_of
from pytest_llmperf.records import CacheCounters

LAYERS = 3
TOKEN_BYTES = LAYERS * 2 * 8 * 2


def safetensors(tensors):
    """A file's bytes, as the format has it: the length of a header, the header, the numbers."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, size) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def store(folder, prompt, tokens):
    """What vLLM's ExampleConnector leaves of a prompt: for each layer tokens x heads x twice the head's size."""
    (folder / prompt).mkdir(parents=True)
    for layer in range(LAYERS):
        shape = [tokens, 2, 8]
        content = safetensors({"kv_cache": (shape, tokens * 2 * 8 * 2)})
        (folder / prompt / f"model.layers.{layer}.safetensors").write_bytes(content)


def counted(device=0, external=0, recomputed=0):
    return CacheCounters(tokens_by_tier={"recomputed": recomputed, "gpu": device, "disk": 0, "external": external})


@pytest.fixture
def tier(tmp_path):
    return DiskTier(tmp_path / "kv")


def test_what_is_in_files_was_offloaded(tier):
    """Tensors count, headers do not; a prompt of no whole block leaves files without a token."""
    assert 0 == tier.completed(counted()).offloaded_bytes
    store(tier.folder, "a", 256)
    store(tier.folder, "b", 128)
    store(tier.folder, "short", 0)
    assert 384 * TOKEN_BYTES == tier.completed(counted()).offloaded_bytes


def test_what_came_back_has_the_bytes_of_its_tokens(tier):
    """The engine counts the tokens, and says of them only that they came from outside."""
    store(tier.folder, "a", 256)
    store(tier.folder, "short", 0)
    told = tier.completed(counted(device=10, external=128, recomputed=5))
    assert {"recomputed": 5, "gpu": 10, "disk": 128} == told.tokens_by_tier
    assert 128 * TOKEN_BYTES == told.restored_bytes


def test_counts_go_on_after_it_was_emptied(tier):
    """Readings before and after can be subtracted, as all counters can."""
    store(tier.folder, "a", 256)
    before = tier.completed(counted(external=256))
    tier.empty()
    assert not tier.folder.exists()
    assert before == tier.completed(counted(external=256))
    store(tier.folder, "a", 128)
    since = tier.completed(counted(external=384)).since(before)
    assert (128 * TOKEN_BYTES, 128 * TOKEN_BYTES) == (since.offloaded_bytes, since.restored_bytes)


def test_what_the_engine_does_not_count_stays_unknown(tier):
    """No tokens told, no bytes restored; what lies in the files is known all the same."""
    store(tier.folder, "a", 128)
    told = tier.completed(CacheCounters())
    assert (None, None, 128 * TOKEN_BYTES) == (told.tokens_by_tier, told.restored_bytes, told.offloaded_bytes)


def test_removing_is_harmless_when_repeated(tier):
    """Also where nothing was ever stored."""
    tier.remove()
    store(tier.folder, "a", 128)
    tier.remove()
    tier.remove()
    assert not tier.folder.exists()


def test_a_tier_that_only_lacks_a_name():
    """Its tokens are called after where they came from; all else is as told."""
    assert {"recomputed": 1, "gpu": 2, "disk": 0, "host": 3} == (
        NamedTier("host").completed(counted(device=2, external=3, recomputed=1)).tokens_by_tier
    )
    assert CacheCounters() == NamedTier("host").completed(CacheCounters())


@pytest.mark.slow
@given(st.dictionaries(st.text(min_size=1), st.tuples(st.lists(st.integers(0, 99), max_size=3), st.integers(0, 999))))
def test_headers_are_read_back(tmp_path_factory, tensors):
    """Every tensor's shape and size, whatever it is called."""
    tensors.pop("__metadata__", None)
    file = tmp_path_factory.mktemp("kv") / "a.safetensors"
    file.write_bytes(safetensors(tensors))
    assert [Tensor(tuple(shape), size) for shape, size in tensors.values()] == list(tensors_of(file))


@given(
    st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda text: len(text).to_bytes(8, "little") + text))
)
def test_what_is_no_whole_file_has_no_tensors(tmp_path_factory, content):
    """A file that is being written is none yet."""
    file = tmp_path_factory.mktemp("kv") / "a.safetensors"
    file.write_bytes(content)
    assert [] == list(tensors_of(file))


def test_a_file_that_has_gone_has_no_tensors(tmp_path):
    assert [] == list(tensors_of(tmp_path / "gone"))
