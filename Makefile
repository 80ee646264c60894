# Everything a person runs here. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:
.DEFAULT_GOAL := help

# The default environment's release is the one that pyproject.toml pins; every release has a lock file.
DEFAULT := $(shell sed -nE 's/^ *"shortfin==([^"]+)".*/\1/p' pyproject.toml)
LOCKED := $(patsubst environments/%.txt,%,$(filter-out %/bootstrap.txt %/browser.txt,$(sort $(wildcard environments/*.txt))))
# The release of the report and the newest one; RELEASES=all stands for every one with a lock file.
RELEASES ?= $(DEFAULT) $(filter-out $(DEFAULT),$(lastword $(LOCKED)))
ifeq ($(strip $(RELEASES)),all)
override RELEASES := $(LOCKED)
endif
NOTEBOOKS ?= 01_reproduce
FULL ?=
SLOW ?=
OUT ?= data/reports
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	>/dev/null 2>&1 && { echo "$$p"; break; }; done)

CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
# Tests that have targets of their own.
UNASKED := not hard and not browser

VENV := .venv
BIN := $(VENV)/bin
# No user-wide package, setting or Jupyter path reaches into the pinned environments.
export PYTHONNOUSERSITE := 1
export JUPYTER_PLATFORM_DIRS := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

comma := ,
empty :=
space := $(empty) $(empty)
RELEASE_LIST := $(subst $(space),$(comma),$(strip $(RELEASES)))

.PHONY: help setup report test test-hard test-browser test-releases lab lint bench lock clean chromium

help: ## List what there is to run
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22
	echo
	echo 'For example:'
	echo '  make report NOTEBOOKS=all RELEASES="$(DEFAULT)" OUT=data/reports/all'
	echo '  make test SLOW=1 ARGS="tests/test_cli.py -n0"'
	echo '  make lab ARGS="--no-browser --port=8899"'
	echo '  make test-releases RELEASES=all'
	echo '  make lock RELEASES="$(DEFAULT)"'

setup: $(VENV)/.ready $(foreach r,$(RELEASES),.venvs/.ready-$(r)) ## Make the environments and compile the model (every target below does it)

report: setup ## Execute notebook 01 on every release, publish HTML (NOTEBOOKS=all, FULL=1, RELEASES="..." or all, OUT=dir)
	@$(BIN)/cachelab report --notebooks "$(NOTEBOOKS)" --releases $(RELEASE_LIST) --out "$(OUT)" $(if $(FULL),--full)

test: setup ## Run the tests (SLOW=1 adds the slow ones, ARGS=... goes to pytest, such as -n0 for one process)
	@$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder -m "$(UNASKED)$(if $(SLOW),, and not slow)" $(ARGS)

test-releases: setup ## Run the tests of an engine on other releases than test does (RELEASES="..." or all, ARGS=...)
	@CACHELAB_TEST_RELEASES="$(RELEASES)" $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder -m "$(UNASKED) and not slow" $(ARGS)

test-hard: setup ## Run the tests that kill sweeps and start engines by the hundred, for half an hour (ARGS=...)
	@$(BIN)/python -m pytest -m hard $(ARGS)

test-browser: chromium setup $(VENV)/.browser ## Run the tests that use JupyterLab and the pages in Chromium, for 10 to 20 minutes (ARGS=...)
	@CACHELAB_CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest -m browser $(ARGS) tests/browser

lab: setup ## Start JupyterLab on 127.0.0.1, with a kernel for each release (ARGS=--allow-root in a container)
	@$(BIN)/cachelab lab $(if $(ARGS),-- $(ARGS))

lint: $(VENV)/.ready ## Check style, types, and who may import whom
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Measure what watching costs, side by side in one process
	@for b in benchmarks/bench_*.py; do $(BIN)/python "$$b"; done
	for r in $(filter-out $(DEFAULT),$(RELEASES)); do .venvs/$$r/bin/python benchmarks/bench_observe.py; done

lock: $(VENV)/.ready ## Compile the lock files anew from pyproject.toml (RELEASES="...")
	@$(BIN)/python -c 'import sys; from analysis.shortfin.environments import lock; lock(sys.argv[1:])' $(RELEASES)

clean: ## Remove the environments and everything that can be made again (runs and reports stay)
	rm -rf $(VENV) .venvs data/cache

$(VENV)/.ready: environments/bootstrap.txt environments/$(DEFAULT).txt pyproject.toml
	@if [ "$$(uname -sm)" != "Linux x86_64" ]; then
	  echo "shortfin has wheels for x86-64 Linux only, and this is $$(uname -sm): work on an x86-64 Linux machine." >&2; exit 1
	fi
	if [ -z "$(PYTHON)" ]; then
	  echo "No Python 3.11, 3.12 or 3.13 with the venv module was found: install one, or name it with PYTHON=/path/to/python." >&2; exit 1
	fi
	echo "Setting up $(VENV) with $$($(PYTHON) --version) (about a minute the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --require-hashes -r environments/bootstrap.txt
	export UV_PYTHON_DOWNLOADS=never
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r environments/$(DEFAULT).txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

chromium:
	@if [ ! -x "$(CHROMIUM)" ]; then
	  echo "No Chromium was found: install one with \`apt-get install chromium\`, or name it with CHROMIUM=/path/to/chromium." >&2; exit 1
	fi

$(VENV)/.browser: $(VENV)/.ready environments/browser.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r environments/browser.txt
	touch $@

.venvs/.ready-%: $(VENV)/.ready environments/%.txt data/model/checksums.json
	@echo "Setting up shortfin $* and compiling the model for it"
	mkdir -p .venvs
	$(BIN)/cachelab releases install $*
	$(BIN)/cachelab model build --releases $*
	touch $@
