# Two commands: `make perf` measures, `make test` tests. Each makes what it needs and can be repeated.
#
#   make perf                                       on a simulated GH200, in a minute or two
#   make perf PART=h100                             on another part
#   make perf PART=all                              on every part that a test is for, one after another
#   make perf ENGINE=vllm                           on the real vLLM and this machine
#   make perf ARGS="-k prefix --llmperf-runs 3"     options for pytest
#   make test-quick                                 those that take a moment
#   make test-fast                                  the tests without a real vLLM
#   make test-exhaustive                            whole matrices of faults, minutes of load
#   make test-browser CHROMIUM=/usr/bin/chromium    the HTML report in a browser
#   make test ARGS="-k gate"                        options for pytest
#   make baselines                                  the simulated and the published ones anew
#   make docs                                       the documentation as a site, in build/docs
#   make reference                                  docs/reference.md anew, from the code

PYTHON ?= python3
ARGS ?=
ENGINE ?= sim
PART ?= gh200
CHROMIUM ?= $(shell command -v chromium || command -v google-chrome)

BIN := .venv/bin
VLLM := .venv-vllm
VLLM_HERE := LLMPERF_TEST_VLLM=$(CURDIR)/$(VLLM)/bin/python

# From run to run a simulated engine differs by a percent, as a quiet machine does.
NOISE := --llmperf-set run_noise=0.01
STORE := $(NOISE) --llmperf-set noise_seed=1 --llmperf-gate off --llmperf-save-baseline main --quiet
SIMULATED := gh200 h100 h200 4x-a100 4x-rtx4090
# Brings its own eight GPUs, whatever the others run on.
FLEET := perf_tests/test_prefix_routing.py

# What meets the interfaces of numpy, orjson, httptools and pytest; what depends on the last digits of scipy does not.
LOWEST := tests/test_options.py tests/test_result_file.py tests/test_record_file.py tests/test_hostile_servers.py \
  tests/client/test_http.py

.PHONY: perf perf-sim perf-vllm baselines simulation reference docs screenshots
.PHONY: test test-quick test-fast test-exhaustive test-vllm test-lowest test-beside test-browser mutants audit lint engine clean

perf: perf-$(ENGINE)

perf-sim: .venv/perf
	@start=$$(date +%s); code=0; \
	for part in $(if $(filter all,$(PART)),$(SIMULATED),$(PART)); do \
	  $(BIN)/pytest perf_tests $(if $(filter all,$(PART)),--ignore $(FLEET)) \
	    --llmperf-hardware sim:$$part $(NOISE) $(ARGS) || code=$$?; \
	done; \
	$(if $(filter all,$(PART)),$(BIN)/pytest $(FLEET) $(NOISE) $(ARGS) || code=$$?;) \
	echo "wall time: $$(($$(date +%s) - start)) s"; exit $$code

perf-vllm: .venv/perf engine
	$(BIN)/pytest perf_tests --llmperf-set executable=$(VLLM)/bin/python $(ARGS)

# Another seed is another night. The files are the same wherever and whenever they are made.
baselines: .venv/complete
	rm -rf baselines/sim-*
	for part in $(SIMULATED); do \
	  $(BIN)/pytest perf_tests --ignore $(FLEET) --llmperf-hardware sim:$$part $(STORE) || exit 1; \
	done
	$(BIN)/pytest $(FLEET) $(STORE)
	$(BIN)/python scripts/published.py

# The tables and the plot of docs/simulation.md.
simulation: .venv/complete
	$(BIN)/python benchmarks/sim/page.py

reference: .venv/complete
	$(BIN)/python scripts/reference.py

# A warning is an error: a link that leads nowhere, a page that no other one names.
docs: .venv/complete
	$(BIN)/sphinx-build -q -W --keep-going -E docs build/docs

test: test-fast test-vllm

# After each change, in about a minute.
test-quick: .venv/complete
	$(BIN)/pytest -n logical -m "not vllm and not slow and not exhaustive" $(ARGS)

# Side by side on all processors, then one after another what has to do with real time, whose clients and servers
# need them; what finds nothing to run is no failure (pytest's exit code 5).
test-fast: .venv/complete
	@code=0; \
	$(BIN)/pytest -n logical -m "not vllm and not exhaustive and not real_time" $(ARGS) || [ $$? -eq 5 ] || code=1; \
	$(BIN)/pytest -m "real_time and not vllm and not exhaustive" $(ARGS) || [ $$? -eq 5 ] || code=1; \
	exit $$code

# Signals in each phase, other plugins, half a minute of load, the real vLLM twenty times: each night is often enough.
test-exhaustive: .venv/complete engine
	$(BIN)/pytest -n logical -m "exhaustive and not vllm" $(ARGS)
	$(VLLM_HERE) $(BIN)/pytest -m "exhaustive and vllm" $(ARGS) || [ $$? -eq 5 ]

# With the oldest versions that pyproject.toml allows, in an environment of their own.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --editable '.[dev]' --constraint tests/lowest.txt
	.venv-lowest/bin/pytest perf_tests --ignore $(FLEET) --llmperf-hardware sim:gh200 --llmperf-gate off
	.venv-lowest/bin/pytest -n logical -m "not vllm and not slow" $(LOWEST)

# Beside pytest-asyncio, -cov, -randomly, -rerunfailures and -timeout, each really at work.
test-beside: .venv/complete
	$(BIN)/python -m pip install --quiet --editable '.[dev,beside]'
	$(BIN)/pytest -p no:randomly tests/test_other_plugins.py

# What the tests of verdicts, statistics, baselines and the stream's parser do not notice; half an hour.
mutants: .venv/complete
	$(BIN)/python -m pip install --quiet mutmut
	$(BIN)/mutmut run
	$(BIN)/mutmut results

# Whether a vulnerability of a dependency is known. What could not be looked up fails, too (--strict, which minds ourselves
# unless what is installed is listed first): an index without that service would else be green.
audit: .venv/complete
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > .venv/audited.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement .venv/audited.txt

# One after another: a real engine needs the processors for itself.
test-vllm: .venv/complete engine
	$(VLLM_HERE) $(BIN)/pytest -m "vllm and not exhaustive" $(ARGS) || [ $$? -eq 5 ]

test-browser: .venv/browser
	LLMPERF_TEST_CHROMIUM="$(CHROMIUM)" LLMPERF_TEST_REQUIRE_BROWSER=1 $(BIN)/pytest tests/reports/test_in_browser.py $(ARGS)

# The pictures of the README, of an example that takes a minute or two.
screenshots: .venv/browser
	LLMPERF_TEST_CHROMIUM="$(CHROMIUM)" $(BIN)/python scripts/screenshots.py

lint: .venv/complete
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A machine that cannot have vLLM still runs the rest: what needs it says so and skips.
engine:
	-@$(PYTHON) scripts/vllm_venv.py $(VLLM)

# To measure takes little; what the tests take besides is installed when they are run.
.venv/perf: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[report,history]'
	touch $@

.venv/complete: .venv/perf
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	touch $@

.venv/browser: .venv/complete
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	touch $@

clean:
	rm -rf .venv .venv-lowest $(VLLM) .llmperf
