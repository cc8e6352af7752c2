"""What is sent for one order: events token by token, or one JSON object.

Put together from strings, as several hundred events may be due in one moment; the words of the
simulated model need no escapes.
"""

from __future__ import annotations

import orjson

from pytest_llmperf.engines.sim.blocks import Ids
from pytest_llmperf.engines.sim.serving.orders import Order
from pytest_llmperf.engines.sim.serving.text import text_of, word_of

DONE = b"data: [DONE]\n\n"


class Answer:
    """The form of one answer; knows how much of it has been put into words."""

    def __init__(self, order: Order, *, number: int, model: str, created_s: int) -> None:
        self._order = order
        self._prompt_tokens = len(order.prompt)
        self._sent = 0
        kind, prefix = ("chat.completion", "chatcmpl") if order.chat else ("text_completion", "cmpl")
        if order.chat and order.stream:
            kind += ".chunk"
        name = orjson.dumps(model).decode()
        self._head = f'{{"id":"{prefix}-{number}","object":"{kind}","created":{created_s},"model":{name},"choices":['
        self._finish = '"stop"' if order.stops else '"length"'

    def events(self, ids: Ids, cached_tokens: int) -> bytes:
        """The events of the tokens that came next; those of the last one end the stream."""
        texts = [self._event(token_id, cached_tokens) for token_id in ids.tolist()]
        if self._sent < self._order.output_tokens:
            return "".join(texts).encode()
        if self._order.final_usage:
            texts.append(f"data: {self._head}],{self._usage(cached_tokens)}}}\n\n")
        return "".join(texts).encode() + DONE

    def whole(self, ids: Ids, cached_tokens: int) -> bytes:
        """The answer in one piece."""
        self._sent = len(ids)
        text = text_of(ids.tolist())
        content = f'"message":{{"role":"assistant","content":"{text}"}}' if self._order.chat else f'"text":"{text}"'
        listed = ",".join(map(str, ids.tolist()))
        return f"{self._head}{self._choice(content, listed, self._finish)}],{self._usage(cached_tokens)}}}".encode()

    def _event(self, token_id: int, cached_tokens: int) -> str:
        first = not self._sent
        self._sent += 1
        text = word_of(token_id) if first else f" {word_of(token_id)}"
        author = '"role":"assistant",' if first else ""
        content = f'"delta":{{{author}"content":"{text}"}}' if self._order.chat else f'"text":"{text}"'
        finish = self._finish if self._sent == self._order.output_tokens else "null"
        usage = f",{self._usage(cached_tokens)}" if self._order.running_usage else ""
        return f"data: {self._head}{self._choice(content, str(token_id), finish)}]{usage}}}\n\n"

    def _choice(self, content: str, token_ids: str, finish: str) -> str:
        ids = f',"token_ids":[{token_ids}]' if self._order.token_ids else ""
        return f'{{"index":0,{content},"logprobs":null,"finish_reason":{finish}{ids}}}'

    def _usage(self, cached_tokens: int) -> str:
        prompt, sent = self._prompt_tokens, self._sent
        return (
            f'"usage":{{"prompt_tokens":{prompt},"completion_tokens":{sent},"total_tokens":{prompt + sent},'
            f'"prompt_tokens_details":{{"cached_tokens":{cached_tokens}}}}}'
        )
