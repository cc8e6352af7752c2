"""Workloads: one file each, seeded, streamed, with a digest."""

from pytest_llmperf.workloads.base import Session, Turn, Workload, digest
from pytest_llmperf.workloads.conversations import Conversations, conversations
from pytest_llmperf.workloads.knowledge_graph import KnowledgeGraph, knowledge_graph
from pytest_llmperf.workloads.multi_round import MultiRound, multi_round
from pytest_llmperf.workloads.multiple_choice import MultipleChoice, multiple_choice
from pytest_llmperf.workloads.shared_prefix import SharedPrefix, shared_prefix
from pytest_llmperf.workloads.single_turn import SingleTurn, single_turn
from pytest_llmperf.workloads.trace import Trace, trace, write_trace

__all__ = [
    "Conversations",
    "KnowledgeGraph",
    "MultiRound",
    "MultipleChoice",
    "Session",
    "SharedPrefix",
    "SingleTurn",
    "Trace",
    "Turn",
    "Workload",
    "conversations",
    "digest",
    "knowledge_graph",
    "multi_round",
    "multiple_choice",
    "shared_prefix",
    "single_turn",
    "trace",
    "write_trace",
]
