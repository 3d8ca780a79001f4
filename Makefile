# One target per intent; `make` alone lists them. Nothing needs an activated environment.
#   make test VENV=/elsewhere      uses (or makes) an environment outside the repository
#   make test PYTHON=python3.13    makes the environment with that interpreter
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV ?= .venv
BIN := $(abspath $(VENV))/bin
# The newest Python from 3.11 on that PATH has and that can make environments.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)

DRIVERS := $(patsubst %/pyproject.toml,%,$(wildcard drivers/*/pyproject.toml))
DRIVER_INSTALLS := $(foreach driver,$(DRIVERS),-e ./$(driver))
# The driver packages that `make demo` runs; the others are for those who need them.
DEMO_INSTALLS := $(foreach driver,$(filter drivers/sql drivers/onnx drivers/ffmpeg,$(DRIVERS)),-e ./$(driver))
INSTALL_INPUTS := pyproject.toml .ci/constraints.txt $(wildcard drivers/*/pyproject.toml)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt
PYTEST := $(BIN)/python -m pytest
# A machine that stands still for a while makes a test miss its deadline, which says nothing about right and wrong: such a one
# is run once more, and the summary shows how it failed (RERUN). What has a wrong result fails at once, and so does the fourth missed
# deadline of a run: that is no accident. What shows that no job is lost or done twice gets no second run (PROOFS in tests/conftest.py).
ONCE_MORE := -raR --reruns 1 --max-suite-reruns 3 \
  --only-rerun '(?i)deadline.?exceeded|timeout(expired|error)|timed out|in [0-9.]+ s: not'

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# --- environment -------------------------------------------------------------------------------------------------------

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python >= 3.11 with the venv module found (Debian: apt-get install python3 python3-venv). Name one: make PYTHON=…" >&2; exit 1; fi
	"$(PYTHON)" -m venv "$(VENV)"

# What it takes to run; enough for `make demo`.
$(BIN)/.installed-run: $(INSTALL_INPUTS) | $(BIN)/python
	$(PIP) -e '.[gateway,cli]' $(DEMO_INSTALLS)
	@touch $@

# What it takes to develop: everything.
$(BIN)/.installed-dev: $(INSTALL_INPUTS) | $(BIN)/python
	$(PIP) -e '.[kafka,gateway,postgres,cli,dev]' $(DRIVER_INSTALLS)
	@touch $@ $(BIN)/.installed-run

# The queues that benchmarks compare with; nothing else needs them.
$(BIN)/.installed-bench: $(BIN)/.installed-dev
	$(PIP) -e '.[bench]'
	@touch $@

.PHONY: setup
setup: $(BIN)/.installed-dev ## Makes .venv with everything in it (instant when nothing has changed)

.PHONY: constraints
constraints: setup $(BIN)/.installed-bench ## Pins the newest versions of all dependencies in .ci/constraints.txt
	$(BIN)/python .ci/constraints.py

# --- contracts ---------------------------------------------------------------------------------------------------------

.PHONY: protos
protos: setup ## Generates onecontainer/api and the drivers' descriptors from protos/
	$(BIN)/python protos/generate.py

.PHONY: check-protos
check-protos: setup ## Checks the contracts: lint, breaking changes, generated files up to date
	$(BIN)/python protos/generate.py check

.PHONY: protos-baseline
protos-baseline: setup ## Takes today's contracts as what later ones must not break (docs/adr/0003)
	$(BIN)/python protos/generate.py baseline

# LANGUAGES: those alone, of go, node, java, rust, python.
.PHONY: stubs
stubs: setup ## Packages of stubs for users, below build/stubs: make stubs LANGUAGES='go rust'
	$(BIN)/python -m deploy.stubs $(LANGUAGES)

# --- checks ------------------------------------------------------------------------------------------------------------

.PHONY: format
format: setup ## Formats the code
	$(BIN)/ruff check --fix --exit-zero --quiet
	$(BIN)/ruff format

.PHONY: lint
lint: setup ## ruff and import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYTHONPATH=. $(BIN)/lint-imports --no-logo --no-cache

.PHONY: type
type: setup ## mypy --strict and pyright
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: site
site: setup ## The documentation as a static site, in build/site/html
	$(BIN)/python docs/site/build.py

.PHONY: check-docs
check-docs: setup ## Checks that the generated pages are up to date
	$(BIN)/python docs/reference.py check

.PHONY: test
test: lint type check-protos check-docs ## Everything that must be green before a change lands
	$(PYTEST) $(ONCE_MORE) -m 'not slow'

.PHONY: test-full
test-full: lint type check-protos check-docs ## Like test, with the slow tests
	$(PYTEST) $(ONCE_MORE)

.PHONY: clients
clients: setup ## The same scenario in each language that has stubs, and with grpcurl, on a real gateway
	$(PYTEST) tests/clients/test_scenarios.py

.PHONY: conformance
conformance: setup ## The conformance kit on every driver and fresh scaffolds, as processes and in containers
	$(BIN)/python -m tests.conformance

# A run can be played again: make faults SEED=7
.PHONY: faults
faults: setup ## kill -9 of gateway, driver and broker under load, and a rebalance storm (half an hour)
	$(BIN)/python -m tests.faults.matrix $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.faults.storm $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.faults.storm --crowd workers $(if $(SEED),--seed $(SEED))

# --- to look at --------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(BIN)/.installed-run ## Classifies a photo, transcodes a clip, writes and reads rows
	@$(BIN)/oca demo

.PHONY: bench-relay
bench-relay: setup ## Calls through the gateway against a minimal proxy and direct calls
	$(BIN)/python -m tests.bench.relay

.PHONY: bench-jobs
bench-jobs: $(BIN)/.installed-bench ## Jobs per second, latency, memory: ours, RQ, Celery, Dramatiq, Taskiq, raw Kafka
	$(BIN)/python -m tests.bench.jobs

.PHONY: bench-db
bench-db: setup ## Rows through the gateway against cassandra-driver and SQLAlchemy, on a real Cassandra and PostgreSQL
	$(BIN)/python -m tests.bench.db

# The peers' own environments are made on first use.
.PHONY: bench-ai
bench-ai: $(BIN)/.installed-bench ## Predictions per second: the model alone, a minimal service, ours, MLServer, BentoML, LitServe, an HTTP chain
	$(BIN)/python -m tests.bench.ai

.PHONY: bench-media
bench-media: setup ## A pipeline against bare ffmpeg with the same arguments, and eight of them against a shell loop
	$(BIN)/python -m tests.bench.media

.PHONY: bench-growth
bench-growth: setup ## Jobs with 1,000 to 100,000 queued, and with 1, 2 and 4 workers
	$(BIN)/python -m tests.bench.growth

.PHONY: bench-cancel
bench-cancel: setup ## Seconds from a cancel until the handler or its processes are gone
	$(BIN)/python -m tests.bench.cancel

.PHONY: rest
rest: setup ## The REST front as one static binary, build/rest/onecontainer-rest (needs Go)
	$(BIN)/python deploy/rest/build.py --quick

.PHONY: bench-rest
bench-rest: $(BIN)/.installed-bench ## Calls by REST: grpc-gateway, Envoy's transcoder, and a chain of blocking HTTP services
	$(BIN)/python -m tests.bench.rest

.PHONY: images
images: setup ## Images of the gateway and of each driver, for deploy/compose: make images BASE_IMAGE=…
	$(BIN)/python deploy/images/build.py $(if $(BASE_IMAGE),--base-image $(BASE_IMAGE))

.PHONY: bench-cold-start
bench-cold-start: setup ## Seconds from CreateService to READY, processes and containers; images; memory at rest
	$(BIN)/python -m tests.bench.cold_start

.PHONY: docs
docs: setup ## Writes the generated reference pages under docs/reference
	$(BIN)/python docs/reference.py

.PHONY: clean
clean: ## Removes what was built; .venv stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
