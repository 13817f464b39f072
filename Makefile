# Everything that a newcomer or a maintainer runs. Setup is checked on every call and is quick
# when nothing changed.

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
CODE := $(wildcard src tests bench)
# More pytest arguments: make test ARGS="-k store"
ARGS ?=
# How many tests run at a time: what waits for a limit leaves its core to others, so one more than cores here.
WORKERS ?= 3
# How often make soak has each death.
ROUNDS ?= 20
# How many seeds make sim plays.
RUNS ?= 20000

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-test qemu11 bookworm demo test check lint types package sim soak pairs \
	kvm server bench docs clean

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## install what colo needs to run, into .venv
	@scripts/setup runtime

setup-test: ## install what style, types and tests need too
	@scripts/setup test

qemu11: setup-test ## make build/qemu11, the newer QEMU that tests run on
	@scripts/qemu11

bookworm: setup-test ## make build/bookworm, the Debian 12 that tests install the package in
	@scripts/bookworm

demo: ## show the whole story on this machine; without QEMU where there can be none
	@scripts/demo

test: qemu11 bookworm ## run every test; one on real QEMU that is skipped counts as failed
	@scripts/kvm-lab build
	$(PYTEST) --e2e=require --numprocesses=$(WORKERS) --dist=loadfile $(ARGS)

lint: setup-test ## check style and formatting
	$(PYTHON) -m ruff check $(CODE)
	$(PYTHON) -m ruff format --check $(CODE)

types: setup-test ## check types, strictly
	$(PYTHON) -m mypy --strict $(CODE)

check: lint types test ## style, types and every test: run it before a commit

soak: qemu11 ## every kind of death at random moments, ROUNDS times each (20); ARGS="-k 7.2" for less
	$(PYTEST) --e2e=require --rounds=$(ROUNDS) tests/e2e/net/test_deaths.py tests/e2e/net/test_takeover.py \
		tests/e2e/net/test_soak.py tests/e2e/test_node.py $(ARGS)

pairs: qemu11 ## have all pairs of QEMU and colo play, and write docs/compatibility.md
	COLO_WRITE_PAIRS=1 $(PYTEST) --e2e=require tests/e2e/test_pairs.py

kvm: qemu11 ## play the scenarios under KVM, in a machine whose KVM works, and write their table
	@scripts/kvm-lab build
	COLO_KVM=all $(PYTEST) --e2e=require tests/e2e/kvm $(ARGS)

server: qemu11 ## have a Debian with PostgreSQL taken over back and forth, twenty times
	@scripts/server
	COLO_SERVER=1 $(PYTEST) --e2e=require tests/e2e/net/test_server.py $(ARGS)

bench: setup ## measure on this machine, into build/bench.json
	@mkdir -p build
	$(PYTHON) -m bench --json build/bench.json

docs: setup ## draw the diagrams in docs/protocol.md and docs/host.md from the tables again, and the picture
	$(PYTHON) scripts/diagrams.py docs/protocol.md docs/host.md
	$(PYTHON) scripts/picture.py docs/architecture.svg

package: setup-test ## build a wheel, an sdist and a Debian package into dist
	@scripts/package dist
	@! command -v lintian >/dev/null || \
		lintian --fail-on error,warning "$$(ls -t dist/*.deb | head -n 1)"

sim: setup-test ## play the simulated world: RUNS seeds (20000), or one with SEED=n, told step by step
	$(PYTHON) -m tests.sim.run $(if $(SEED),--seed $(SEED),--runs $(RUNS))

clean: ## remove all that these commands made
	rm -rf --one-file-system build dist .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +
