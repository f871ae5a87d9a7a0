# make demo | test | lint | docs | bench | clean -- each sets up what it needs in .venv first. The tests with Globus's
# own programs need .venv-globus too; where that cannot be installed, they say so and are skipped.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# texttable 1.7.1 and later break `globus-compute-endpoint list` of 4.19.
GLOBUS := globus-compute-sdk==4.19.0 globus-compute-endpoint==4.19.0 texttable==1.7.0
DISTRIBUTIONS := -e ".[dev]" -e "webservice[postgres]" -e endpoint_core -e providers/local
PACKAGES := sdk/farcall webservice/farcall_webservice endpoint_core/farcall_endpoint \
	providers/local/farcall_provider_local
CHECKED := $(PACKAGES) tests examples benchmarks

.PHONY: demo test lint docs bench clean setup

demo: setup
	@$(BIN)/python examples/demo.py

test: setup .venv-globus/installed
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
	rm -rf .venv .venv-globus build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
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

# Unmodified, and apart from everything of ours. That they cannot be had is no reason to run no tests at all.
.venv-globus/installed: | setup
	@echo "Installing Globus Compute into .venv-globus ..."
	@{ $(PYTHON) -m venv --clear .venv-globus && \
		.venv-globus/bin/python -m pip install --quiet --disable-pip-version-check $(GLOBUS) && touch $@; } || \
		{ rm -rf .venv-globus; echo "... failed; the tests that need it will be skipped."; }
