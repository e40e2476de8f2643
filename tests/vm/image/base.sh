#!/bin/sh
# Builds the Debian 12 root that all images of the virtual gateway are made from: systemd, an initial RAM disk
# and the two newest cloud kernels, so that an update can change the kernel; and what a key in a TPM needs (4 MB). Neither
# loop devices nor KVM are used. As root, for mmdebstrap's mode "root".
#
#   base.sh OUT.tar
set -eu

out=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

kernels=$(apt-cache search --names-only '^linux-image-[0-9.]+-[0-9]+-cloud-amd64$' | cut -d' ' -f1 | sort -V | tail -2)
test "$(echo "$kernels" | wc -l)" = 2 || { echo "base.sh: two cloud kernels are needed: run apt-get update" >&2; exit 1; }

# What the gateway's disk, network and file systems need; a cloud kernel has these as modules.
mkdir "$dir/initramfs-tools"
printf '%s\n' virtio_pci virtio_blk virtio_net ext4 crc32c_generic > "$dir/initramfs-tools/modules"
# Of all devices only the disk matters before the root is mounted: Debian's own script looks at every one of them,
# which takes an emulated processor seconds.
mkdir -p "$dir/initramfs-tools/scripts/init-top"
cat > "$dir/initramfs-tools/scripts/init-top/udev" <<'SCRIPT'
#!/bin/sh
if [ "$1" = prereqs ]; then exit 0; fi
/lib/systemd/systemd-udevd --daemon --resolve-names=never
udevadm trigger --type=devices --action=add --subsystem-match=block
udevadm settle || true
SCRIPT
chmod 755 "$dir/initramfs-tools/scripts/init-top/udev"
# No documentation: images are copied and hashed at the speed of an emulated processor.
cat > "$dir/dpkg.cfg" <<CFG
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/i18n/*
CFG

mmdebstrap --quiet --format=tar --mode=root --variant=minbase --skip=cleanup/reproducible \
    --dpkgopt="$dir/dpkg.cfg" --aptopt='Apt::Install-Recommends "false"' \
    --include="systemd systemd-sysv udev dbus kmod busybox initramfs-tools e2fsprogs zstd libtpm2-pkcs11-1 $(echo $kernels)" \
    --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
    --essential-hook="copy-in $dir/initramfs-tools/modules $dir/initramfs-tools/scripts /etc/initramfs-tools" \
    --essential-hook='printf "MODULES=list\nBUSYBOX=y\nCOMPRESS=gzip\nFSTYPE=ext4\n" > "$1/etc/initramfs-tools/conf.d/gateway"' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/usr/lib/x86_64-linux-gnu/gconv "$1"/var/log/*' \
    bookworm "$out.part" /etc/apt/sources.list.d/debian.sources
mv "$out.part" "$out"
