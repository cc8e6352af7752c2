"""What a request for a completion asks for, checked."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from pytest_llmperf.engines.sim.blocks import Ids
from pytest_llmperf.engines.sim.serving.http import error_body
from pytest_llmperf.engines.sim.serving.text import ROLES, chat_ids, ids_of

COMPLETION_TOKENS = 16
"""Of a completion that does not say: the protocol's own default."""
CHAT_TOKENS = 256
"""Of a chat answer that is not limited: there the simulated model stops by itself."""

# What would change the answer and is not simulated, with the values that ask for nothing.
_NOT_SIMULATED: dict[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "prompt_embeds": (None,),
    "tools": (None, []),
    "functions": (None, []),
}


class RefusalError(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One completion, as it is to be generated and sent."""

    chat: bool
    prompt: Ids
    output_tokens: int
    stops: bool
    """Whether the model is what ends it, and not a limit."""
    stream: bool
    token_ids: bool
    final_usage: bool
    running_usage: bool

    @classmethod
    def parse(cls, body: bytes, *, chat: bool, model: str, max_model_len: int) -> Order:
        """Raises `RefusalError` for what is no request, or none that can be served."""
        fields = parse_object(body)
        check_model(fields, model)
        for name, idle in _NOT_SIMULATED.items():
            _expect(fields.get(name) in idle, f"{name}={fields.get(name)!r} is not simulated; leave it out")
        stream = _switch(fields, "stream")
        options = fields.get("stream_options")
        _expect(options is None or isinstance(options, dict), "stream_options is not an object")
        _expect(options is None or stream, "stream_options goes with stream=true")
        prompt = conversation(fields) if chat else _prompt(fields)
        wanted = _wanted(fields)
        tokens = _output_tokens(fields, wanted, len(prompt), max_model_len, chat=chat)
        return cls(
            chat=chat,
            prompt=prompt,
            output_tokens=tokens,
            stops=chat and wanted is None and not _switch(fields, "ignore_eos") and tokens == CHAT_TOKENS,
            stream=stream,
            token_ids=_switch(fields, "return_token_ids"),
            final_usage=options is not None and _switch(options, "include_usage"),
            running_usage=options is not None and _switch(options, "continuous_usage_stats"),
        )


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises `RefusalError`."""
    try:
        fields = orjson.loads(body)
    except ValueError as error:
        raise RefusalError(400, f"the body is not JSON: {error}") from None
    _expect(isinstance(fields, dict), f"the body is not a JSON object but {_kind(fields)}")
    return fields  # type: ignore[no-any-return]


def check_model(fields: Mapping[str, Any], model: str) -> None:
    """Raise `RefusalError` for another model than the one that is served; none is asked for by the default."""
    asked = fields.get("model")
    if asked not in (None, "", model):
        raise RefusalError(404, f"the model {asked!r} does not exist; this server has {model!r}")


def conversation(fields: Mapping[str, Any]) -> Ids:
    """The ids of the messages. Raises `RefusalError`."""
    messages = fields.get("messages")
    _expect(isinstance(messages, list) and messages, f"messages: expected a list of messages, got {_kind(messages)}")
    assert messages is not None
    return _as_ids(chat_ids(_message(number, message) for number, message in enumerate(messages)))


def token_list(value: object, name: str) -> Ids:
    """A list of token ids in an array. Raises `RefusalError`."""
    try:
        ids = array("i", value)  # type: ignore[call-overload]
    except (TypeError, OverflowError):
        ids = array("i", (-1,))
    prompt = _as_ids(ids)
    _expect(not len(prompt) or prompt.min() >= 0, f"{name}: expected token ids, whole numbers from 0 to 2**31 - 1")
    return prompt


def _as_ids(ids: array[int]) -> Ids:
    return np.frombuffer(ids, np.int32) if ids else np.empty(0, np.int32)


def _prompt(fields: Mapping[str, Any]) -> Ids:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        _expect(len(prompt) == 1, f"prompt: {len(prompt)} prompts in one request are not served; send them one by one")
        prompt = prompt[0]
    _expect(isinstance(prompt, (str, list)), f"prompt: expected a text or a list of token ids, got {_kind(prompt)}")
    ids = _as_ids(ids_of(prompt)) if isinstance(prompt, str) else token_list(prompt, "prompt")
    _expect(len(ids), "prompt: it has no token")
    return ids


def _message(number: int, message: object) -> tuple[str, str]:
    _expect(isinstance(message, dict), f"messages[{number}]: expected an object, got {_kind(message)}")
    assert isinstance(message, dict)
    role, content = message.get("role"), message.get("content")
    _expect(role in ROLES, f"messages[{number}].role: expected one of {', '.join(ROLES)}, got {role!r}")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        _expect(all(isinstance(part, str) for part in parts), f"messages[{number}].content: only texts are simulated")
        content = " ".join(part for part in parts if part is not None)
    _expect(
        content is None or isinstance(content, str),
        f"messages[{number}].content: expected a text or a list of texts, got {_kind(content)}",
    )
    return str(role), content or ""


def _wanted(fields: Mapping[str, Any]) -> int | None:
    """The limit that the request names."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is not None:
            _expect(type(value) is int and value >= 1, f"{name}: expected a whole number of at least 1, got {value!r}")
            return int(value)
    return None


def _output_tokens(
    fields: Mapping[str, Any], wanted: int | None, prompt_tokens: int, max_model_len: int, *, chat: bool
) -> int:
    room = max_model_len - prompt_tokens
    asked = f" and {wanted} of output were asked for" if wanted is not None else ""
    _expect(
        room >= (wanted or 1),
        f"this model's maximum context length is {max_model_len} tokens; the prompt has {prompt_tokens}{asked}",
    )
    if wanted is not None:
        return wanted
    if chat and _switch(fields, "ignore_eos"):
        return room
    return min(room, CHAT_TOKENS if chat else COMPLETION_TOKENS)


def _switch(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    _expect(value in (None, True, False), f"{name}: expected true or false, got {value!r}")
    return value is True


def _expect(condition: object, problem: str) -> None:
    if not condition:
        raise RefusalError(400, problem)


_KINDS = {type(None): "nothing", str: "a text", list: "a list", dict: "an object", bool: "true or false"}


def _kind(value: object) -> str:
    named = _KINDS.get(type(value), "a number")
    return f"{named} without content" if value in ("", [], {}) else named
