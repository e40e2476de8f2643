.PHONY: quickstart

quickstart: ## docs/quickstart-azure.md as in `make test`, but with Microsoft's extension azure-iot, which is fetched from its storage
	tests/interop/az/venv.sh extension
	AZURE_EXTENSION_DIR=$(CURDIR)/target/az/extensions $(CARGO) test --test integration quickstart:: -- --nocapture
