# Everything a newcomer needs; `make help` lists it. Both set-up steps are skipped when done.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help quickstart test check format docs pocket bench models gpu chaos cluster clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.run ## Set up, then map a real allocation landscape (minutes, two CPU cores)
	$(BIN)/ressa run sweeps/quickstart.yaml

test: $(VENV)/.dev ## Set up, then run the tests of the CI tier
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		-m "not slow" tests

check: $(VENV)/.dev ## Format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy ressa
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Reformat the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev ## Write the pages that are made from the code: docs/sweep-file.md, docs/tables.md
	$(BIN)/python -m ressa.spec.reference docs
	$(BIN)/python -m ressa.store.reference docs

pocket: $(VENV)/.run ## Train both pocket models again from their seeds (an hour)
	$(BIN)/python -m ressa.models.pocket

# Checkouts of the peers' code; rows of a peer that is not given are left out.
WANDA ?=
SPARSEGPT ?=
DSNOT ?=
bench: $(VENV)/.dev ## Time ours beside the peers (minutes): make bench WANDA=dir SPARSEGPT=dir DSNOT=dir
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(if $(WANDA),--wanda $(WANDA)) \
		$(if $(SPARSEGPT),--sparsegpt $(SPARSEGPT)) $(if $(DSNOT),--dsnot $(DSNOT)) $(if $(ONLY),--only $(ONLY))

KILLS ?= 50
SEED ?= 0
chaos: $(VENV)/.dev ## Fuzz files and stores, kill sweeps at random, compare with undisturbed ones (an hour or more): KILLS=50 SEED=0
	OMP_NUM_THREADS=1 RESSA_TEST_SCALE=10 $(BIN)/python -m pytest tests/spec/test_fuzz.py tests/store/test_fuzz.py \
		tests/store/test_decision.py tests/store/test_compaction.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --kills $(KILLS) --seed $(SEED)

cluster: $(VENV)/.dev ## Sweeps on a Ray of several machines made of network namespaces, hit by failures (half an hour; root)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.cluster

models: $(VENV)/.dev ## Try every model type of transformers, small and random: docs/models.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoo $(ONLY)

gpu: $(VENV)/.dev ## What only a GPU shows: tests that need one, and a model of 1.6 billion weights, dense beside 2:4 (a quarter of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_trial.py tests/prune tests/repair tests/export/test_kernels.py tests/models/test_zoo.py
	$(BIN)/python -m benchmarks.large

clean: ## Remove the virtual environment and caches; results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 13) else "ressa needs Python 3.11 or 3.12: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (about two minutes, 1.8 GB) …"
	$(PIP) install -c constraints.txt 'torch==2.13.0'
	$(PIP) install -c constraints.txt -e '.[run]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install -c constraints.txt -e '.[run,tasks,dev]'
	@touch $@
