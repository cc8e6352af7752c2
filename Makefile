# Two commands: `make perf` measures, `make test` tests. Each makes what it needs and can be repeated.
#
#   make perf ARGS="-k prefix --llmperf-runs 3"     options for pytest
#   make test ARGS="-m 'not vllm'"

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
VLLM := .venv-vllm

.PHONY: perf test lint engine clean

perf: .venv/complete engine
	$(BIN)/pytest perf_tests --llmperf-set executable=$(VLLM)/bin/python $(ARGS)

test: .venv/complete engine
	LLMPERF_TEST_VLLM=$(CURDIR)/$(VLLM)/bin/python $(BIN)/pytest $(ARGS)

lint: .venv/complete
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A machine that cannot have vLLM still runs the rest: what needs it says so and skips.
engine:
	-@$(PYTHON) scripts/vllm_venv.py $(VLLM)

.venv/complete: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv $(VLLM) .llmperf
