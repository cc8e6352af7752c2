"""`interruption.py`: what a signal does while something is written."""

from __future__ import annotations

import signal

import pytest

from pytest_llmperf.interruption import Interruption


@pytest.fixture
def interruption():
    """In force; afterwards signals do what they did."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield Interruption()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_elsewhere_either_interrupts_at_once(interruption, number):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)

    assert not interruption.is_noted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted_and_what_is_written_is_written(interruption, number):
    written = []

    with interruption.put_off():
        signal.raise_signal(number)
        written.append("whole")

    assert (["whole"], True) == (written, interruption.is_noted)


def test_whoever_insists_is_obeyed(interruption):
    with interruption.put_off():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_afterwards_a_signal_interrupts_again(interruption):
    with interruption.put_off():
        pass

    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_the_handling_of_others_is_left_alone(interruption):
    """A program around pytest may have its own."""
    seen = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))

    with interruption.put_off():
        signal.raise_signal(signal.SIGTERM)

    assert ([signal.SIGTERM], False) == (seen, interruption.is_noted)


def test_the_session_over(interruption):
    interruption.restore()

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
