.PHONY: soak sweep

SOAK_SECONDS ?= 3600

soak: ## one agent for SOAK_SECONDS (an hour): updates, rollbacks, cancels, lost links and renewals, and nothing grows
	FWUPDATE_SOAK=$(SOAK_SECONDS) $(CARGO) test --test integration soak:: -- --nocapture

SWEEP_PAIRS ?= 300

sweep: ## SWEEP_PAIRS random pairs of troubles over whole updates; FWUPDATE_SEED repeats a run (as root)
	FWUPDATE_PAIRS=$(SWEEP_PAIRS) $(CARGO) test --test integration sweep:: -- --nocapture
