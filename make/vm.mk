# Packages and the virtual gateway. Included by the Makefile.

VM := nice -n 5 target/debug/fwupdate-vm --deb target/debian/fwupdate-agent.deb
VM_CUTS ?= 100
VM_PREFIXES ?= 1000
BOOTLOADERS ?= uboot grub

.PHONY: deb packages packages-check vm-setup vm vm-short vm-powercut vm-replay msrv

deb: ## fwupdate-agent and fwupdate-tools as .deb in target/debian
	@command -v cargo-deb >/dev/null || $(CARGO) install cargo-deb --locked
	@command -v pandoc >/dev/null || { echo "make deb: apt-get install pandoc"; exit 1; }
	@# One after the other: features that only the hub asks for would make the agent larger.
	$(CARGO) build --release --bins -p fwupdate
	$(CARGO) build --release --bins -p fwupdate-hub
	packaging/pages.sh
	mkdir -p target/debian
	$(CARGO) deb -q --no-build -p fwupdate -o target/debian/
	$(CARGO) deb -q --no-build -p fwupdate --variant tools -o target/debian/
	ln -sf "$$(cd target/debian && ls -t fwupdate-agent_*.deb | head -1)" target/debian/fwupdate-agent.deb
	ln -sf "$$(cd target/debian && ls -t fwupdate-tools_*.deb | head -1)" target/debian/fwupdate-tools.deb

packages: deb ## fwupdate-agent and fwupdate-tools as .deb and .rpm, in target/debian and target/generate-rpm
	@command -v cargo-generate-rpm >/dev/null || $(CARGO) install cargo-generate-rpm --locked
	$(CARGO) generate-rpm
	$(CARGO) generate-rpm --variant tools

packages-check: setup packages ## lintian, rpmlint, and the packages' life in a Debian root (as root)
	packaging/check.sh

vm-setup:
	@tests/setup.sh vm

vm: vm-setup deb ## real boots on both bootloaders: A to B to A, every failure, a bad environment, tries from inside the sandbox, a key in a TPM (as root; about an hour)
	$(CARGO) build -q -p fwupdate-vm
	for bootloader in $(BOOTLOADERS); do for what in story failures environment sandbox; do \
	    $(VM) --bootloader $$bootloader $$what || exit 1; done; done
	$(VM) --bootloader grub token

vm-short: vm-setup deb ## on both bootloaders: A to B to A, replayed; a failed check; 6 power cuts; a key in a TPM, and tries from inside the sandbox (as root)
	tests/vm/short.sh

vm-powercut: vm-setup deb ## VM_CUTS power cuts at random instants on each bootloader; the table goes to docs/crash-campaign.md
	$(CARGO) build -q -p fwupdate-vm
	for bootloader in $(BOOTLOADERS); do \
	    $(VM) --bootloader $$bootloader power-cut --cuts $(VM_CUTS) --table docs/crash-campaign.md || exit 1; done

vm-replay: vm-setup deb ## VM_PREFIXES prefixes of two updates' writes on each bootloader, examined; a sample is booted
	$(CARGO) build -q -p fwupdate-vm
	for bootloader in $(BOOTLOADERS); do \
	    $(VM) --bootloader $$bootloader replay --prefixes $(VM_PREFIXES) || exit 1; done

msrv: ## everything that runs on the device builds with the oldest Rust that is promised: Debian 12's 1.85
	packaging/msrv.sh
