# Two commands for a newcomer: `make demo` and `make test`. Each sets up its own .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per process: small models lose time to a second thread, and comparisons run side by side.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test bench install docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found %d.%d: make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/understudy compare recipes/modular-addition --out runs/modular-addition --overwrite

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -n 2 --dist worksteal

# `make bench PEER_PYTHON=/path/to/python` compares with TRL, which needs an environment of its own: see
# benchmarks/requirements-trl.txt. Without it the comparisons with TRL are left out, and the results say so.
# UNDERSTUDY_GSM8K=FOLDER (train.jsonl and test.jsonl) times drafts on GSM8K itself, not on the sample rows of the tests.
bench: install
	$(BIN)/python -m benchmarks.run $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python -m benchmarks.report

docs: install
	$(BIN)/python docs/generate.py
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf $(VENV) build dist src/*.egg-info
