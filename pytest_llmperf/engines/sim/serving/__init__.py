"""The simulated engine in real time, behind the OpenAI routes and those of vLLM that clients ask for.

event_loop   an asyncio loop whose timers are exact
http         connections: requests in, answers out
text         text as token ids and back
orders       what a request asks for, checked
answers      the JSON and the events of one answer
live         the fleet, driven by the real clock
exposition   /metrics, as vLLM names them
server       the routes
"""

from __future__ import annotations

from pytest_llmperf.engines.sim.serving.event_loop import exact_event_loop
from pytest_llmperf.engines.sim.serving.server import SimServer

__all__ = ["SimServer", "exact_event_loop"]
