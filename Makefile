# Works on a fresh machine with Python 3.11 or newer, pip and make.

PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
READY := $(VENV)/.ready

.PHONY: venv system-tools lint test screenshots campaign bench demo clean

venv: $(READY)

# torch comes first and pinned, so that resolving the rest finds it there and never pulls another build. Of torchdata
# only the stateful loader is wanted, which needs nothing else.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; say which: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(INSTALL) torch
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps torchdata
	@touch $@

system-tools:
	scripts/system-tools

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: venv system-tools lint
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist worksteal

# Minutes of it, and docs/reliability.md anew.
campaign: venv system-tools
	-$(INSTALL) --editable '.[fuzz]'
	$(BIN)/python -m pytest -q --campaign -m campaign --numprocesses auto --dist worksteal tests

# Peers stay apart from the environment, and without their dependencies: some would bring another torch.
bench: venv
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .cache/bench --requirement bench/requirements.txt
	PYTHONPATH=bench:examples:.cache/bench $(BIN)/python -W ignore bench/compare.py

demo: venv
	$(BIN)/python examples/demo.py

# The pictures in docs/images anew, from a real run.
screenshots: venv system-tools
	$(BIN)/python examples/screenshots.py docs/images

clean:
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
