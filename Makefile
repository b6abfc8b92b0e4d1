# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`. `make help` lists the others.
# Everything is installed into .venv by pip, at the versions of constraints.txt; nothing outside the folder is touched.

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input --quiet
# The build tools are pinned too, so the build is not isolated: isolation would fetch the newest ones.
INSTALL := $(PIP) install -c constraints.txt --no-build-isolation
BENCHMARKS := startup decide stream gateway tracking selftest failover move live

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench soak docs clean

help:  ## List what can be made.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.ready-demo  ## Three unequal nodes, a clip through the fleet, a node overloaded half-way, a summary.
	$(PY) -m examples.demo $(ARGS)

test: $(VENV)/.ready-all  ## Run the tests, two at a time (ARGS="-k mesh" chooses some).
	$(PY) -m pytest -n 2 --dist loadgroup $(ARGS)

lint: $(VENV)/.ready-all  ## Check style, types, and that rooms import only from floors below.
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.ready-all  ## Run the benchmarks one after the other; the last line of each is one JSON object.
	@for name in $(BENCHMARKS); do echo "== $$name"; $(PY) -m benchmarks.$$name $(ARGS) || exit 1; done

soak: $(VENV)/.ready-all  ## Two minutes of faults on a real fleet (ARGS="--seconds 3600" for an hour).
	$(PY) -m benchmarks.soak $(ARGS)

docs: $(VENV)/.ready-all  ## Make the reference pages that are generated.
	$(PY) docs/generate_settings.py > docs/reference-settings.md
	$(PY) docs/generate_cli.py > docs/reference-cli.md

clean:  ## Remove what was installed and made here, but no state of a node.
	rm -rf $(VENV) .venvs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks examples recipes docs -name __pycache__ -type d -prune -exec rm -rf {} +

# -- setting up ------------------------------------------------------------------------------------------------------

$(PY):
	@test -n "$(PYTHON)" || { echo "nearfar needs Python 3.11 or newer, and none was found. Name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nearfar needs Python 3.11 or newer; this is $$($(PYTHON) -V). Name another: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$$($(PYTHON) -V) cannot make virtual environments. On Debian and Ubuntu type: sudo apt install python3-venv"; exit 1; }
	@echo "Setting up $(VENV) (once; a minute or two)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.ready-build: constraints.txt | $(PY)
	@$(PIP) install -c constraints.txt hatchling editables
	@touch $@

$(VENV)/.ready-demo: pyproject.toml constraints.txt $(VENV)/.ready-build
	@$(INSTALL) -e '.[litert,language]'
	@touch $@

$(VENV)/.ready-all: pyproject.toml constraints.txt $(VENV)/.ready-build
	@$(INSTALL) -e '.[litert,language,hub,track,test,lint]'
	@$(PIP) install --no-deps trackeval==1.3.0  # with its dependencies it would overwrite OpenCV's folder
	@touch $@ $(VENV)/.ready-demo
