# fwupdate's boot script for U-Boot. docs/boot.md says what it does and why, README.md how to install it.
#
# A slot on trial boots while it has attempts left; each one is counted, durably, before the slot is loaded.
# Otherwise the primary boots or, if no kernel can be loaded from it, the fallback. An ordinary boot writes
# nothing.
#
# Most values are hush variables (name=value): saveenv does not see them. They cannot be empty: hence "none".

# ---- The board -----------------------------------------------------------------------------------------------

# The disk with both slots: interface (mmc, virtio, scsi, nvme, usb), number, and each slot's partition.
disk=virtio
dev=0
part_a=3
part_b=4

# Files in each slot; "none" where the board needs no initial RAM disk or no device tree from there.
kernel=boot/vmlinuz
initrd=boot/initrd.img
fdt=none

# What starts the kernel: zboot (x86), bootz (32-bit ARM), booti (64-bit ARM, RISC-V). Where things are loaded.
# On x86 the RAM disk must lie above what the kernel's decompression overwrites.
start=zboot
kernel_addr=${kernel_addr_r}
initrd_addr=0x8000000
fdt_addr=${fdtcontroladdr}

# Kernel arguments of every boot; root= and fwupdate.* are added.
args="console=ttyS0,115200 rootwait ro"

# The environment's home:
#   builtin  U-Boot's own environment, built as a redundant one; U-Boot has read it, saveenv writes it.
#   raw      for builds without saveenv: two copies in the format of a redundant environment, on the disk above,
#            which belong to fwupdate alone. Given are the first block of each copy, the blocks and the bytes of
#            one, and its bytes but the first.
env=raw
env_block0=0x800
env_block1=0x820
env_blocks=0x20
env_size=0x4000
env_rest=0x3fff

# raw: free memory, as addresses without their last digit. Each but the last holds one copy; 16 bytes suffice there.
mem0=0x200000
mem1=0x201000
memnew=0x202000
memback=0x203000
memtmp=0x204000

# ---- Read the environment ------------------------------------------------------------------------------------

vars="fwupdate_primary fwupdate_trial fwupdate_tries fwupdate_fallback"
if test ${disk} = virtio; then virtio scan; fi

if test ${env} = raw; then
  setenv fwupdate_primary; setenv fwupdate_trial; setenv fwupdate_tries; setenv fwupdate_fallback
  ${disk} dev ${dev}

  # After a warm reset the memory may still hold the copies of the last boot: what cannot be read must not count.
  mw.b ${mem0}0 0 10
  mw.b ${mem1}0 0 10
  ${disk} read ${mem0}0 ${env_block0} ${env_blocks}
  ${disk} read ${mem1}0 ${env_block1} ${env_blocks}

  # A copy is CRC-32, flags, variables. "env import" of this build knows no flags: keep them aside and move the
  # CRC up by one byte, which makes a copy without flags that begins at the second byte.
  cp.b ${mem0}4 ${memtmp}4 1
  cp.b ${mem1}4 ${memtmp}5 1
  cp.b ${mem0}0 ${memtmp}0 4
  cp.b ${memtmp}0 ${mem0}1 4
  cp.b ${mem1}0 ${memtmp}0 4
  cp.b ${memtmp}0 ${mem1}1 4

  # The flags count up and wrap from 255 to 0; of two valid copies the one ahead is the current one.
  order="0 1"
  if itest.b *${memtmp}5 -gt *${memtmp}4; then order="1 0"; fi
  if itest.b *${memtmp}4 -eq 0xff; then if itest.b *${memtmp}5 -eq 0; then order="1 0"; fi; fi
  if itest.b *${memtmp}4 -eq 0; then if itest.b *${memtmp}5 -eq 0xff; then order="0 1"; fi; fi
  current=none
  for copy in ${order}; do
    if test ${current} = none; then
      if test ${copy} = 0; then from=${mem0}1; else from=${mem1}1; fi
      if env import -c ${from} ${env_rest} ${vars}; then current=${copy}; fi
    fi
  done
fi

# ---- Choose --------------------------------------------------------------------------------------------------

# No valid primary: the environment is lost, or the board was never set up.
lost=yes
if test "${fwupdate_primary}" = A; then lost=no; fi
if test "${fwupdate_primary}" = B; then lost=no; fi
if test ${lost} = yes; then picks="A B"; else picks="${fwupdate_primary} ${fwupdate_fallback}"; fi

# The attempts that are left after this one; a build may lack arithmetic.
left=none
if test ${lost} = no; then
  if test "${fwupdate_tries}" = 1; then left=0; fi
  if test "${fwupdate_tries}" = 2; then left=1; fi
  if test "${fwupdate_tries}" = 3; then left=2; fi
  if test "${fwupdate_tries}" = 4; then left=3; fi
  if test "${fwupdate_tries}" = 5; then left=4; fi
  if test "${fwupdate_tries}" = 6; then left=5; fi
  if test "${fwupdate_tries}" = 7; then left=6; fi
  if test "${fwupdate_tries}" = 8; then left=7; fi
  if test "${fwupdate_tries}" = 9; then left=8; fi
fi
trial=none
if test ${left} != none; then
  if test "${fwupdate_trial}" = A; then trial=A; fi
  if test "${fwupdate_trial}" = B; then trial=B; fi
fi

# ---- Count the attempt; what cannot be counted is not tried ----------------------------------------------------

if test ${trial} != none; then
  setenv fwupdate_tries ${left}
  saved=no
  if test ${env} = builtin; then
    if saveenv; then saved=yes; fi
  else
    # The copy that is not current is replaced. Flags: 255 is followed by 0, 0 by 1, and all others by 255, which
    # is ahead of them too.
    if test ${current} = 0; then to=${env_block1}; was=${memtmp}4; else to=${env_block0}; was=${memtmp}5; fi
    flags=ff
    if itest.b *${was} -eq 0xff; then flags=0; fi
    if itest.b *${was} -eq 0; then flags=1; fi
    if env export -c -s ${env_rest} ${memnew}1 ${vars}; then
      cp.b ${memnew}1 ${memnew}0 4
      mw.b ${memnew}4 ${flags} 1
      mw.b ${memback}0 0 10
      if ${disk} write ${memnew}0 ${to} ${env_blocks}; then
        if ${disk} read ${memback}0 ${to} ${env_blocks}; then
          if cmp.b ${memnew}0 ${memback}0 ${env_size}; then saved=yes; fi
        fi
      fi
    fi
  fi
  if test ${saved} = yes; then
    picks="trial ${picks}"
  else
    echo "fwupdate: the attempt cannot be counted: slot ${trial} is not tried"
  fi
fi

# ---- Boot the first slot whose kernel can be loaded --------------------------------------------------------------

for pick in ${picks}; do
  slot=${pick}
  arguments="${args}"
  if test ${lost} = yes; then arguments="${args} fwupdate.env=lost"; fi
  if test ${pick} = trial; then
    slot=${trial}
    arguments="${args} fwupdate.trial=1 panic=10"
  fi
  part=none
  if test ${slot} = A; then part=${part_a}; fi
  if test ${slot} = B; then part=${part_b}; fi

  loaded=no
  if test ${part} != none; then
    echo "fwupdate: ${pick}: slot ${slot}"
    if part uuid ${disk} ${dev}:${part} fwupdate_uuid; then
      if load ${disk} ${dev}:${part} ${kernel_addr} ${kernel}; then
        kernel_size=${filesize}
        loaded=yes
      fi
    fi
  fi
  ramdisk=-
  if test ${loaded} = yes; then
    if test ${initrd} != none; then
      if load ${disk} ${dev}:${part} ${initrd_addr} ${initrd}; then
        initrd_size=${filesize}
        ramdisk=${initrd_addr}:${filesize}
      else
        loaded=no
      fi
    fi
    if test ${fdt} != none; then
      if load ${disk} ${dev}:${part} ${fdt_addr} ${fdt}; then true; else loaded=no; fi
    fi
  fi
  if test ${loaded} = yes; then
    setenv bootargs "${arguments} fwupdate.slot=${slot} root=PARTUUID=${fwupdate_uuid}"
    if test ${start} = zboot; then
      if test ${ramdisk} = -; then
        zboot ${kernel_addr} ${kernel_size}
      else
        zboot ${kernel_addr} ${kernel_size} ${initrd_addr} ${initrd_size}
      fi
    else
      ${start} ${kernel_addr} ${ramdisk} ${fdt_addr}
    fi
  fi
  echo "fwupdate: slot ${slot} does not boot"
done

echo "fwupdate: no slot can be booted"
reset
