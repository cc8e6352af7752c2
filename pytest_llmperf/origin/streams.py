"""What an answer consists of, token by token or in one piece."""

from __future__ import annotations

from pytest_llmperf.origin.protocol import MODEL, Order, response

FIRST_TOKEN_ID = 1000
TOKEN_IDS = 1048
"""Token ids count up from `FIRST_TOKEN_ID` and start over after this many: equal requests, equal ids."""

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Stream:
    """An answer under way."""

    __slots__ = ("_chunk", "_numbered", "number", "order", "sent")

    def __init__(self, order: Order, number: int) -> None:
        self.order = order
        self.number = number
        self.sent = 0
        self._numbered = order.token_ids or order.running_usage
        self._chunk = self._template("null")

    def next_data(self) -> bytes:
        """What is to be sent next; `sent` says how many tokens that makes."""
        self.sent = sent = self.sent + 1
        if 1 < sent < self.order.tokens:
            return self._chunk % self._numbers() if self._numbered else self._chunk
        return self._edge() if self.order.stream else self._whole()

    def _edge(self) -> bytes:
        """The first token, with the response's head, or the last one, with its end, or both."""
        order, sent = self.order, self.sent
        data = _HEAD if sent == 1 else b""
        data += self._template('"length"' if sent == order.tokens else "null") % self._numbers()
        if sent < order.tokens:
            return data
        if order.final_usage:
            usage = self._object("", self._usage(order.prompt_tokens + sent, sent))
            data += _event(usage, len(usage))
        return data + _END

    def _whole(self) -> bytes:
        """The answer in one piece."""
        self.sent = tokens = self.order.tokens
        ids = ",".join(str(FIRST_TOKEN_ID + i % TOKEN_IDS) for i in range(tokens)) if self.order.token_ids else ""
        choice = self._choice(" tok" * tokens, ids, '"length"', role=True)
        return response(self._object(choice, self._usage(self.order.prompt_tokens + tokens, tokens)))

    def _numbers(self) -> tuple[int, ...]:
        """What differs from one token to the next, in the order of the template's gaps."""
        numbers: tuple[int, ...] = ()
        if self.order.token_ids:
            numbers = (FIRST_TOKEN_ID + (self.sent - 1) % TOKEN_IDS,)
        if self.order.running_usage:
            numbers += (self.order.prompt_tokens + self.sent, self.sent)
        return numbers

    def _template(self, finish: str) -> bytes:
        """A token's event with gaps for `_numbers`, of fixed width, so that its length is known before."""
        usage = self._usage("%8d", "%8d") if self.order.running_usage else ""
        data = self._object(self._choice(" tok", "%4d", finish, role=self.sent == 1), usage)
        return _event(data, len(data % self._numbers()))

    def _object(self, choice: str, usage: str) -> str:
        kind = "text_completion"
        if self.order.chat:
            kind = "chat.completion.chunk" if self.order.stream else "chat.completion"
        head = f'"id":"cmpl-{self.number}","object":"{kind}","created":1,"model":"{MODEL}"'
        return f'{{{head},"choices":[{choice}]{usage}}}'

    def _choice(self, text: str, ids: str, finish: str, *, role: bool) -> str:
        content = f'"text":"{text}"'
        if self.order.chat:
            author = '"role":"assistant",' if role else ""
            content = f'"{"delta" if self.order.stream else "message"}":{{{author}"content":"{text}"}}'
        token_ids = f',"token_ids":[{ids}]' if self.order.token_ids else ""
        return f'{{"index":0,{content},"logprobs":null,"finish_reason":{finish}{token_ids}}}'

    def _usage(self, total: int | str, tokens: int | str) -> str:
        prompt = self.order.prompt_tokens
        return f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{tokens}}}'


def _event(data: str, length: int) -> bytes:
    """A server-sent event as one chunk of the body; `length` is that of `data` as it will be sent."""
    return f"{length + 8:x}\r\ndata: {data}\n\n\r\n".encode()
