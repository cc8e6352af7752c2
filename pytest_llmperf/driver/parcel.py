"""A job on its way to another process, and what the workers of one run have done together."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pytest_llmperf.driver.job import Driven, Job
from pytest_llmperf.errors import ConfigurationError, LLMPerfError
from pytest_llmperf.load import Share
from pytest_llmperf.workloads import Session

_OURS = __name__.partition(".")[0]


def pack(job: Job, share: Share) -> bytes:
    """One worker's share of a job, to be sent to it.

    The receiver may not be able to import what a test has defined, so sessions that are not made by a
    workload of ours are drawn here. Raises `ConfigurationError` for what cannot be sent.
    """
    if type(job.sessions).__module__.partition(".")[0] != _OURS:
        drawn = [session if share.has(n) else _outline(session) for n, session in enumerate(job.sessions)]
        job = replace(job, sessions=drawn)
    try:
        return pickle.dumps((job, share))
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        raise _not_sendable(error) from None


def unpack(parcel: bytes) -> tuple[Job, Share]:
    """The opposite of `pack`. Raises `ConfigurationError` if a class in it cannot be imported here."""
    try:
        job, share = pickle.loads(parcel)
    except (ImportError, AttributeError, TypeError) as error:
        raise _not_sendable(error) from None
    return job, share


def together(driven: Sequence[Driven], lost: Sequence[str]) -> Driven:
    """What the workers of one run did; that some were lost is a problem of it.

    Raises `LLMPerfError` if nobody is left.
    """
    if not driven:
        raise LLMPerfError("every worker was lost: " + "; ".join(lost))
    first, *others = driven
    for other in others:
        first.merge(other)
    first.problems += tuple(lost)
    if lost:  # with the number of what they sent
        first.sent = None
    return first


def _outline(session: Session) -> Session:
    """A session of which only the times are needed."""
    nothing = np.empty(0, np.int32)
    return Session(turns=tuple(replace(turn, prefix=None, new_ids=nothing) for turn in session.turns))


def _not_sendable(error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"the load or the sessions cannot be sent to another process ({type(error).__name__}: {error}); define their "
        "classes at the top of a module that can be imported, or use one worker"
    )
