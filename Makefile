# Needs Python 3.11 or newer and make, nothing else. `make demo` and `make test` set the environment up on first use.
#
#   PYTHON=python3.12   the Python to make the environment with
#   VENV=.venv          where the environment lies
#   ARGS="..."          further arguments for `make demo` and `make test`
#   JOBS=2              processes that share the tests; each wants about 1.5 GB of memory

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= 2
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt

.PHONY: setup demo test slow browser lint format bench clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo     the whole job on the embedded model, then the explorer"
	@echo "make test     the tests (make slow, make browser: the rest of them)"
	@echo "make lint     format, style and types (make format: repair what can be)"
	@echo "make bench    the measurements in benchmarks/"
	@echo "make setup    only the environment, in $(VENV)"
	@echo "make clean    remove the environment and the caches; runs/ and workspace/ stay"

setup: $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/mechscope demo $(ARGS)

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not browser" $(ARGS)

slow: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "slow and not browser" $(ARGS)

browser: $(VENV)/.installed-browser
	@$(BIN)/python -m pytest -m browser $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.installed
	@for script in benchmarks/*.py; do \
		if [ -f "$$script" ]; then echo "== $$script"; $(BIN)/python "$$script" || exit 1; fi; done

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv where it is present: it picks the PyTorch build for the machine at hand. pip otherwise, or where uv fails.
# Each stamp is written when its installation is complete, so that an interrupted set-up is taken up again.
define install
	@echo "Installing mechscope$(1) into $(VENV): some minutes and about 2 GB of disk the first time."
	@if command -v uv >/dev/null 2>&1 && UV_TORCH_BACKEND=$${UV_TORCH_BACKEND:-auto} \
		uv pip install --python $(BIN)/python -c constraints.txt -e ".$(1)"; then :; \
	else $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".$(1)"; fi
	@touch $@
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
		sys.version_info >= (3, 11) or sys.exit("mechscope needs Python 3.11 or newer, and $(PYTHON) is " + v + \
		". Name another one: make PYTHON=python3.12 ...")'
	@echo "Making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python's venv module failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(call install,)

$(VENV)/.installed-dev: $(SOURCES) | $(BIN)/python
	$(call install,[dev])
	@touch $(VENV)/.installed

$(VENV)/.installed-browser: $(SOURCES) | $(BIN)/python
	$(call install,[dev$(comma)browser])
	@touch $(VENV)/.installed $(VENV)/.installed-dev

comma := ,
