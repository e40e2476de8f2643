#!/bin/sh
# Makes one root file system image of the virtual gateway: the base, one of its two kernels, our package by dpkg,
# and the board's settings. As root; without loop devices.
#
#   rootfs.sh BASE.tar AGENT.deb KEYS BOOTLOADER VERSION KERNEL OUT.img [CHANGE]
#
# KEYS is the folder of the trusted public keys, BOOTLOADER uboot or grub, KERNEL 1 (older) or 2 (newer); CHANGE
# is a shell script that alters the root, whose path it gets: so images are made that fail in some way.
set -eu

base=$1 deb=$2 keys=$3 bootloader=$4 version=$5 kernel=$6 out=$7 change=${8:-}
here=$(cd "$(dirname "$0")" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

tar -C "$root" -xpf "$base"

# One kernel, with those modules that the machine has devices for.
name=$(ls "$root/usr/lib/modules" | sort -V | sed -n "${kernel}p")
mv "$root/boot/vmlinuz-$name" "$root/boot/initrd.img-$name" "$root/usr/lib/modules/$name" "$root/tmp"
rm -rf "$root"/boot/* "$root"/usr/lib/modules/*
mv "$root/tmp/vmlinuz-$name" "$root/boot/vmlinuz"
mv "$root/tmp/initrd.img-$name" "$root/boot/initrd.img"
mkdir -p "$root/usr/lib/modules/$name/kernel"
for part in drivers/block/virtio_blk.ko drivers/net/virtio_net.ko drivers/net/net_failover.ko net/core \
    drivers/virtio drivers/char/hw_random drivers/rtc lib crypto fs/ext4 fs/jbd2 fs/mbcache.ko fs/fat fs/nls fs/efivarfs; do
    test -e "$root/tmp/$name/kernel/$part" || continue
    mkdir -p "$root/usr/lib/modules/$name/kernel/$(dirname "$part")"
    mv "$root/tmp/$name/kernel/$part" "$root/usr/lib/modules/$name/kernel/$part"
done
mv "$root/tmp/$name"/modules.builtin* "$root/tmp/$name/modules.order" "$root/usr/lib/modules/$name/"
rm -rf "$root/tmp/$name"
chroot "$root" depmod "$name"

# Our package, as a gateway's builder installs it.
cp "$deb" "$root/tmp/agent.deb"
chroot "$root" dpkg --force-confdef --force-confold -i /tmp/agent.deb > "$root/tmp/dpkg.log" 2>&1 ||
    { cat "$root/tmp/dpkg.log" >&2; exit 1; }
cp "$here/$bootloader.toml" "$root/etc/fwupdate.toml"
test "$bootloader" = uboot && cp "$root/usr/lib/fwupdate/boot/uboot/fw_env.config" "$root/etc/" && : > "$root/etc/u-boot-initial-env"
mkdir -p "$root/var/lib/fwupdate" "$root/etc/fwupdate/keys" "$root/etc/fwupdate/checks/required.d"
cp "$keys"/*.pem "$root/etc/fwupdate/keys/"
sed -i '/^IMAGE_VERSION=/d' "$root/usr/lib/os-release"
echo "IMAGE_VERSION=$version" >> "$root/usr/lib/os-release"

# The rest of the gateway: a read-only root, state on a partition of its own, a network without DHCP, and a shell
# on the second serial line for the harness.
cp -R "$here/overlay/." "$root/"
test "$bootloader" = grub && { mkdir -p "$root/boot/efi"; echo 'PARTLABEL=esp /boot/efi vfat umask=0077 0 0' >> "$root/etc/fstab"; }
echo gateway > "$root/etc/hostname"
echo 0123456789abcdef0123456789abcdef > "$root/etc/machine-id"
chroot "$root" systemctl --quiet enable vm-shell.service systemd-networkd.service
chroot "$root" systemctl --quiet set-default multi-user.target
# What this machine has no use for: each unit and rule costs every boot some time of an emulated processor.
# No D-Bus: the agent needs none.
chroot "$root" systemctl --quiet mask dbus.service dbus.socket getty@tty1.service serial-getty@ttyS0.service apt-daily.timer \
    apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-networkd-wait-online.service systemd-random-seed.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-rfkill.socket dev-hugepages.mount dev-mqueue.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    modprobe@configfs.service modprobe@drm.service modprobe@fuse.service modprobe@dm_mod.service \
    modprobe@loop.service modprobe@efi_pstore.service systemd-logind.service systemd-user-sessions.service \
    systemd-modules-load.service systemd-network-generator.service systemd-journal-flush.service
for rule in "$root"/usr/lib/udev/rules.d/*; do
    case ${rule##*/} in
    50-udev-default.rules | 60-block.rules | 60-persistent-storage.rules | 60-tpm-udev.rules | 80-net-setup-link.rules | 99-systemd.rules) ;;
    *) rm "$rule" ;;
    esac
done
rm -rf "$root"/usr/share/perl "$root"/usr/lib/x86_64-linux-gnu/perl "$root"/usr/share/perl5 \
    "$root"/usr/lib/udev/hwdb.* "$root"/tmp/* "$root"/var/lib/dpkg/info/*.md5sums
test -z "$change" || sh -eu "$change" "$root"

# The same content gives the same blocks, so that an update downloads what changed.
export E2FSPROGS_FAKE_TIME=1700000000
find "$root" -newermt @1700000000 -exec touch -h -d @1700000000 {} +
rm -f "$out.part"
truncate -s 208M "$out.part"
mkfs.ext4 -q -F -b 4096 -d "$root" -U 6f1c2a6e-0d5b-4e0c-9a4e-5f3e7b1d0000 -E hash_seed=6f1c2a6e-0d5b-4e0c-9a4e-5f3e7b1d0001,lazy_itable_init=0 \
    -O '^has_journal' -m 0 "$out.part"
mv "$out.part" "$out"
