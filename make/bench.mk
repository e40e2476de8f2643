.PHONY: bench bench-memory bench-engines bench-images experiment

BENCH_DIR ?= /var/tmp/fwupdate-bench

bench: ## install and delta side by side with other tools, medians of five (root, 6 GB and half an hour the first time)
	$(CARGO) build --release --bin fwupdate-bundle --bin fwupdated --example install
	$(CARGO) build -p fwupdate-hub --example peak
	@tests/bench/run.sh $(BENCH_DIR)

bench-memory: ## peak memory and time of an install, for images of 64 MiB to 8 GiB: docs/memory.svg (10 GB of disk)
	$(CARGO) build --release --bin fwupdate-bundle --example install
	@DRAW=docs/memory.svg tests/bench/memory.sh $(BENCH_DIR)

bench-engines: ## what io_uring would bring on this machine, beside threads that wait (root)
	@tests/bench/engines.sh $(BENCH_DIR)

bench-images: ## only build the real image pairs of the benchmark (root)
	@tests/bench/images.sh $(BENCH_DIR)

experiment: ## chunk sizes, kinds of image and dictionaries, on these images: the tables of docs/delta.md (an hour)
	CARGO_TARGET_DIR=$(BENCH_DIR)/experiment $(CARGO) build --release --manifest-path tests/bench/experiment/Cargo.toml
	@tests/bench/experiment/run.sh $(BENCH_DIR)/experiment/release/experiment $(BENCH_DIR)
