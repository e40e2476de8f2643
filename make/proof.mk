.PHONY: storm reconnect-plot settings-docs mutants-all

AREAS ?=

mutants-all: ## cargo-mutants over machine, store, manifest, slot and boot: each mutant is noticed or explained; goes on where it stopped (as root; an hour or two; AREAS="store boot")
	@tests/mutants/every.py $(AREAS)

storm: ## 1,000 agents' connections against a hub that fails over, restarts and throttles (minutes)
	FWUPDATE_STORM=1000 $(CARGO) test --test integration storm::a_fleet -- --ignored --nocapture

reconnect-plot: ## draws docs/reconnect.svg anew: 100,000 gateways against IoT Hub's limits
	FWUPDATE_DRAW=1 $(CARGO) test --test integration spread:: -- --nocapture

settings-docs: ## writes config/fwupdate.toml and the tables of docs/configuration.md from the rows in src/config/settings.rs
	FWUPDATE_WRITE=1 $(CARGO) test --lib config::settings::
