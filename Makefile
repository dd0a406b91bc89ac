# `make demo` runs the main job, `make test` the tests; each sets up what it needs first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
READY := $(VENV)/.ready
ARGS ?=

.PHONY: help setup demo test test-postgres test-collisions check format types imports bench bench-burn bench-settlement bench-replicas bench-hetzner bench-hosts live-hetzner soak fuzz sim sim-planted chaos host-dist anvil lock openapi clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(READY) ## Create .venv and install the locked dependencies

$(READY): requirements/all.lock requirements/bootstrap.lock pyproject.toml schemas/pyproject.toml hostagent/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "spawn needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)."; \
	  echo "Install one and run: make PYTHON=python3.11 $(or $(MAKECMDGOALS),setup)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This Python cannot create virtual environments: its venv module is missing."; \
	  echo "On Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@echo "setting up $(VENV) (about a minute the first time)"
	@test -x $(UV) || { $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.lock; }
	@VIRTUAL_ENV=$(VENV) $(UV) pip sync --quiet --require-hashes requirements/all.lock requirements/bootstrap.lock
	@VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation -e schemas -e . -e hostagent
	@touch $@

demo: $(READY) ## Run the main job: an agent pays, gets a server, and is refunded
	@$(BIN)/spawn demo

test: $(READY) ## Run the tests; ARGS="tests/unit -q" hands arguments to pytest
	$(BIN)/pytest $(or $(ARGS),-n 2 --dist loadfile)

ON_POSTGRES := tests/contract tests/integration tests/attacks tests/e2e tests/interop
test-postgres: $(READY) ## The suites with their books on a PostgreSQL that is started for it
	SPAWN_TEST_ENGINE=postgresql $(BIN)/pytest $(or $(ARGS),-n 2 $(ON_POSTGRES))

RETRIES ?= 0.05
COLLIDING := tests/contract tests/integration tests/attacks tests/interop
test-collisions: $(READY) ## The same, where this share of statements (RETRIES) fails and is repeated
	SPAWN_TEST_ENGINE=postgresql SPAWN_TEST_RETRIES=$(RETRIES) $(BIN)/pytest $(or $(ARGS),-n 2 $(COLLIDING))

format: $(READY) ## Format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY) ## Type-check
	$(BIN)/mypy

imports: $(READY) ## Prove that the layers hold
	$(BIN)/lint-imports

check: format types imports test test-postgres test-collisions ## Everything CI checks

bench: $(READY) ## Benchmarks: ratios against named peers, in one run
	$(BIN)/python -m tests.bench $(ARGS)

bench-burn: $(READY) ## A million servers, 100,000 due at once, settled with the API under load
	$(BIN)/python -m tests.bench.burn $(ARGS)

bench-settlement: $(READY) ## Settling on anvil beside web3.py and the x402 facilitator, and gas; needs Node and npm
	$(BIN)/python -m tests.bench.settlement $(ARGS)

bench-replicas: $(READY) ## Paid calls with 1, 2 and 3 replicas on PostgreSQL, beside SQLite
	$(BIN)/python -m tests.bench.replicas $(ARGS)

bench-hetzner: $(READY) ## An hour of 1,000 servers on the emulated Hetzner: the calls it costs us
	$(BIN)/python -m tests.bench.hetzner $(ARGS)

bench-hosts: $(READY) ## What 2,000 idle hosts cost, and the relay beside direct and asyncssh; needs OpenSSH
	$(BIN)/python -m tests.bench.hosts $(ARGS)

live-hetzner: $(READY) ## A machine's life at the real Hetzner Cloud, for CAP at most (token in SPAWN_HETZNER_TOKEN)
	@$(BIN)/python -m tests.live.hetzner --cap $(if $(CAP),$(CAP),$(error say what it may cost at most: make live-hetzner CAP=0.10)) $(ARGS)

REQUESTS ?= 1000000
soak: $(READY) ## A million mixed calls (REQUESTS): memory stays flat, the books are right
	$(BIN)/python -m tests.bench.soak --requests $(REQUESTS) $(ARGS)

SECONDS ?= 600
fuzz: $(READY) ## Fuzz all parsers, for SECONDS together (600)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

STEPS ?= 100000
SEED ?=
sim: $(READY) ## The whole service in a simulated world that breaks whatever it can: STEPS (100,000), SEED (a fresh one), ENGINE (sqlite)
	$(BIN)/python -m tests.sim --steps $(STEPS) $(if $(ENGINE),--engine $(ENGINE)) $(if $(SEED),--seed $(SEED)) $(ARGS)

sim-planted: $(READY) ## How soon the simulation finds bugs that are planted
	$(BIN)/python -m tests.sim.planted $(ARGS)

CHAOS_SECONDS ?= 120
chaos: $(READY) ## Three replicas on PostgreSQL under load, killed and paused for CHAOS_SECONDS (120); CHAIN=anvil relays
	$(BIN)/python -m tests.chaos --seconds $(CHAOS_SECONDS) $(if $(CHAIN),--chain $(CHAIN)) $(if $(SEED),--seed $(SEED)) $(ARGS)

host-dist: $(READY) ## Build the host agent as wheel, single file and image; sizes, starts, and what it takes to idle
	$(BIN)/python -m tests.hostagent.dist $(ARGS)

anvil: $(READY) ## Install anvil for `spawn dev --chain anvil`; needs Node and npm
	@$(BIN)/python -m tests.anvil $(VENV)/anvil

openapi: $(READY) ## Regenerate openapi.json
	$(BIN)/spawn openapi --output openapi.json

RESOLVE := $(UV) pip compile --quiet --generate-hashes --no-header --no-annotate
EVERYWHERE := --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --upgrade

lock: $(READY) ## Resolve requirements/*.in again
	$(RESOLVE) $(EVERYWHERE) --override requirements/all.overrides requirements/all.in -o requirements/all.lock
	$(RESOLVE) $(EVERYWHERE) requirements/x402-v1.in -o requirements/x402-v1.lock
	$(RESOLVE) requirements/bootstrap.in -o requirements/bootstrap.lock

clean: ## Remove the environment and caches
	rm -rf $(VENV) .boot-images .docker-images .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
