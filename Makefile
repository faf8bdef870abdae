# make demo: setup, then the whole graph.  make test: setup, then the tests.  make ui, make mlflow: the web UIs.
# make docs: the documentation.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
EXTRAS ?= dev
# The pip of Python 3.11 takes three times as long to resolve versions, hence the new pip below. --no-compile: compiling
# every module of every package takes a minute, and most are never imported.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
COMPILE := $(BIN)/python -m compileall -qq -r 20 -j 0 -x '/site-packages/(.*/tests?/|transformers/models/)' $(VENV)/lib
# `dvc repro` calls `python` from PATH; Dagster stores its history in DAGSTER_HOME.
ENV := PATH="$(BIN):$$PATH" DAGSTER_HOME="$(CURDIR)/.dagster" PYTHONWARNINGS=ignore::FutureWarning

.PHONY: setup demo test architectures integration long engine lint docs ui mlflow repro clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml setup.py constraints.txt $(wildcard plumbline/*/*.c plumbline/*/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Plumbline needs Python 3.11 or newer; found $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make a virtual environment. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "setup 1 of 2: a new pip in $(VENV) ($$($(BIN)/python --version)), seconds"
	@$(PIP) --upgrade 'pip>=25.1'
	@echo "setup 2 of 2: Plumbline with the extras $(EXTRAS) and 250 packages, 1 to 5 minutes"
	@$(PIP) -c constraints.txt -e '.[$(EXTRAS)]' $(ALSO)
	@test -z "$$PYTHONDONTWRITEBYTECODE" || { echo "setup: compiling beforehand, as PYTHONDONTWRITEBYTECODE is set, a minute"; $(COMPILE) || true; }
	@$(BIN)/python -c 'from pathlib import Path; from plumbline.versioning.current_facts import link_inputs; link_inputs(Path.cwd())'
	@touch $@
	@echo "setup done"

demo: setup
	@$(ENV) $(BIN)/plumbline run

# One process per core, each with one thread. The processes that tests start read compiled modules, also where
# PYTHONDONTWRITEBYTECODE is set: compiling Plumbline anew takes each of them half a second.
WORKERS := auto
TESTS = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS)
# One test after the other in the order of tests/conftest.py, the longest first; those of an xdist_group in one process.
LONGEST_FIRST := --dist loadgroup --no-loadscope-reorder

test: setup
	@$(ENV) $(TESTS) --dist loadfile -m "not integration and not architectures"

architectures: setup
	@$(ENV) $(TESTS) --dist worksteal -m architectures

# A worker more than cores: these wait for daemons, servers and a browser a fifth of their time.
integration: WORKERS = $$($(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 1)')
integration: setup
	@$(ENV) $(TESTS) $(LONGEST_FIRST) -m "integration and not long"

# What takes minutes and is tested in parts elsewhere; not in CI.
long: setup
	@$(ENV) $(TESTS) --dist worksteal -m long

# vLLM in .plumbline/engines/vllm, for `plumbline serve-check`: its pins clash with those of .venv.
engine: setup
	@$(ENV) $(BIN)/plumbline engine

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

# The site, in site/. Strict: a page or link that leads nowhere fails.
docs: setup
	@$(BIN)/python -c 'import material' 2>/dev/null || $(PIP) -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict && echo "site/index.html"

repro: setup
	@$(ENV) $(BIN)/dvc repro

ui: setup
	@$(ENV) $(BIN)/plumbline ui

mlflow: setup
	@$(ENV) $(BIN)/plumbline mlflow

clean:
	rm -rf data dvc.lock mlflow.db* mlruns .dvc/cache .dvc/tmp
	@test ! -d .plumbline || find .plumbline -mindepth 1 -maxdepth 1 -not -name engines -exec rm -rf {} +
	find .dagster -mindepth 1 -not -name dagster.yaml -delete
	sed -i -e '/^requested:/,$$d' requested.yaml && echo 'requested: []' >> requested.yaml
	@printf '%s\n' '# What the inbox and the hub have brought in; `plumbline run` and the sensors write it, raw_corpus reads it.' 'files: {}' 'revisions: {}' > intake.yaml
