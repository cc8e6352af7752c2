"""The locally generated model."""

from __future__ import annotations

import hashlib
import json

from tokenizers import Tokenizer

from pytest_llmperf.engines import tiny_llama

# Another digest is another model: its results must not be compared with those of this one.
WEIGHTS_SHA256 = "12602ecb3ab11213dca8efae89ae1ef8a9ac5c6844aba9fbf9f40ae23beafe95"


def test_the_model_is_the_same_everywhere(tmp_path):
    """The same weights on every machine and Python."""
    folder = tiny_llama.ensure(tmp_path)

    assert WEIGHTS_SHA256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_it_is_written_once(tmp_path):
    """A second call finds the folder and leaves nothing else behind."""
    first = tiny_llama.ensure(tmp_path)
    before = (first / "model.safetensors").stat().st_mtime_ns

    assert first == tiny_llama.ensure(tmp_path)
    assert before == (first / "model.safetensors").stat().st_mtime_ns
    assert [first] == list(tmp_path.iterdir())


def test_every_text_survives_the_tokenizer(tmp_path):
    """The tokenizer has exactly the model's vocabulary and decodes what it encoded."""
    tokenizer = Tokenizer.from_file(str(tiny_llama.ensure(tmp_path) / "tokenizer.json"))
    text = "Plain words, wörds with ümlauts, 数字 and 123 - even\ttabs"

    assert tiny_llama.CONFIG["vocab_size"] == tokenizer.get_vocab_size()
    assert text == tokenizer.decode(tokenizer.encode(text).ids)


def test_the_context_is_long_enough(tmp_path):
    """Sequences of 20,000 tokens fit, and there is a chat template."""
    folder = tiny_llama.ensure(tmp_path)

    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] >= 20_000
    assert "chat_template" in json.loads((folder / "tokenizer_config.json").read_text())


def test_the_fixture_gives_the_folder(pytester, monkeypatch):
    """`tiny_llama` is a folder in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))
    pytester.makepyfile("def test_it(tiny_llama):\n    assert (tiny_llama / 'config.json').is_file()\n")

    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)

    assert 1 == len(list((pytester.path / "cache" / "pytest-llmperf").iterdir()))
