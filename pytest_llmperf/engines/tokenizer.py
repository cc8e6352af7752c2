"""The tokenizer of a model, from its own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_llmperf.errors import ConfigurationError


def load_tokenizer(path: Path) -> Any:
    """A `tokenizers.Tokenizer` that neither cuts nor pads. `path`: a `tokenizer.json`, or the folder that has one.

    Raises `ConfigurationError` if the library is missing, or the file is none of its.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigurationError(f"tokenizer: there is no {file}; give a tokenizer.json or the folder that has one")
    try:
        import tokenizers  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigurationError(
            f"tokenizer={str(path)!r} needs the tokenizers library: pip install 'pytest-llmperf[tokenizers]', "
            "or leave tokenizer= out"
        ) from None
    try:
        tokenizer: Any = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ConfigurationError(f"tokenizer: {file} cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
