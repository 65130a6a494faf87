# The words of the project. Everything needs Python 3.11 or newer, git and make, nothing else.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run up down test soak bench bench-gpu dvc docs clean

export DB PREFECT_PORT MLFLOW_PORT
BIN := .venv/bin
STAMP := .venv/.installed

help:  ## Say what each word does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(STAMP)  ## Create the environment .venv, once

$(STAMP): pyproject.toml constraints.txt
	@python=""; \
	for name in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	    if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	        2>/dev/null; then python="$$name"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make: no Python 3.11 or newer with venv was found: install one." >&2; exit 1; \
	fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

run: setup  ## Run the whole pipeline; what did not change is skipped
	$(BIN)/infalign run

up: setup  ## Start Prefect, MLflow and a worker; DB=postgresql://… PREFECT_PORT= MLFLOW_PORT=
	@if [ -n "$${DB:-}" ]; then $(BIN)/python -m pip install --quiet \
	    --disable-pip-version-check -c constraints.txt -e '.[postgres]'; fi
	@$(BIN)/infalign up

down: setup  ## End exactly what `make up` started
	@$(BIN)/infalign down

test: setup  ## Lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not soak' -n 3 --dist loadfile --no-loadscope-reorder

soak: setup  ## Slow proofs: kills at random moments, seeds, real data
	$(BIN)/python -m pytest -m soak

bench: setup  ## Timed comparisons with other ways; installs TRL into .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

bench-gpu: setup  ## Speed and memory of a larger model on CUDA
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -e '.[lora]'
	$(BIN)/python -m benchmarks.bench_gpu

dvc: setup  ## Write the stages' source files into dvc.yaml, as they are imported
	$(BIN)/python -m flows.project.dependencies

docs: setup  ## Draw the figures of the documentation
	$(BIN)/python docs/figures.py

clean:  ## Remove results and unfinished work; DVC's cache and MLflow's evidence stay
	rm -rf results .infalign .mypy_cache .ruff_cache .pytest_cache .hypothesis
