# One command each; every target installs what it needs first. `make help` lists them.
#   VENV=path     where the virtual environment lives (default .venv)
#   PYTHON=path   the Python that creates it (3.11 or newer)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MEDIA := examples/media

.DEFAULT_GOAL := help
.PHONY: help demo demo-ask test test-slow check clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Open the web demo in the browser, on the embedded checkpoint
	$(BIN)/omni demo --open

demo-ask: $(VENV)/.installed ## Ask about a sample image, video, recording and PDF
	$(BIN)/omni ask "Which digit is written here?" $(MEDIA)/digit.png
	$(BIN)/omni ask "In which direction does the shape move?" $(MEDIA)/clip.mp4
	$(BIN)/omni ask "Which word do you hear?" $(MEDIA)/recording.wav
	$(BIN)/omni ask "What is printed here?" $(MEDIA)/ticket.pdf

test: $(VENV)/.installed-dev ## Run the test suite
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev ## Run the tests that take more than a few seconds
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev ## Check format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## Remove the virtual environment and all caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache

# The stamps make an installation happen once, and again when the requirements change.

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Found $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed." \
			"Name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -f $@; echo "No virtual environment could be made in" \
		"$(VENV). On Debian and Ubuntu, first: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV). This happens once and takes some minutes."
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV). This happens once and takes some minutes."
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ $(VENV)/.installed
