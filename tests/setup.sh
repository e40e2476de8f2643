#!/usr/bin/env bash
# Installs the Debian packages that the tests use, or says which are missing. `setup.sh demo`: the demo's alone;
# `setup.sh interop`: what Microsoft's SDKs need; `setup.sh vm`: those of the virtual gateway too.
set -euo pipefail

# program:package
needed="mkfs.ext4:e2fsprogs cc:gcc"
[ "${1:-}" != interop ] || needed="openssl:openssl node:nodejs npm:npm"
all=true
case "${1:-}" in demo | interop) all=false ;; esac
if $all; then
    needed+=" fw_printenv:libubootenv-tool grub-editenv:grub-common zstd:zstd openssl:openssl
        c++:g++ mmdebstrap:mmdebstrap mksquashfs:squashfs-tools python3:python3 mkimage:u-boot-tools
        node:nodejs npm:npm /usr/lib/softhsm/libsofthsm2.so:softhsm2 pkcs11-tool:opensc swtpm:swtpm
        /usr/lib/$(uname -m)-linux-gnu/pkcs11/libtpm2_pkcs11.so:libtpm2-pkcs11-1"
fi
# The packages, and the networks, whose tests need root.
if $all && [ "$(id -u)" -eq 0 ]; then
    needed+=" pandoc:pandoc lintian:lintian systemd-analyze:systemd ip:iproute2 nsenter:util-linux"
fi
if [ "${1:-}" = vm ]; then
    needed+=" grub-mkstandalone:grub-common mcopy:mtools mkfs.vfat:dosfstools sfdisk:fdisk debugfs:e2fsprogs cpio:cpio
        /usr/lib/grub/x86_64-efi/kernel.img:grub-efi-amd64-bin
        /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf /usr/lib/u-boot/qemu-x86/u-boot.rom:u-boot-qemu"
fi

PATH=$PATH:/usr/sbin:/sbin
missing=()
for pair in $needed; do
    program=${pair%%:*}
    # A path to a file that is no program is only looked for.
    if [[ $program == /* ]]; then test -e "$program"; else command -v "$program" >/dev/null; fi ||
        missing+=("${pair##*:}")
done
if [ "${1:-}" != demo ] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=(python3-venv)
fi
# Azure's front in tests/integration/front.py: Debian's python3 with Debian's OpenSSL.
if $all && ! /usr/bin/python3 -c 'import OpenSSL' 2>/dev/null; then
    missing+=(python3-openssl)
fi
# Both of one release: Debian's emulator and a newer qemu-img exclude each other.
if [ "${1:-}" = vm ] && ! { command -v qemu-system-x86_64 && command -v qemu-img; } >/dev/null; then
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    missing+=("qemu-system-x86/$release" "qemu-utils/$release")
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "missing Debian packages: ${missing[*]}; install them with: apt-get install ${missing[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends --allow-downgrades "${missing[@]}"
