"""The streaming HTTP/1.1 client that does the timing."""

from pytest_llmperf.client.address import Address
from pytest_llmperf.client.exchange import Exchange
from pytest_llmperf.client.http import HttpClient, Limits
from pytest_llmperf.client.sse import Fragment, events

__all__ = ["Address", "Exchange", "Fragment", "HttpClient", "Limits", "events"]
