# make run writes text with the bundled model, make test runs the tests; everything is installed into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: help run test test-all check parity bench clean

help:
	@echo "make run       text by the bundled model on standard output"
	@echo "make test      the tests, without those marked slow"
	@echo "make test-all  every test"
	@echo "make check     format, lint, types, architecture"
	@echo "make parity    adds the original implementations to .venv, so that make test compares with them"
	@echo "make bench     memory and speed over 20,000 tokens; writes benchmarks/results"
	@echo "make clean     removes .venv"

run: $(VENV)/.run
	@$(BIN)/griffin generate "Once upon a time" \
		--min-tokens 150 --max-tokens 220 --temperature 0.8 --top-p 0.95 --seed 7

# A process a core: every test uses one thread.
test: $(VENV)/.test
	@$(BIN)/python -m pytest --numprocesses auto -m "not slow"

test-all: $(VENV)/.test
	@$(BIN)/python -m pytest --numprocesses auto

check: $(VENV)/.test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/python -m pytest --quiet tests/test_architecture.py

parity: $(VENV)/.parity

bench: $(VENV)/.run
	@$(BIN)/python benchmarks/memory_and_speed.py --model eyas --tokens 20000 --json --out benchmarks/results

clean:
	@rm -rf $(VENV)

# Each file below is the stamp of a finished installation. Standard output is kept for the text of `make run`.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: griffinlm needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -n 1)" >&2; \
		echo "hint: name another one, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) 1>&2 || { rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing griffinlm into $(VENV)" >&2
	@$(PIP_INSTALL) -e . 1>&2
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@echo "installing what the tests need into $(VENV)" >&2
	@$(PIP_INSTALL) -e '.[sentencepiece,orbax,ray,train,clients,dev]' 1>&2
	@touch $@

$(VENV)/.parity: $(VENV)/.test tests/parity/requirements.txt
	@echo "installing the original implementations into $(VENV)" >&2
	@$(PIP_INSTALL) -r tests/parity/requirements.txt 1>&2
	@touch $@
