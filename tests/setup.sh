#!/usr/bin/env bash
# Installs the Debian packages that the tests use, or says which are missing. `setup.sh demo`: the demo's alone.
set -euo pipefail

# program:package
needed="mkfs.ext4:e2fsprogs cc:gcc"
if [ "${1:-}" != demo ]; then
    needed+=" fw_printenv:libubootenv-tool grub-editenv:grub-common zstd:zstd openssl:openssl
        mmdebstrap:mmdebstrap mksquashfs:squashfs-tools python3:python3 mkimage:u-boot-tools"
fi

PATH=$PATH:/usr/sbin:/sbin
missing=()
for pair in $needed; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ "${1:-}" != demo ] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=(python3-venv)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "missing Debian packages: ${missing[*]}; install them with: apt-get install ${missing[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
