#!/bin/sh
# Makes OUT, an ext4 image of a Debian 12 root file system with a kernel, systemd and what a gateway runs.
# As root, from the machine's own package sources; a minute or two.
#
# Usage: debian-root.sh OUT
set -eu

out=$1
export PATH="$PATH:/usr/sbin:/sbin"
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT

packages=systemd-sysv,udev,dbus,linux-image-cloud-amd64,iproute2,openssh-server,ca-certificates,curl,python3,nano

# The machine's Debian sources alone, whatever else it installs from.
sources=$(grep -l 'deb.debian.org' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true)
# shellcheck disable=SC2086 # one word a file
mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/*' \
    bookworm "$work/root" $sources

echo 'IMAGE_VERSION="12.1.0"' >> "$work/root/usr/lib/os-release"
echo good > "$work/root/etc/health"

truncate -s 640M "$work/image"
mkfs.ext4 -q -F -b 4096 -m 0 -d "$work/root" "$work/image"
mv "$work/image" "$out"
