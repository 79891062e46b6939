# make demo: dense against sparse at equal compute, in less than ten minutes on two cores.
# make test: the whole suite. Both set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= demo
RUNS ?= runs/$(PRESET)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs serve-docs tensorboard clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.base ## run the demo study and print where its report is (PRESET=laptop for a longer one)
	$(BIN)/python experiments/dense_vs_sparse.py --preset $(PRESET) --out $(RUNS)

test: $(VENV)/.dev ## the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow" $(ARGS)

test-all: $(VENV)/.dev ## the whole suite and the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(VENV)/.dev ## formatter, linter and type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev ## rewrite the code as the formatter wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev ## the documentation as a site in runs/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

serve-docs: $(VENV)/.dev ## the same while you write it, at http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

tensorboard: $(VENV)/.base ## look at the runs of a study (RUNS=runs/demo)
	$(BIN)/tensorboard --logdir $(RUNS)/runs

clean: ## remove the environment; runs/ stays
	rm -rf $(VENV) *.egg-info build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One environment, installed in two steps: what the toolkit needs, then what its tests need.
$(VENV)/.base: setup.cfg constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
