"""Shapes of models: built in, from a configuration, or in words why not."""

from __future__ import annotations

import json

import pytest

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.roofline import SHAPES, shape_of
from pytest_llmperf.roofline.models import shape_from

CONFIG = {
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
}
"""Of Llama 3.2 1B, which has 1,235,814,400 parameters."""


@pytest.mark.parametrize(
    ("name", "parameters", "tolerance"),
    [
        ("llama-3.1-8b", 8_030_261_248, 0),
        ("llama-3.1-70b", 70_553_706_496, 0),
        ("qwen2-7b", 7_615_616_512, 1e-4),  # biases are left out
    ],
)
def test_built_in_shapes_have_the_published_number_of_parameters(name, parameters, tolerance):
    """Which any wrong size in them would change."""
    assert SHAPES[name].parameters == pytest.approx(parameters, rel=tolerance, abs=0)


def test_a_configuration_gives_the_published_number_of_parameters():
    """With tied embeddings, counted once."""
    assert 1_235_814_400 == shape_from(CONFIG, "m").parameters


@pytest.mark.parametrize(
    "name",
    [
        "llama-3.1-8b",
        "meta-llama/Llama-3.1-8B",
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3.1-8B-Instruct",
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8",
        "neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8-dynamic",
    ],
)
def test_repositories_of_one_shape_are_known_by_it(name):
    """Whoever offers them, and however they were tuned or stored."""
    assert "llama-3.1-8b" == shape_of(name).name


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-8B", "llama-3.1-80b", "llama", ""])
def test_an_unknown_model_is_told_with_what_is_known(name, monkeypatch, tmp_path):
    """And with the way out."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigurationError) as caught:
        shape_of(name)

    (problem,) = caught.value.problems
    assert problem.startswith(f"unknown model {name!r}")
    assert problem.endswith("or a folder with the model's config.json")


def test_what_a_configuration_leaves_out_has_its_usual_value():
    """As many KV heads as heads, a head's share of the hidden size, an embedding of its own."""
    few = {key: CONFIG[key] for key in CONFIG if key not in ("num_key_value_heads", "tie_word_embeddings")}

    shape = shape_from(few, "m")

    assert (32, 64, False, None) == (shape.kv_heads, shape.head_size, shape.tied, shape.quantization)


def test_what_a_configuration_says_counts():
    """Its own head size, and how its weights are stored."""
    shape = shape_from(CONFIG | {"head_dim": 128, "quantization_config": {"quant_method": "awq"}}, "m")

    assert (8, 128, True, "awq") == (shape.kv_heads, shape.head_size, shape.tied, shape.quantization)


def test_the_language_part_of_a_model_with_images_counts():
    """It is what a text prompt goes through."""
    assert shape_from(CONFIG, "m") == shape_from({"text_config": CONFIG, "model_type": "mllama"}, "m")


@pytest.mark.parametrize(
    ("odd", "what"),
    [
        ({"num_local_experts": 8}, "a mixture of experts"),
        ({"n_routed_experts": 64}, "a mixture of experts"),
        ({"kv_lora_rank": 512}, "multi-head latent attention"),
        ({"mamba_d_state": 16}, "a state-space model"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(odd, what):
    """Rather than computed wrongly."""
    with pytest.raises(ConfigurationError, match=f"m is {what}, which the roofline does not model"):
        shape_from(CONFIG | odd, "m")


def test_all_that_is_missing_is_named():
    """In one sentence."""
    with pytest.raises(ConfigurationError) as caught:
        shape_from({key: CONFIG[key] for key in CONFIG if key not in ("hidden_size", "vocab_size")}, "m")

    what = "hidden_size is None, vocab_size is None"
    expected = f"the configuration of m: {what}; expected whole numbers from 1 to 1,000,000,000"
    assert [expected] == list(caught.value.problems)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"is_encoder_decoder": True}, "an encoder with a decoder"),
        ({"model_type": "mamba2"}, "of the type 'mamba2'"),
        ({"sliding_window": 512}, "one with sliding-window attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "one with sliding-window attention"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"num_key_value_heads": 7}, "do not go together"),
        ({"num_key_value_heads": -1}, "num_key_value_heads is -1"),
    ],
)
def test_what_is_not_modelled_is_refused(words, problem):
    """Rather than simulated as something else."""
    with pytest.raises(ConfigurationError) as caught:
        shape_from({**CONFIG, **words}, "m")

    assert problem in str(caught.value)


def test_a_window_that_is_not_used_is_none():
    """As in the configurations of Qwen2."""
    assert shape_from(CONFIG, "m") == shape_from({**CONFIG, "sliding_window": 512, "use_sliding_window": False}, "m")


def test_a_quantisation_may_be_a_word():
    """Instead of an object with a method."""
    assert "fp8" == shape_from({**CONFIG, "quantization_config": "fp8"}, "m").quantization


def test_a_folder_a_file_and_the_hub_s_cache_are_read(tmp_path, monkeypatch):
    """Nothing is downloaded."""
    folder = tmp_path / "hub" / "models--some--model" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    file = folder / "config.json"
    file.write_text(json.dumps(CONFIG), encoding="utf-8")
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    shapes = [shape_of(model) for model in (str(folder), str(file), "some/model")]

    assert {1_235_814_400} == {shape.parameters for shape in shapes}
    assert "some/model" == shapes[-1].name


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "is no readable model configuration"), ("[]", "is no model configuration: expected")]
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, text, reason):
    """With what is wrong with it."""
    tmp_path.joinpath("config.json").write_text(text, encoding="utf-8")

    with pytest.raises(ConfigurationError, match=reason):
        shape_of(str(tmp_path))
