.PHONY: fuzz

FUZZ_SECONDS ?= 3600
FUZZ_TARGETS ?=

fuzz: ## every parser of what comes from outside, FUZZ_SECONDS each (an hour), two at a time; FUZZ_TARGETS chooses some
	@command -v c++ >/dev/null || { echo "make fuzz: apt-get install g++"; exit 1; }
	@SECONDS_EACH=$(FUZZ_SECONDS) tests/fuzz/run.sh $(FUZZ_TARGETS)
