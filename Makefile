# Everything a user or a contributor types. The only thing needed beforehand is Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Torch's index may be out of reach where a mirror provides the same builds: fail over quickly.
PIP_RETRIES ?= 1
export PIP_RETRIES
# Threads that spin while they wait take the processor from those they wait for wherever something else runs as well.
OMP_WAIT_POLICY ?= PASSIVE
export OMP_WAIT_POLICY
# ONNX Runtime would otherwise report each start to its maker.
export ORT_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help demo serve test check lock clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.runtime ## Make the demo catalogue, train on it, serve it on http://127.0.0.1:8000 (LACUNA_* settings apply)
	$(BIN)/lacuna demo $(ARGS)

serve: $(VENV)/.runtime ## Serve the bundle that LACUNA_BUNDLE names (ARGS="--bundle DIR" works too)
	$(BIN)/lacuna serve $(ARGS)

test: $(VENV)/.dev ## Run the test suite with coverage, in two processes (ARGS="-k name" is passed to pytest)
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --cov --cov-report=term:skip-covered $(ARGS)

check: $(VENV)/.dev ## Lint, formatting, types, directions of import
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(VENV)/.dev ## Rewrite requirements*.txt from requirements*.in (ARGS=--upgrade takes newer versions)
	grep == requirements-torch.txt | $(BIN)/uv pip compile --quiet --generate-hashes requirements.in - --output-file requirements.txt $(ARGS)
	$(BIN)/uv pip compile --quiet --generate-hashes requirements-dev.in --output-file requirements-dev.txt $(ARGS)

clean: ## Remove what builds, checks and tests left behind (the virtual environment stays)
	rm -rf build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis .schemathesis schemathesis-report .coverage*
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
		|| { echo "Lacuna needs Python 3.11 and '$(PYTHON)' is not one: run make with PYTHON=/path/to/python3.11." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The stamps make a second call instant. --no-deps: the two files together are the whole closure.
$(VENV)/.runtime: requirements-torch.txt requirements.txt requirements.in pyproject.toml | $(BIN)/python
	$(PIP) install --no-deps -r requirements-torch.txt
	$(PIP) install --no-deps --require-hashes -r requirements.txt
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
		echo "PyTorch is installed but cannot be loaded. Where the index of its CPU builds (requirements-torch.txt) is out" \
			"of reach, PyPI's builds need more than themselves: run '$(PIP) install -r requirements-torch.txt'," \
			"or install the same versions from a mirror of the CPU builds; then make again." >&2; exit 1; }
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(PIP) install --no-deps --require-hashes -r requirements-dev.txt
	@touch $@
