"""The streaming HTTP/1.1 client that does the timing."""

from pytest_llmperf.client.http import Address, Exchange, HttpClient
from pytest_llmperf.client.sse import events

__all__ = ["Address", "Exchange", "HttpClient", "events"]
