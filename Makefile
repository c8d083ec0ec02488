# One virtual environment, made on first use; every target works from a clean clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := distill teachers students tools examples tests

.PHONY: help demo install format lint test test-slow soak bench bench-gpu clean

help:
	@echo "make demo       quick start: distill the shipped teacher on digits and print a table"
	@echo "make install    create $(VENV) with the pinned development dependencies"
	@echo "make format     rewrite the code with ruff"
	@echo "make lint       check format, lint, types and the layers of imports"
	@echo "make test       run the default tests"
	@echo "make test-slow  run the long tests; DISTILL_TEST_DATA and DISTILL_TEST_TEACHER name their input"
	@echo "make soak       inject faults into running commands; about three hours on two cores"
	@echo "make bench      compare the blocked anchor loss with the plain formula"
	@echo "make bench-gpu  check the fused anchor loss on a CUDA GPU, tune it, time the published sizes"

demo: install
	$(BIN)/python tools/demo.py

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

format: install
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lint: install
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	test ! -x $(BIN)/lint-imports || $(BIN)/lint-imports --no-cache

test: install
	$(BIN)/python -m pytest -m "not slow and not gpu and not soak" -n 2 --dist loadfile

soak: install
	$(BIN)/python -m pytest -m soak -n 2

test-slow: install
	$(BIN)/python -m pytest -m slow

bench: install
	$(BIN)/python tools/bench_anchor_kl.py

bench-gpu: install
	$(BIN)/python tools/bench_gpu.py --published --tune

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
