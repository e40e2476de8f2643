# Packages and the virtual gateway. Included by the Makefile.

VM := nice -n 5 target/debug/fwupdate-vm --deb target/debian/fwupdate-agent.deb
VM_CUTS ?= 100

.PHONY: packages packages-check vm vm-short vm-powercut msrv

packages: ## fwupdate-agent and fwupdate-tools as .deb and .rpm, in target/debian and target/generate-rpm
	@command -v cargo-deb >/dev/null || $(CARGO) install cargo-deb --locked
	@command -v cargo-generate-rpm >/dev/null || $(CARGO) install cargo-generate-rpm --locked
	@command -v pandoc >/dev/null || { echo "make packages: apt-get install pandoc"; exit 1; }
	$(CARGO) build --release --bins -p fwupdate -p fwupdate-hub
	packaging/pages.sh
	mkdir -p target/debian
	$(CARGO) deb -q --no-build -p fwupdate -o target/debian/
	$(CARGO) deb -q --no-build -p fwupdate --variant tools -o target/debian/
	ln -sf "$$(cd target/debian && ls -t fwupdate-agent_*.deb | head -1)" target/debian/fwupdate-agent.deb
	$(CARGO) generate-rpm
	$(CARGO) generate-rpm --variant tools

packages-check: packages ## lintian, then install, upgrade, remove and purge in a Debian root (as root)
	packaging/check.sh

vm: packages ## real boots on both bootloaders: A to B to A, every failure, cuts of the first boot (as root; about an hour)
	$(CARGO) build -q -p fwupdate-vm
	for bootloader in uboot grub; do $(VM) --bootloader $$bootloader story && $(VM) --bootloader $$bootloader failures || exit 1; done

vm-short: packages ## one update there and back on each bootloader (as root)
	$(CARGO) build -q -p fwupdate-vm
	for bootloader in uboot grub; do $(VM) --bootloader $$bootloader story || exit 1; done

vm-powercut: packages ## VM_CUTS power cuts at random instants on each bootloader; the table goes to docs/crash-campaign.md
	$(CARGO) build -q -p fwupdate-vm
	for bootloader in uboot grub; do \
	    $(VM) --bootloader $$bootloader power-cut --cuts $(VM_CUTS) --table docs/crash-campaign.md || exit 1; done

msrv: ## everything that runs on the device builds with the oldest Rust that is promised: Debian 12's 1.85
	packaging/msrv.sh
