# Both targets make and reuse .venv; all that they need beforehand is Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/ready                ## the main job on built-in digits, offline, in about a minute
	$(BIN)/tightframe transfer --out runs/demo

# Models in tests are tiny, so that threads would wait for each other; bytecode that is kept saves seconds a process.
test check: export OMP_NUM_THREADS := 1
test check: export PYTHONDONTWRITEBYTECODE :=

test: .venv/ready-dev            ## everything that has to hold before a change lands
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n logical --dist worksteal

check: .venv/ready-dev           ## the quick part of it, in about a minute
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n logical --dist worksteal -m 'not slow'

clean:
	rm -rf .venv runs

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/ready-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ .venv/ready
