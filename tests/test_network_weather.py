"""Packets that are late, lost, overtaken, or never arrive: what a measurement through such a network says.

Real TCP over a wire that the test holds; see `reflected_network`.
"""

from __future__ import annotations

import pytest
from reflected_network import Weather, measured, reflected, refusal

pytestmark = pytest.mark.real_time


@pytest.fixture(autouse=True)
def network():
    reason = refusal()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.slow
def test_delay_shows_in_ttft_exactly_as_much():
    """50 ms each way: 100 ms more to the first token, and nothing more between tokens."""
    calm, delayed = measured(), measured(Weather(delay_s=0.05))

    assert calm["reasons"] == delayed["reasons"] == []
    assert 0.09 < delayed["ttft_p50"] - calm["ttft_p50"] < 0.12
    assert delayed["tpot_p50"] == pytest.approx(calm["tpot_p50"], rel=0.1)
    assert [] == [doubt for doubt in delayed["doubts"] if "network" in doubt], "a long way is no disturbance"


@pytest.mark.slow
@pytest.mark.parametrize("weather", [Weather(loss=0.04), Weather(reorder=0.1)], ids=["loss", "reordering"])
def test_what_was_lost_or_overtaken_is_a_doubt(weather):
    """TCP mends it, so every answer is there; that it took time is said, with the kernel's own counts."""
    found = measured(weather)

    (doubt,) = (doubt for doubt in found["doubts"] if "the network was disturbed" in doubt)
    assert (40, {}, []) == (found["ok"], found["kinds"], found["reasons"])
    assert found["retransmitted"] + found["out_of_order"] > 0
    assert f"{found['out_of_order']} came out of order, on {found['disturbed_connections']} connection" in doubt


@pytest.mark.slow
def test_a_server_that_vanishes():
    """No FIN, no RST: the kernel finds out, and each request that waits says so; the run is INVALID."""
    found = measured(Weather(cut_after_s=0.3), keepalive_s=1, itl_ms=50.0, requests=4)

    reason, advice = found["reasons"]
    assert {"peer_gone": 4} == found["kinds"]
    assert "4 of 4 requests failed: 4 peer_gone (http://10.9.0.2" in reason
    assert "not even its kernel does: Connection timed out" in reason
    assert "was not started here" in advice


@pytest.mark.slow
def test_a_wire_that_has_gone_silent():
    """Before the kernel has found out, the client's own limit ends the wait, and says how long it was."""
    found = measured(Weather(cut_after_s=0.3), silence_s=1.0, itl_ms=50.0, requests=4)

    (reason,) = found["reasons"]
    assert {"timeout": 4} == found["kinds"]
    assert "4 of 4 requests failed: 4 timeout (no byte for 1 s)" == reason


def test_addresses_are_exchanged_and_nothing_else():
    """So that checksums stay right."""
    packet = bytes(range(60))

    assert packet == reflected(reflected(packet))
    assert (packet[:12], packet[16:20], packet[12:16], packet[20:]) == (
        reflected(packet)[:12], reflected(packet)[12:16], reflected(packet)[16:20], reflected(packet)[20:]
    )  # fmt: skip
