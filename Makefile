# make up | demo | test | lint | types | unit | integration | faults | test-vllm | fuzz | bench | docs | venv | clean
.DEFAULT_GOAL := help
SHELL := /bin/bash
MIN := 3.12
# the interpreter: $(PYTHON) if given, else the newest suitable one of PATH and pyenv
CANDIDATES := $(PYTHON) python3.13 python3.14 python3.12 python3 python $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python)
find_python = $(shell for p in $(1); do \
  command -v "$$p" >/dev/null 2>&1 && "$$p" -c 'import sys; sys.exit(sys.version_info[:2] < $(2))' >/dev/null 2>&1 && { command -v "$$p"; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: help venv up test lint types unit integration faults test-long test-312 test-newest test-vllm test-training fuzz bench bench-peers \
  demo docs lock clean

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

venv: $(STAMP) ## make .venv with everything pinned

$(STAMP): pyproject.toml requirements.lock
	@py="$(call find_python,$(CANDIDATES),(3,12))"; \
	if [ -z "$$py" ]; then echo "llmtap needs Python $(MIN) or newer; none was found on PATH or in pyenv. Install one, or: make venv PYTHON=/path/to/python3.13" >&2; exit 1; fi; \
	echo "making $(VENV) with $$($$py --version)"; \
	rm -rf "$(VENV)" && "$$py" -m venv "$(VENV)" && \
	$(BIN)/python -m pip install -q --disable-pip-version-check --constraint requirements.lock pip && \
	$(BIN)/python -m pip install -q --disable-pip-version-check --constraint requirements.lock --group dev --editable . && touch $@

up: venv ## start everything: two simulated engines, gateway :8000, writer, Datasette :8001
	@$(BIN)/llmtap up --dry-run

test: lint types unit integration faults test-312 test-newest ## everything CI runs

test-long: export LLMTAP_TEST_LONG = 1
test-long: integration faults ## the same with every number as large as what is promised: more rounds of kills, more requests

lint: venv ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## mypy, strict
	$(BIN)/mypy

unit: venv ## pure and fast
	$(PYTEST) tests/unit tests/test_*.py -n 2 -q

integration: venv ## real processes
	$(PYTEST) tests/integration tests/browser -n 4 --dist loadfile -q

faults: venv ## kills, full disks, cut connections
	$(PYTEST) tests/faults -n 4 --dist loadfile -q

# the lowest Python with the lowest direct dependencies we promise to work with
test-312: venv
	@py="$(call find_python,python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python),(3,12))"; \
	if [ -z "$$py" ]; then echo "Python 3.12 is not on this machine: its run is left out"; exit 0; fi; \
	$(MAKE) --no-print-directory .venv-3.12/.installed PY312="$$py" && \
	LLMTAP_HYPOTHESIS=few .venv-3.12/bin/python -m pytest tests/unit tests/test_*.py tests/integration/test_gateway.py -n 3 --dist loadfile -q -p no:cacheprovider \
	  --ignore tests/unit/docs -k 'not lane] and not stock]'

.venv-3.12/.installed: pyproject.toml requirements-lowest.txt
	@rm -rf .venv-3.12 && "$(PY312)" -m venv .venv-3.12 && \
	.venv-3.12/bin/python -m pip install -q --upgrade 'pip>=25.1' && \
	.venv-3.12/bin/python -m pip install -q --no-compile --disable-pip-version-check --constraint requirements-lowest.txt --group dev --editable . && touch $@

# the newest mitmproxy we promise to work with, whatever is pinned: an environment that looks into .venv for everything else
test-newest: .venv-newest/.installed
	.venv-newest/bin/python tests/newest.py && \
	.venv-newest/bin/python -m pytest tests/unit/llmtap/lane tests/integration/test_gateway.py tests/integration/test_mitmproxy_features.py \
	  -k 'not master] and not reverse and not time' -n 4 --dist loadfile -q -p no:cacheprovider

.venv-newest/.installed: $(STAMP)
	@rm -rf .venv-newest && $(BIN)/python -m venv --without-pip .venv-newest && \
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
	  > $$(.venv-newest/bin/python -c "import site; print(site.getsitepackages()[0])")/beside.pth && touch $@

test-vllm: venv ## against a real vLLM (CPU build, tiny model); installs it on first use
	$(PYTEST) tests/vllm -q -rs

test-training: venv ## exports against datasets and TRL, in an environment of their own (makes it on first use)
	@$(MAKE) --no-print-directory .venv-training/.installed
	LLMTAP_TEST_TRAINING=.venv-training/bin/python $(PYTEST) tests/training -q -rs -s

# TRL's checks of data need neither torch nor accelerate's own needs
.venv-training/.installed:
	rm -rf .venv-training && $(BIN)/python -m venv .venv-training && \
	.venv-training/bin/python -m pip install -q --disable-pip-version-check 'datasets>=4.7' 'transformers>=4.56' jinja2 psutil && \
	.venv-training/bin/python -m pip install -q --disable-pip-version-check --no-deps 'trl>=1' accelerate && touch $@

fuzz: venv ## 100,000 mutated recordings through every decoder (make fuzz FUZZ="--seed 2")
	PYTHONPATH=tests $(BIN)/python tests/fuzz/decoders.py $(FUZZ)

bench: venv ## ratios of the hot paths
	$(BIN)/python tests/bench/run.py $(BENCH)

bench-peers: venv ## bench, with sglang-router, vllm-router and LiteLLM from PyPI
	$(BIN)/python tests/bench/run.py --peers $(BENCH)

demo: venv ## a demo database in llmtap-data/demo
	$(BIN)/python docs/demo.py

docs: venv ## regenerate what is generated
	$(BIN)/python docs/generate.py

# Python 3.12 cannot have all of it (mitmproxy 12.2 holds typing-extensions back there): its own pins stay as they are
lock: venv ## refresh requirements.lock from what is installed (Python 3.13)
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^llmtap' > requirements.new
	awk -F'==' 'NR == FNR { if (/python_version < "3.13"/) older[$$1] = $$0; next } \
	  $$1 in older { print $$0 "; python_version >= \"3.13\""; print older[$$1]; next } { print }' \
	  requirements.lock requirements.new > requirements.both && mv requirements.both requirements.lock && rm requirements.new

clean: ## remove environments and caches (never captured data)
	rm -rf .venv .venv-3.12 .venv-newest .venv-training .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
