# Everything a contributor types. Needs GNU make, Python 3.11 or newer, and the packages pip can reach.
# Nothing is written outside this folder (pip's own download cache aside): each target makes the virtual environment
# it needs, and makes it anew when the interpreter, the folder or pyproject.toml has changed.

SHELL := /bin/sh
.SHELLFLAGS := -euc
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # two pips at work in one environment break it

PYTHON ?= python3
VERSIONS := 3.11 3.12 3.13
# Not `?=`: a VENV that happens to be exported must not be emptied.
VENV := .venv
# Options of the demo, or of the benchmarks.
ARGS :=

# Of the one peer that cannot share an environment with the others.
ALONE := .venvs/bench-alone

run := $(VENV)/bin/python -m

.PHONY: help demo test lint unit test-all bench bench-guard dashboards pictures format clean FORCE

help: ## print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | while IFS='	' read -r target text; do \
	    printf '  make %-12s %s\n' "$$target" "$$text"; done
	@echo 'PYTHON=python3.12 chooses another interpreter; ARGS="--faults" passes options to the demo, ARGS="--quick" to the benchmarks.'

demo: $(VENV)/ready-for-demo ## run a local API and a pool against it, with a live table and /metrics
	@$(run) pooledhttp demo $(ARGS)

test: lint unit ## all that has to pass before a change lands: lint, tests, coverage

lint: $(VENV)/ready-for-test ## ruff (rules and formatting) and mypy
	$(run) ruff check
	$(run) ruff format --check
	$(run) mypy

# Two processes, however many cores there are: tests of many threads need room. A file's tests stay together, since
# they share what is dear to make, and the longest files come first (tests/conftest.py). A process that ends (at a
# test's timeout, say) is not replaced: by file, xdist would then wait for ever for the tests that it took with it.
unit: $(VENV)/ready-for-test ## the tests alone, with coverage
	$(run) coverage erase
	$(run) coverage run -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
	$(run) coverage combine --quiet
	$(run) coverage report

test-all: lint ## the tests with every Python of VERSIONS that this machine has
	@passed=; missing=; \
	for version in $(VERSIONS); do \
	    python=; \
	    for candidate in "python$$version" "$${PYENV_ROOT:-$${HOME:-}/.pyenv}/versions/$$version"*/bin/python; do \
	        if [ "$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1)" = "$$version" ]; then \
	            python=$$candidate; break; \
	        fi; \
	    done; \
	    if [ -z "$$python" ]; then missing="$$missing $$version"; continue; fi; \
	    echo "== Python $$version ($$python)"; \
	    $(MAKE) unit VENV=.venvs/$$version PYTHON="$$python"; \
	    passed="$$passed $$version"; \
	done; \
	echo "passed with:$${passed:- none}; not on this machine:$${missing:- none}"; \
	[ -n "$$passed" ]

bench: $(VENV)/ready-for-bench $(ALONE)/ready ## measure this client and others against a bare socket
	@$(run) benchmarks --alone $(ALONE)/bin/python $(ARGS)

bench-guard: $(VENV)/ready-for-test ## count the instructions of the hot path, and compare them with those stored
	@$(run) benchmarks.guard $(ARGS)

dashboards: $(VENV)/ready-for-test ## write the dashboards, rules and alerts anew from dashboards/generator
	@$(run) dashboards.generator

pictures: $(VENV)/ready-for-test ## run the live proof of the dashboards, and draw their panels from it into docs/
	@$(call install,demo$(comma)test$(comma)pictures)
	@mkdir -p docs/dashboards
	POOLEDHTTP_DRAW=docs/dashboards $(run) pytest tests/test_live.py

format: $(VENV)/ready-for-test ## let ruff format the tree and mend what it can
	$(run) ruff check --fix-only
	$(run) ruff format

clean: ## remove everything these targets made
	rm -rf .venv .venvs .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +


# --- environments -----------------------------------------------------------------------------------------------------

# Refuses an interpreter that cannot do the work, else prints the one to build on: the base of $(PYTHON), which may
# itself be the environment about to be replaced. Has to parse under Python 2, to be able to say so.
define choose_interpreter
import os, sys
if sys.version_info < (3, 11):
    sys.exit("pooledhttp needs Python 3.11 or newer, and this is %d.%d (%s). Name another one: make PYTHON=python3.12 ..."
             % (sys.version_info[0], sys.version_info[1], sys.executable))
try:
    import ensurepip, venv
except ImportError:
    sys.exit("%s lacks the venv module. Install it (Debian, Ubuntu: the package python%d.%d-venv) or name another "
             "Python: make PYTHON=python3.12 ..." % (sys.executable, sys.version_info[0], sys.version_info[1]))
print(os.path.realpath(sys._base_executable))
endef
export choose_interpreter

# What the environment was made from. This recipe runs every time, but writes only when interpreter or folder changed;
# the environment is emptied then, and the stamps in it go too.
$(VENV)/made-from: FORCE
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo 'There is no command "$(PYTHON)". Name a Python 3.11 or newer: make PYTHON=/path/to/python ...' >&2; exit 1; }; \
	python=$$("$(PYTHON)" -c "$$choose_interpreter"); \
	made_from="$$("$$python" -VV) $$python $$PWD"; \
	if [ "$$(cat $@ 2>/dev/null)" != "$$made_from" ] || ! $(VENV)/bin/python -c '' 2>/dev/null; then \
	    echo "making $(VENV) with $$python"; \
	    "$$python" -m venv --clear $(VENV); \
	    printf '%s\n' "$$made_from" >$@; \
	fi

install = $(run) pip install --quiet --disable-pip-version-check --no-input --editable '.[$(1)]'

$(VENV)/ready-for-demo: pyproject.toml $(VENV)/made-from
	@echo "installing what the demo needs into $(VENV)"
	@$(call install,demo)
	@touch $@

comma := ,
$(VENV)/ready-for-test: pyproject.toml $(VENV)/made-from
	@echo "installing what the tests need into $(VENV)"
	@$(call install,demo$(comma)test)
	@touch $(VENV)/ready-for-demo $@

# All peers at once, else one by one: what cannot be installed here is missing in the tables. `make clean` tries again.
$(VENV)/ready-for-bench: pyproject.toml $(VENV)/made-from
	@echo "installing what the benchmarks compare with into $(VENV)"
	@$(call install,bench) || { \
	    $(call install,demo); \
	    for peer in $$($(VENV)/bin/python -c "$$list_peers"); do \
	        $(run) pip install --quiet --disable-pip-version-check --no-input "$$peer" || echo "$$peer: not installed"; \
	    done; \
	}
	@touch $@

define list_peers
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["bench"])
endef
export list_peers

$(ALONE)/ready: pyproject.toml $(VENV)/made-from
	@echo "installing the peer that cannot live with the others into $(ALONE)"
	@$(VENV)/bin/python -m venv --clear $(ALONE)
	@$(ALONE)/bin/python -m pip install --quiet --disable-pip-version-check --no-input '.[bench-alone]' || \
	    echo "it is not installed"
	@touch $@
