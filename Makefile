# make demo | test | lint | docs | bench | clean -- each sets up what it needs in .venv first.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
DISTRIBUTIONS := -e ".[dev]" -e "webservice[postgres]" -e endpoint_core -e providers/local
PACKAGES := sdk/farcall webservice/farcall_webservice endpoint_core/farcall_endpoint \
	providers/local/farcall_provider_local
CHECKED := $(PACKAGES) tests examples benchmarks

.PHONY: demo test lint docs bench clean setup

demo: setup
	@$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy $(PACKAGES)

# The documentation is Markdown that reads as it is; what can be wrong in it is its examples and its links.
docs: setup
	$(BIN)/python -m pytest tests/test_documentation.py

bench: setup
	$(BIN)/python benchmarks/end_to_end.py

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name '*.egg-info' -prune -exec rm -rf {} +
	find . -name __pycache__ -prune -exec rm -rf {} +

setup: .venv/installed

.venv/installed: setup.cfg pyproject.toml webservice/setup.cfg endpoint_core/setup.cfg providers/local/setup.cfg
	@test -n "$(PYTHON)" || { echo "Farcall needs Python 3.11 or newer on PATH (or: make PYTHON=/path/to/python)"; exit 1; }
	@$(PYTHON) -m venv .venv 2>/dev/null || { rm -rf .venv; \
		echo "This Python lacks its venv module; on Debian and Ubuntu the package python3-venv brings it."; \
		test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv .venv; }
	@echo "Installing into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=23"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(DISTRIBUTIONS)
	@touch $@
