"""Digests of models."""

from __future__ import annotations

import pytest

from pytest_llmperf.engines.model_files import digest, folder_of

LARGE = (1 << 20) + 200_000


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "weights").write_bytes(bytes(LARGE))
    return folder


def test_the_same_files_have_the_same_digest(model, tmp_path):
    """Wherever they lie; hidden files and folders are none of the model."""
    before = digest(model)
    (model / ".cache").write_text("x")
    (model / "folder").mkdir()
    assert before == digest(model.rename(tmp_path / "other"))


@pytest.mark.parametrize("at", [0, LARGE - 1])
def test_other_weights(model, at):
    """Begin and end of large files count."""
    before, weights = digest(model), bytearray(LARGE)
    weights[at] = 1
    (model / "weights").write_bytes(weights)
    assert before != digest(model)


@pytest.mark.parametrize(("name", "text"), [("config.json", '{"hidden_size": 9}'), ("weights", "short"), ("more", "")])
def test_other_files(model, name, text):
    """So do the whole of small ones, sizes and names."""
    before = digest(model)
    (model / name).write_text(text)
    assert before != digest(model)


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_a_name_of_the_hub(model, tmp_path, variable):
    """Its files are those of the cache, if it has them."""
    cache = tmp_path / "hub" / "models--org--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc\n")
    env = {variable: str(tmp_path if variable == "HF_HOME" else tmp_path / "hub")}
    assert folder_of("org/name", env) is None
    (cache / "snapshots" / "abc").mkdir(parents=True)
    assert cache / "snapshots" / "abc" == folder_of("org/name", env)
    assert folder_of("org/other", env) is None


def test_a_folder_is_its_own(model):
    assert model == folder_of(str(model))
