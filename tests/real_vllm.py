"""The vLLM that tests run on: which Python has it, and how it is asked for."""

from __future__ import annotations

import os
import shutil

import pytest

PYTHON = os.environ.get("LLMPERF_TEST_VLLM", "")
REQUIRED = os.environ.get("LLMPERF_TEST_REQUIRE_VLLM") == "1"
START_TIMEOUT_S = 300

MARKS = [
    pytest.mark.vllm,
    pytest.mark.real_time,
    pytest.mark.skipif(
        not REQUIRED and not shutil.which(PYTHON or "-"),
        reason="LLMPERF_TEST_VLLM names no Python with vLLM; `make test` makes one",
    ),
]
WORDS = {
    "model": "tiny-llama",
    "prefix_caching": True,
    "max_model_len": 20_000,
    "args": ["--enforce-eager", "--max-num-seqs", "32"],
    "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    "executable": PYTHON,
}
