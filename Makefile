# `make` alone lists what there is. Everything runs inside .venv, which `make setup` makes and keeps as requirements.lock says.
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-faults fuzz bench check format docs lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything locked; nothing to do the second time (PYTHON=python3.12 chooses the interpreter)

# A lock or a pyproject.toml newer than the mark installs again; so does an interpreter that no longer starts.
ifneq ($(shell test -x $(BIN)/python && $(BIN)/python -c '' 2>/dev/null && echo alive),alive)
.PHONY: $(READY)
endif
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "danlu needs Python 3.11 or newer, and there is no $(PYTHON) here: sudo apt install python3 python3-venv" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "danlu needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -c 'import platform; print(platform.python_version())'). Another one: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "this Python cannot make virtual environments: sudo apt install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 2; }
	@began=$$(date +%s); \
		echo "1 of 3: a virtual environment, $(VENV)" && \
		{ $(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV); } && \
		echo "2 of 3: the $$(grep -c '^[a-zA-Z]' requirements.lock) packages of requirements.lock; torch is large: a few minutes the first time" && \
		$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check --requirement requirements.lock && \
		echo "3 of 3: danlu itself, as an editable package" && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . && \
		echo "done in $$(($$(date +%s) - began)) seconds; next: make demo"
	@touch $@

demo: $(READY) ## fine-tune a real model on the bundled sample and ask it before and after
	$(BIN)/danlu finetune examples/demo.yaml out=runs/demo

test: $(READY) ## run the tests (ARGS="-k resume" chooses)
	$(BIN)/pytest -q -n auto --maxprocesses 4 $(ARGS)

test-faults: $(READY) ## the long tests of a run that is killed, on a disk that fails (ARGS="-k kills" chooses)
	$(BIN)/pytest -q -m "faults or not faults" tests/faults $(ARGS)

fuzz: $(READY) ## give every parser many damaged files (EXAMPLES=5000 of hypothesis, then SECONDS=60 guided by coverage, each)
	EXAMPLES=$(or $(EXAMPLES),5000) $(BIN)/pytest -q tests/fuzz
	test -d .fuzz || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .fuzz atheris==3.0.0
	PYTHONPATH=.fuzz:. $(BIN)/python tests/fuzz/guided.py -timeout=60 -max_total_time=$(or $(SECONDS),60)

bench: $(READY) ## fine-tuning, the corpus and the silent failures beside the peers: hours (race and ablations by name; ARGS="finetune lora" chooses: a file of benchmarks/ and what it is told)
	@if [ -n "$(ARGS)" ]; then set -- $(ARGS); name=$$1; shift; exec $(BIN)/python benchmarks/$$name.py "$$@"; fi; \
		$(BIN)/python benchmarks/finetune.py all && \
		$(BIN)/python benchmarks/corpus.py all && \
		$(BIN)/python benchmarks/near_duplicates.py examples/data/sections.jsonl && \
		$(BIN)/python benchmarks/silent.py

check: $(READY) ## linter, formatter, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## write the code in the one style, and mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(READY) ## what the docs have from the code: the tables of settings, the hostile artefacts
	$(BIN)/python scripts/settings_table.py
	$(BIN)/python scripts/artefacts_table.py

lock: ## newest versions that pyproject.toml allows -> requirements.lock (TORCH=2.14.0 moves torch, which stays exact)
	@PYTHON=$(PYTHON) scripts/lock $(TORCH)

clean: ## caches and builds away; .venv and runs/ stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	find src tests scripts examples -name __pycache__ -type d -prune -exec rm -rf {} +
