# Everything a newcomer or CI runs. Each target sets up what it needs; `make` alone lists them.

SHELL := /bin/bash
CARGO ?= cargo

.PHONY: help build release setup check test demo explore mutants size deny

help: ## what there is to run
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

build: ## debug build of everything
	$(CARGO) build --workspace

release: ## the programs as they are shipped
	$(CARGO) build --release

setup: ## Debian packages that the tests and the demo use (as root; otherwise says what is missing)
	@tests/setup.sh

check: ## formatting and lints; `make deny` checks licences and sources
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

deny: ## licences, bans and sources of all dependencies (installs cargo-deny when missing)
	@command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked
	$(CARGO) deny check bans licenses sources

test: setup ## every test; the last line is `N passed, N failed`
	@tests/run.sh

demo: ## four updates on a simulated gateway, told while they happen (no root, under a minute once built)
	@tests/setup.sh demo
	$(CARGO) build --quiet --bins --workspace
	@target/debug/fwupdate-hub demo

explore: ## the crash explorer with one more fault of each kind (minutes)
	FWUPDATE_EXPLORE_LONG=1 $(CARGO) test --release --lib machine::tests::explorer -- --nocapture --test-threads 2

mutants: ## breaks the machine's rules one at a time; the explorer must notice each (minutes)
	@tests/mutants/rules.py

size: ## size of the daemon, and its memory and wake-ups when idle
	@tests/size.sh

-include make/*.mk
