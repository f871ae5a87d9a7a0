# make demo | test | lint | docs | bench | clean -- each sets up what it needs in .venv first. The tests with Globus's
# own programs need .venv-globus too; where that cannot be installed, they say so and are skipped. Only now and then one
# needs test-old-clients, which installs three more versions of those programs.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
GLOBUS := tests/globus/requirements.txt
OLD_CLIENTS := $(addprefix .venv-old/,funcx-2.4.0 globus-compute-2.0.0 globus-compute-3.0.0)
PROVIDERS := k8s local pbs slurm
DISTRIBUTIONS := -e ".[dev]" -e "webservice[postgres]" -e endpoint_core $(PROVIDERS:%=-e providers/%)
TEST_WORKERS ?= 4
PACKAGES := sdk/farcall webservice/farcall_webservice endpoint_core/farcall_endpoint \
	$(foreach name,$(PROVIDERS),providers/$(name)/farcall_provider_$(name))
CHECKED := $(PACKAGES) tests examples benchmarks

.PHONY: demo test test-old-clients storm lint docs bench clean setup

demo: setup
	@$(BIN)/python examples/demo.py

# Most tests wait more than they compute, so twice as many at a time as a small machine has cores. With PYTEST_ARGS
# (a file, `-k words`, `--pdb`) it is one after the other, as in `pytest` without `make`.
test: setup .venv-globus/installed
	$(BIN)/python -m pytest $(or $(PYTEST_ARGS),-n $(TEST_WORKERS))

test-old-clients: setup $(OLD_CLIENTS:%=%/installed)
	$(BIN)/python -m pytest tests/globus/old_clients.py $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy $(PACKAGES)

# The documentation is Markdown that reads as it is; what can be wrong in it is its examples and its links.
docs: setup
	$(BIN)/python -m pytest tests/test_documentation.py

# Hours of everything that can break, with more tasks and faults than the tests have: make storm STORM_ARGS="--seed 7".
storm: setup
	$(BIN)/python -m tests.storm --tasks 100000 --faults 400 --longest 8 $(STORM_ARGS)

bench: setup
	$(BIN)/python benchmarks/end_to_end.py

clean:
	rm -rf .venv .venv-globus .venv-old build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name '*.egg-info' -prune -exec rm -rf {} +
	find . -name __pycache__ -prune -exec rm -rf {} +

setup: .venv/installed

.venv/installed: setup.cfg pyproject.toml webservice/setup.cfg endpoint_core/setup.cfg \
		$(PROVIDERS:%=providers/%/setup.cfg)
	@test -n "$(PYTHON)" || { echo "Farcall needs Python 3.11 or newer on PATH (or: make PYTHON=/path/to/python)"; exit 1; }
	@$(PYTHON) -m venv .venv 2>/dev/null || { rm -rf .venv; \
		echo "This Python lacks its venv module; on Debian and Ubuntu the package python3-venv brings it."; \
		test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv .venv; }
	@echo "Installing into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=23"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(DISTRIBUTIONS)
	@touch $@

# Unmodified, and apart from everything of ours. That they cannot be had is no reason to run no tests at all.
.venv-globus/installed: $(GLOBUS) | setup
	@echo "Installing Globus Compute into .venv-globus ..."
	@{ $(PYTHON) -m venv --clear .venv-globus && \
		.venv-globus/bin/python -m pip install --quiet --disable-pip-version-check -r $(GLOBUS) && touch $@; } || \
		{ rm -rf .venv-globus; echo "... failed; the tests that need it will be skipped."; }

.venv-old/funcx-2.4.0/installed: PINS := funcx==2.4.0 funcx-endpoint==2.4.0
.venv-old/globus-compute-2.0.0/installed: PINS := globus-compute-endpoint==2.0.0
.venv-old/globus-compute-3.0.0/installed: PINS := globus-compute-endpoint==3.0.0

# Versions 2 were made for Python 3.11 at the latest.
$(OLD_CLIENTS:%=%/installed): | setup
	@echo "Installing $(PINS) ..."
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PINS)
	@touch $@
