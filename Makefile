# `make demo` shows rts at work on embedded servers; `make test` checks everything.
# Each target first sets up what it needs in $(VENV).

PYTHON ?= python3
VENV ?= .venv
KEEP ?=
# Test files to run in parallel: most of them wait, so two per core of a small machine.
JOBS ?= 4
BIN := $(VENV)/bin
# Most of what comes with the packages is never imported; what is gets compiled then.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# Each of the many processes would compile every module anew.
test demo: export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check matrix bench docker-tests clean

demo: $(VENV)/.demo
	$(BIN)/python -m workers.demo $(if $(KEEP),--keep)

test: check
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m alone $$(grep -rl 'mark\.alone' tests --include='*.py')
	$(BIN)/coverage run -m pytest -m "not alone and not docker" -n $(JOBS) --dist loadfile \
	  --no-loadscope-reorder $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Celery 5.5, 5.6 and 5.7, and each Python that is installed (3.10 to 3.14).
matrix: $(VENV)/.dev
	$(BIN)/python tests/matrix.py

# pytest-celery's own stack; needs a Docker engine.
docker-tests: $(VENV)/.dev
	$(BIN)/python -m pytest -m docker tests/docker

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/ledger.py
	$(BIN)/python benchmarks/replay_trace.py --speedup 100

clean:
	rm -rf $(VENV) .venvs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

# Without ensurepip (Debian packages it separately), the system's pip installs pip.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || \
	  { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(VENV)/bin/python install --quiet pip; }

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e '.[embedded,flower,prometheus,workers]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.demo
