# Both targets make and reuse .venv; all that they need beforehand is Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check test-oldest clean

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

test-oldest: export OMP_NUM_THREADS := 1
test-oldest: .venv-oldest/ready  ## the quick part with exactly the oldest versions that pyproject.toml promises
	.venv-oldest/bin/pytest -n logical --dist worksteal -m 'not slow'

.venv-oldest/ready: pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest --resolution lowest-direct --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-oldest runs

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/ready-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ .venv/ready
