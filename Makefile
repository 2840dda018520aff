# make quickstart   a small real corpus, embedded and searched: all that Vecmill does, in two minutes
# make test         the tests
# make lint         ruff, mypy, import-linter
# make chaos        every edge of the commit protocol with something killed, then random rounds: an hour or two
#
# Each sets up .venv with what it needs. Another interpreter: make quickstart PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart test lint chaos

quickstart: $(VENV)/.installed-quickstart
	$(BIN)/vecmill quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.chaos.campaign

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# A stamp for each extra: a second call installs nothing, a changed pyproject.toml installs again.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[$*]'
	@touch $@

# Debian's python3 comes without the part of venv that puts pip into it: then the pip beside it does.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Vecmill needs Python 3.11 to 3.13, $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $@ install pip; }
