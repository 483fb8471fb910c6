# `make demo` and `make test` need nothing but Python: the first run sets up .venv from constraints.txt.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
READY := $(VENV)/.ready
EXTRAS := demo,plots,tensorboard,export,space,test,dev

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-data demo-train demo-recommend space test quick lint clean

help:
	@echo "make demo   set up, train on the demo data, evaluate, reload, recommend   (runs/demo/)"
	@echo "make space  the page in space/ on the demo's model, in a browser on this machine"
	@echo "make test   set up and run every test"
	@echo "make quick  the tests that take seconds"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove .venv, caches and the demo's output"

setup: $(READY)

# -qq: pip's own warnings are about the machine's pip configuration; errors are still printed.
$(READY): constraints.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "constraints.txt needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	         "name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version): about 2.5 GB and some minutes ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install -qq -c constraints.txt setuptools
	@$(PY) -m pip install -qq -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@
	@echo "$(VENV) is ready"

demo: demo-data demo-train demo-recommend

demo-data: $(READY)
	@rm -rf runs/demo runs/demo-data runs/demo-prepared
	@$(BIN)/llmrec demo-data runs/demo-data

# Left to itself, accelerate gives one thread to a process on a machine without a GPU.
demo-train: demo-data
	@threads=$$($(PY) -c 'import psutil; print(psutil.cpu_count(logical=False) or 1)'); set -x; \
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	    --num_cpu_threads_per_process $$threads train.py configs/demo.yaml

# Without our packages, from the saved folder alone; a history of two pastimes from three domains.
demo-recommend: demo-train
	@$(PY) examples/stranger.py runs/demo/model runs/demo-prepared/catalogue.parquet \
	    "Marlowe Whole Cumin, Cardamom and Cloves, 12 oz" "Pellingford Stovetop Moka Pot, 6 Cup" \
	    "Coffee for Beginners by Marguerite Osei"

# Trains the demo's model first where there is none.
space: $(READY)
	@test -f runs/demo/results.json || $(MAKE) demo-train
	@$(PY) space/app.py --model runs/demo/model --catalogue runs/demo-prepared

test: $(READY)
	@$(PY) -m pytest

quick: $(READY)
	@$(PY) -m pytest -m "not slow"

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) runs/demo runs/demo-data runs/demo-prepared build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
