# Two commands on a fresh machine: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One worker per core, of one thread each; 1.5 GB of memory a worker. Neighbouring tests, which share fixtures, stay on one worker.
WORKERS ?= -n logical --maxprocesses 4 --dist worksteal

.PHONY: demo test test-slow test-all lint env clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,openvino,plot,serve,supply-chain,tensorboard,tensorrt-rtx]'
	@touch $@

env: $(VENV)/.installed

demo: env
	$(BIN)/python tools/demo.py

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

test-slow: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m slow

test-all: test test-slow

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p kdzoo
	PYTHONPATH=.types $(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info demo
