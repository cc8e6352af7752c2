"""A server with a known answer, to hold a client's figures against what was really sent.

It speaks the OpenAI completions protocol over HTTP/1.1 and generates nothing. The first token of an
answer leaves `ttft` after the last byte of its request arrived, by the kernel's time stamp where
there is one: what waits here unread makes this server late, and is not taken for the client's
error. Each further token is due `itl` after the one before it was due. How late the first tokens
were is counted and can be asked for.

    python -m pytest_llmperf.origin --port 8100 --ttft-ms 100 --itl-ms 10

* `POST /v1/completions`, `POST /v1/chat/completions`: an answer of `max_tokens` (or
  `max_completion_tokens`) tokens; with `stream` token by token, otherwise whole at the first one's
  time. Understands `stream_options` and vLLM's `return_token_ids` and `continuous_usage_stats`.
* `GET /health`, `GET /v1/models`.
* `GET /stats`: JSON of `requests` (answered to the end), `tokens`, `aborted` (the client went away
  before), `active`, `peak` (the most at one time), `late_us` with `mean`, `p50`, `p99` and `max`,
  null without a request, and `cpu_s`, the CPU seconds of this process since its start.
* `POST /reset`: zeroes the stats.
"""

from pytest_llmperf.origin.process import OriginProcess
from pytest_llmperf.origin.server import Origin

__all__ = ["Origin", "OriginProcess"]
