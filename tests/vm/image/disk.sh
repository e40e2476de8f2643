#!/bin/sh
# Makes the gateway's disk: a bootloader with our boot script and environment (primary A), slot A from an image,
# slot B blank, and a data partition from a folder.
#
#   disk.sh BOOTLOADER BOOT SLOT_A.img DATA OUT.img
#
# BOOT is packaging/boot.
set -eu

bootloader=$1 boot=$2 slot_a=$3 data=$4 out=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Sectors of 512 bytes. Slots of 224 MiB, data 32 MiB.
rm -f "$out"
truncate -s 560M "$out"
# The partition numbers are those that the boot scripts expect.
sfdisk -q "$out" <<TABLE
label: gpt
disk1 : start=4096, size=131072, name=esp, type=uefi
disk2 : start=2048, size=2048, name=uboot-env
disk3 : start=135168, size=458752, name=rootfs-a
disk4 : start=593920, size=458752, name=rootfs-b
disk5 : start=1052672, size=65536, name=data
TABLE

# The board's part of the boot script: at the speed of an emulated processor the kernel's self-tests take minutes.
board() { sed 's/^\(set \|fwu_\)\?args="/&cryptomgr.notests /' "$1"; }

mkfs.vfat -n BOOT -C "$work/esp.img" 65536 > "$work/log"
case $bootloader in
uboot)
    board "$boot/uboot/boot.cmd" > "$work/boot.cmd"
    mkimage -q -A x86 -T script -C none -d "$work/boot.cmd" "$work/boot.scr" > "$work/log"
    mcopy -i "$work/esp.img" "$work/boot.scr" ::
    echo fwupdate_primary=A | mkenvimage -r -s 0x4000 -o "$work/env" -
    dd if="$work/env" of="$out" bs=512 seek=2048 conv=notrunc status=none
    ;;
grub)
    cat > "$work/first.cfg" <<CFG
search --no-floppy --label BOOT --set=root
configfile (\$root)/grub.cfg
CFG
    grub-mkstandalone -O x86_64-efi -o "$work/BOOTX64.EFI" --locales= --fonts= --themes= \
        --modules="part_gpt fat ext2 linux search search_label regexp probe loadenv test echo sleep reboot configfile serial" \
        "boot/grub/grub.cfg=$work/first.cfg"
    grub-editenv "$work/grubenv" create
    grub-editenv "$work/grubenv" set fwupdate_primary=A
    mmd -i "$work/esp.img" ::/EFI ::/EFI/BOOT
    mcopy -i "$work/esp.img" "$work/BOOTX64.EFI" ::/EFI/BOOT/
    board "$boot/grub/grub.cfg" > "$work/grub.cfg"
    mcopy -i "$work/esp.img" "$work/grub.cfg" "$work/grubenv" ::
    ;;
esac
dd if="$work/esp.img" of="$out" bs=512 seek=4096 conv=notrunc,sparse status=none
dd if="$slot_a" of="$out" bs=1M seek=66 conv=notrunc,sparse status=none
mkfs.ext4 -q -F -d "$data" -L data "$work/data.img" 32M
dd if="$work/data.img" of="$out" bs=512 seek=1052672 conv=notrunc,sparse status=none
