# make demo: set-up and the main job.  make test: set-up and the tests.  make ui, make mlflow: look at it.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# `dvc repro` calls `plumbline`; Dagster and MLflow keep their history in this folder.
ENV := PATH="$(BIN):$$PATH" DAGSTER_HOME="$(CURDIR)/.dagster" PYTHONWARNINGS=ignore::FutureWarning

.PHONY: setup demo test integration lint ui mlflow repro clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt plumbline/activation_stats/kernel.c plumbline/activation_stats/kernel_avx2.h plumbline/activation_stats/kernel_avx512.h plumbline/quantized_model/descent.c plumbline/quantized_model/solver.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Plumbline needs Python 3.11 or newer; found $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make a virtual environment. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV); the first time takes a few minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import pathlib, plumbline.versioning.code as code; code.link_library(pathlib.Path.cwd())'  # for `dvc repro`
	@touch $@

demo: setup
	@$(ENV) $(BIN)/plumbline run

# A process per core, each with one thread.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

test: setup
	@$(ENV) $(TESTS) --dist loadfile -m "not integration"

integration: setup
	@$(ENV) $(TESTS) --dist worksteal -m integration

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

repro: setup
	@$(ENV) $(BIN)/dvc repro

ui: setup
	@echo "Dagster: http://127.0.0.1:3000  (Ctrl-C stops it; the history stays in .dagster)"
	@$(ENV) $(BIN)/dagster dev -h 127.0.0.1 -p 3000

mlflow: setup
	@echo "MLflow: http://127.0.0.1:5000  (Ctrl-C stops it; the runs stay in mlflow.db)"
	@$(ENV) MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db \
	  --default-artifact-root $(CURDIR)/mlruns

clean:
	rm -rf data dvc.lock .plumbline mlflow.db* mlruns .dvc/cache .dvc/tmp
	find .dagster -mindepth 1 -not -name dagster.yaml -delete
	sed -i -e '/^requested:/,$$d' requested.yaml && echo 'requested: []' >> requested.yaml
	@printf '%s\n' '# What the inbox and the hub have brought in; `plumbline run` and the sensors write it, raw_corpus reads it.' 'files: {}' 'revisions: {}' > intake.yaml
