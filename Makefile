# make demo | test | test-long | check | bench | venv.  All of them set up what they need first.
# make demo DEMO="--once --json" hands options on.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PEER := .venv-peer/bin/python
export PATH := $(PATH):/usr/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# What is never imported need not be compiled: that is most of half a minute.
PIP := --quiet --no-compile
WANTED := --constraint constraints.txt --editable '.[dev]'
# Tests start hundreds of processes; without compiled files beside the sources each would compile agentd anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test tests test-long coverage check bench venv python tools upgrade

help:
	@echo "make demo       set up, then watch a controller break and recover (one to four minutes; Ctrl-C ends it)"
	@echo "make test       set up, then every check and test that is quick enough for each change"
	@echo "make test-long  soaks, many seeds, hundreds of kills"
	@echo "make coverage   the tests of make test once more, with a table of the lines and branches that they reach"
	@echo "make check      only the static checks"
	@echo "make bench      measurements; they assert nothing"
	@echo "make upgrade    the newest releases of what agentd needs, into .venv and constraints.txt; run make test after it"

demo: venv
	@$(BIN)/agentd demo $(DEMO)

# What waits for the network is fetched side by side. The checks take half a minute of one core: beside the tests they cost little.
test:
	@$(MAKE) --no-print-directory -j 2 tools venv
	@$(MAKE) --no-print-directory -j 2 check tests

# One process compiles first what each of the workers would compile for itself at the same time, on the core that the checks leave.
tests:
	@LITELLM_LOCAL_MODEL_COST_MAP=True $(BIN)/python -c "import litellm"
	@$(BIN)/pytest --collect-only -qq >/dev/null || true
	$(BIN)/pytest -n 6 --dist worksteal -m "not long"

# Apart from `make test`: measuring it triples the time of simulations and generated examples.
coverage: tools venv
	$(BIN)/pytest -n 4 --dist worksteal -m "not long" --timeout=180 --cov --cov-report=term

test-long: tools venv coverage
	$(BIN)/pytest -m long --timeout=1800
	HYPOTHESIS_PROFILE=long $(BIN)/pytest -n 2 tests/unit --timeout=600

check: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv $(PEER)
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# What tracing is measured beside. Its declared dependencies are gigabytes that tracing doesn't need; without it there are no ratios.
$(PEER): | venv
	@$(PYTHON) -m venv .venv-peer
	@echo "installing trace-opt into .venv-peer (once)"
	@$@ -m pip install --quiet numpy graphviz black && $@ -m pip install --quiet --no-deps trace-opt==0.1.3.8 || echo "trace-opt could not be installed: no ratios"

venv: $(INSTALLED)

# uv is done in ten seconds, where pip takes a minute; pip is for where only its settings know the way to the packages.
# The stamp is newer than pyproject.toml and constraints.txt exactly when .venv holds what they ask for.
$(INSTALLED): pyproject.toml constraints.txt | python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "installing agentd and its tools into .venv (once; up to two minutes)"
	@{ $(BIN)/python -m pip install $(PIP) --constraint constraints.txt uv && $(BIN)/uv pip install --quiet --python $(BIN)/python $(WANTED); } || \
		$(BIN)/python -m pip install $(PIP) $(WANTED)
	@touch $@

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "agentd needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(call debian,$(PYTHON) -c "import ensurepip",python3-venv)

upgrade: venv
	$(BIN)/python -m pip install $(PIP) --upgrade --upgrade-strategy eager --editable '.[dev]'
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

# Tests talk to a real broker, and promtool checks the metrics.
tools: python  # one installation of Debian packages at a time
	$(call debian,command -v mosquitto && command -v promtool,mosquitto prometheus)

# $(call debian,TEST,PACKAGES): unless TEST succeeds, install Debian packages when root, else say how. Their services are not started.
define debian
@if ! { $(1); } >/dev/null 2>&1; then \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "missing Debian packages:  sudo apt-get install -y --no-install-recommends $(2)"; exit 1; \
	fi; \
	echo "installing Debian packages: $(2)"; \
	if [ ! -e /usr/sbin/policy-rc.d ]; then \
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
		printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends $(2) >/dev/null || exit 1; \
fi
endef
