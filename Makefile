# Every target makes the environment it needs. VENV and PYTHON may be set from outside.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL := models/smollm2-135m-instruct
DATA ?= ../shared/data
export TOKENIZERS_PARALLELISM := false

