# make demo    the whole pipeline on slides that it makes itself; prints where the report is
# make test    the tests
# make lint    style and types
# make docs    the documentation as a site, in build/docs; a broken link is an error
# Each sets up .venv on its own the first time.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# Modules are compiled when they are first imported (pip would compile all 16,000, of which a third is ever imported),
# and what was compiled is kept. The largest are imported once after they are installed: three test processes that start
# together would each compile them.
export PYTHONDONTWRITEBYTECODE :=
LARGE := distributed, fastapi.testclient, matplotlib.figure, pandas, playwright.sync_api, schemathesis, skimage.filters, \
	sklearn.metrics, torchmetrics.image

.PHONY: demo docs test lint format setup clean
.DEFAULT_GOAL := demo

demo: .venv/installed
	$(BIN)/histoloom demo --out demo

# Three processes at once, a file of tests at a time, the longest first, with a thread each: one more than the cores of a
# small machine, because tests of processes, servers and browsers wait a quarter of their time.
test: export OMP_NUM_THREADS := 1
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "open build/docs/index.html"

setup: .venv/installed

clean:
	rm -rf .venv demo build .mypy_cache .pytest_cache .ruff_cache

# pip of Python 3.11 takes three times as long to find the packages. torch comes first and alone, so that nothing else
# can ask for another build of it.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Histoloom needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip==26.3
	$(PIP) torch==2.13.0
	$(BIN)/python -W ignore -c 'import torch._dynamo' & $(PIP) --editable '.[dev]' && wait
	$(BIN)/python -c 'import $(LARGE)' & $(BIN)/python -c 'import histoloom.autoencoder.vqgan' && wait
	@touch $@
