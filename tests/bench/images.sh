#!/bin/sh
# Builds the real image pairs that the experiments and `make bench` use, once, in a folder outside the
# repository: Debian 12 as first released on the mirror ("old"), the same with one package changed ("one"),
# and with all updates, security fixes and the new kernel ("new"); each as ext4, squashfs and erofs.
#
#   images.sh [FOLDER]     needs root, mmdebstrap, e2fsprogs, squashfs-tools, erofs-utils
set -eu
dir=${1:-/var/tmp/fwupdate-bench}
size=${IMAGE_SIZE:-768M}
mirror=${MIRROR:-http://deb.debian.org/debian}
security=${SECURITY_MIRROR:-http://deb.debian.org/debian-security}
packages=linux-image-cloud-amd64,systemd-sysv,dbus,openssh-server,ca-certificates,curl,python3-minimal
# One fixed time and one fixed seed, so that the same files give the same image.
export SOURCE_DATE_EPOCH=1767225600 E2FSPROGS_FAKE_TIME=1767225600
uuid=5b1c7b2e-6e0d-4d7c-9e52-0d4f4b9c1a77

main="deb $mirror bookworm main"
updates="deb $mirror bookworm-updates main"
fixes="deb $security bookworm-security main"

# root NAME PIN LINES...: a root file system as a folder. PIN: an apt preference, or nothing.
root() {
    name=$1 hook=$2
    shift 2
    [ -e "$dir/root-$name/.done" ] && return
    rm -rf "$dir/root-$name"
    mmdebstrap --mode=root --variant=important --include="$packages" \
        ${hook:+--customize-hook="$hook"} \
        --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/* "$1"/etc/machine-id' \
        bookworm "$dir/root-$name" "$@"
    find "$dir/root-$name" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
    : > "$dir/root-$name/.done"
}

# image NAME: that folder as three kinds of image, each a multiple of 4096 bytes.
image() {
    tree=$dir/root-$1
    [ -e "$dir/$1.erofs" ] && return
    mv "$tree/.done" "$dir/.done-$1"
    touch -d "@$SOURCE_DATE_EPOCH" "$tree"
    rm -f "$dir/$1.ext4" "$dir/$1.squashfs"
    mkfs.ext4 -q -d "$tree" -U $uuid -E hash_seed=$uuid,lazy_itable_init=0 -L root "$dir/$1.ext4" "$size"
    mksquashfs "$tree" "$dir/$1.squashfs" -quiet -no-progress -comp zstd -Xcompression-level 15 -noappend \
        -reproducible
    mkfs.erofs -zlz4hc -T$SOURCE_DATE_EPOCH -U $uuid "$dir/$1.part" "$tree" > /dev/null
    mv "$dir/$1.part" "$dir/$1.erofs"
    for kind in ext4 squashfs erofs; do
        truncate -s %4096 "$dir/$1.$kind"
    done
    mv "$dir/.done-$1" "$tree/.done"
}

mkdir -p "$dir"
root old '' "$main"
root one "echo '$fixes' > \"\$1\"/etc/apt/sources.list.d/x.list
    chroot \"\$1\" apt-get update -q
    chroot \"\$1\" apt-get install -qy --only-upgrade ${ONE:-openssl libssl3}
    rm \"\$1\"/etc/apt/sources.list.d/x.list" "$main"
root new '' "$main" "$updates" "$fixes"
for name in old one new; do
    image $name
done
ls -l "$dir"/*.ext4 "$dir"/*.squashfs "$dir"/*.erofs
