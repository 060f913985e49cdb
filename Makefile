# make demo: run the reader on its example pictures.   make test: run every test.   Both set up .venv when there is none.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs clean

demo: .venv/installed
	$(BIN)/diptych demo

test: .venv/tested
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror kernels/*.cpp kernels/*.h
	$(BIN)/mypy
	$(BIN)/python -m pytest

docs: .venv/tested
	$(BIN)/python scripts/docs.py

.venv/installed: pyproject.toml $(wildcard kernels/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Diptych needs Python 3.11 or newer; this is $$($(PYTHON) --version). Run: make PYTHON=python3.12"; exit 1; }
	@test -d .venv || $(PYTHON) -m venv .venv
	@echo "Installing Diptych into .venv. llama.cpp is compiled for this machine: about five minutes on two cores."
	@.venv/bin/python scripts/install.py -e .
	@touch $@

.venv/tested: .venv/installed
	@echo "Installing what the tests need (PyTorch and transformers among it)."
	@.venv/bin/python scripts/install.py -e ".[test]"
	@touch $@

clean:
	rm -rf .venv build dist
