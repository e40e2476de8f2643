# fwupdate's boot script for U-Boot. docs/boot.md says what it does and why, README.md how to install it.
#
# A slot on trial boots while it has attempts left; each one is counted, durably, before the slot is loaded.
# Otherwise the primary boots or, if no kernel can be loaded from it, the fallback. An ordinary boot writes
# nothing.
#
# Most values are hush variables (name=value): saveenv does not see them. They cannot be empty, hence "none"; an
# environment variable of the same name would hide one, hence "fwu_".

# ---- The board -----------------------------------------------------------------------------------------------

# The disk with both slots: interface (mmc, virtio, scsi, nvme, usb), number, and each slot's partition.
fwu_disk=virtio
fwu_dev=0
fwu_part_a=3
fwu_part_b=4

# Files in each slot; "none" where the board needs no initial RAM disk or no device tree from there.
fwu_kernel=boot/vmlinuz
fwu_initrd=boot/initrd.img
fwu_fdt=none

# What starts the kernel: zboot (x86), bootz (32-bit ARM), booti (64-bit ARM, RISC-V). Where things are loaded.
# On x86 the RAM disk must lie above what the kernel's decompression overwrites.
fwu_start=zboot
fwu_kernel_addr=${kernel_addr_r}
fwu_initrd_addr=0x8000000
fwu_fdt_addr=${fdtcontroladdr}

# Kernel arguments of every boot; root= and fwupdate.* are added. No "rootwait": a kernel that waits for ever for its
# root neither panics nor returns to the old slot. Without an initial RAM disk use "rootwait=30" (Linux 6.7) or
# "rootdelay=5".
fwu_args="console=ttyS0,115200 ro"

# The environment's home:
#   builtin  U-Boot's own environment, built as a redundant one; U-Boot has read it, saveenv writes it.
#   raw      for builds without saveenv: two copies in the format of a redundant environment, on the disk above,
#            which belong to fwupdate alone. Given are the first block of each copy, the blocks and the bytes of
#            one, and its bytes but the first.
fwu_env=raw
fwu_env_block0=0x800
fwu_env_block1=0x820
fwu_env_blocks=0x20
fwu_env_size=0x4000
fwu_env_rest=0x3fff

# raw: free memory, as addresses without their last digit: four areas of one copy each, and 16 bytes.
fwu_mem0=0x200000
fwu_mem1=0x201000
fwu_memnew=0x202000
fwu_memback=0x203000
fwu_memtmp=0x204000

# ---- Read the environment ------------------------------------------------------------------------------------

fwu_vars="fwupdate_primary fwupdate_trial fwupdate_tries fwupdate_fallback"
if test ${fwu_disk} = virtio; then virtio scan; fi

if test ${fwu_env} = raw; then
  setenv fwupdate_primary; setenv fwupdate_trial; setenv fwupdate_tries; setenv fwupdate_fallback
  ${fwu_disk} dev ${fwu_dev}

  # After a warm reset the memory may still hold the copies of the last boot: what cannot be read must not count.
  mw.b ${fwu_mem0}0 0 10
  mw.b ${fwu_mem1}0 0 10
  ${fwu_disk} read ${fwu_mem0}0 ${fwu_env_block0} ${fwu_env_blocks}
  ${fwu_disk} read ${fwu_mem1}0 ${fwu_env_block1} ${fwu_env_blocks}

  # A copy is CRC-32, flags, variables. "env import" of this build knows no flags: keep them aside and move the
  # CRC up by one byte, which makes a copy without flags that begins at the second byte.
  cp.b ${fwu_mem0}4 ${fwu_memtmp}4 1
  cp.b ${fwu_mem1}4 ${fwu_memtmp}5 1
  cp.b ${fwu_mem0}0 ${fwu_memtmp}0 4
  cp.b ${fwu_memtmp}0 ${fwu_mem0}1 4
  cp.b ${fwu_mem1}0 ${fwu_memtmp}0 4
  cp.b ${fwu_memtmp}0 ${fwu_mem1}1 4

  # The flags count up and wrap from 255 to 0; of two valid copies the one ahead is the current one.
  fwu_order="0 1"
  if itest.b *${fwu_memtmp}5 -gt *${fwu_memtmp}4; then fwu_order="1 0"; fi
  if itest.b *${fwu_memtmp}4 -eq 0xff; then if itest.b *${fwu_memtmp}5 -eq 0; then fwu_order="1 0"; fi; fi
  if itest.b *${fwu_memtmp}4 -eq 0; then if itest.b *${fwu_memtmp}5 -eq 0xff; then fwu_order="0 1"; fi; fi
  fwu_current=none
  for fwu_copy in ${fwu_order}; do
    if test ${fwu_current} = none; then
      if test ${fwu_copy} = 0; then fwu_from=${fwu_mem0}1; else fwu_from=${fwu_mem1}1; fi
      if env import -c ${fwu_from} ${fwu_env_rest} ${fwu_vars}; then fwu_current=${fwu_copy}; fi
    fi
  done
fi

# ---- Choose --------------------------------------------------------------------------------------------------

# No valid primary: no copy of the environment is valid ("lost"), or the board was never set up ("unset"). The agent
# makes an environment anew only where this says "lost" too. U-Boot's own is lost when it runs on the variables that
# it was built with, which a build without "env info" cannot tell: it then says "unset".
fwu_word=unset
if test "${fwupdate_primary}" = A; then fwu_word=none; fi
if test "${fwupdate_primary}" = B; then fwu_word=none; fi
if test ${fwu_word} = unset; then
  if test ${fwu_env} = raw; then
    if test ${fwu_current} = none; then fwu_word=lost; fi
  else
    if env info -d -q; then fwu_word=lost; fi
  fi
  fwu_picks="A B"
else
  fwu_picks="${fwupdate_primary} ${fwupdate_fallback}"
fi

# The attempts that are left after this one; a build may lack arithmetic.
fwu_left=none
if test ${fwu_word} = none; then
  if test "${fwupdate_tries}" = 1; then fwu_left=0; fi
  if test "${fwupdate_tries}" = 2; then fwu_left=1; fi
  if test "${fwupdate_tries}" = 3; then fwu_left=2; fi
  if test "${fwupdate_tries}" = 4; then fwu_left=3; fi
  if test "${fwupdate_tries}" = 5; then fwu_left=4; fi
  if test "${fwupdate_tries}" = 6; then fwu_left=5; fi
  if test "${fwupdate_tries}" = 7; then fwu_left=6; fi
  if test "${fwupdate_tries}" = 8; then fwu_left=7; fi
  if test "${fwupdate_tries}" = 9; then fwu_left=8; fi
fi
fwu_trial=none
if test ${fwu_left} != none; then
  if test "${fwupdate_trial}" = A; then fwu_trial=A; fi
  if test "${fwupdate_trial}" = B; then fwu_trial=B; fi
fi

# ---- Count the attempt; what cannot be counted is not tried ----------------------------------------------------

if test ${fwu_trial} != none; then
  setenv fwupdate_tries ${fwu_left}
  fwu_saved=no
  if test ${fwu_env} = builtin; then
    if saveenv; then fwu_saved=yes; fi
  else
    # The copy that is not current is replaced. Flags: 255 is followed by 0, 0 by 1, and all others by 255, which
    # is ahead of them too.
    if test ${fwu_current} = 0; then fwu_to=${fwu_env_block1}; fwu_was=${fwu_memtmp}4; else fwu_to=${fwu_env_block0}; fwu_was=${fwu_memtmp}5; fi
    fwu_flags=ff
    if itest.b *${fwu_was} -eq 0xff; then fwu_flags=0; fi
    if itest.b *${fwu_was} -eq 0; then fwu_flags=1; fi
    if env export -c -s ${fwu_env_rest} ${fwu_memnew}1 ${fwu_vars}; then
      cp.b ${fwu_memnew}1 ${fwu_memnew}0 4
      mw.b ${fwu_memnew}4 ${fwu_flags} 1
      mw.b ${fwu_memback}0 0 10
      if ${fwu_disk} write ${fwu_memnew}0 ${fwu_to} ${fwu_env_blocks}; then
        if ${fwu_disk} read ${fwu_memback}0 ${fwu_to} ${fwu_env_blocks}; then
          if cmp.b ${fwu_memnew}0 ${fwu_memback}0 ${fwu_env_size}; then fwu_saved=yes; fi
        fi
      fi
    fi
  fi
  if test ${fwu_saved} = yes; then
    fwu_picks="trial ${fwu_picks}"
  else
    echo "fwupdate: the attempt cannot be counted: slot ${fwu_trial} is not tried"
  fi
fi

# ---- Boot the first slot whose kernel can be loaded --------------------------------------------------------------

for fwu_pick in ${fwu_picks}; do
  fwu_slot=${fwu_pick}
  fwu_arguments="${fwu_args}"
  if test ${fwu_word} != none; then fwu_arguments="${fwu_args} fwupdate.env=${fwu_word}"; fi
  if test ${fwu_pick} = trial; then
    fwu_slot=${fwu_trial}
    fwu_arguments="${fwu_args} fwupdate.trial=1 panic=10"
  fi
  fwu_part=none
  if test ${fwu_slot} = A; then fwu_part=${fwu_part_a}; fi
  if test ${fwu_slot} = B; then fwu_part=${fwu_part_b}; fi

  fwu_loaded=no
  if test ${fwu_part} != none; then
    echo "fwupdate: ${fwu_pick}: slot ${fwu_slot}"
    if part uuid ${fwu_disk} ${fwu_dev}:${fwu_part} fwupdate_uuid; then
      if load ${fwu_disk} ${fwu_dev}:${fwu_part} ${fwu_kernel_addr} ${fwu_kernel}; then
        fwu_kernel_size=${filesize}
        fwu_loaded=yes
      fi
    fi
  fi
  fwu_ramdisk=-
  if test ${fwu_loaded} = yes; then
    if test ${fwu_initrd} != none; then
      if load ${fwu_disk} ${fwu_dev}:${fwu_part} ${fwu_initrd_addr} ${fwu_initrd}; then
        fwu_initrd_size=${filesize}
        fwu_ramdisk=${fwu_initrd_addr}:${filesize}
      else
        fwu_loaded=no
      fi
    fi
    if test ${fwu_fdt} != none; then
      if load ${fwu_disk} ${fwu_dev}:${fwu_part} ${fwu_fdt_addr} ${fwu_fdt}; then true; else fwu_loaded=no; fi
    fi
  fi
  if test ${fwu_loaded} = yes; then
    setenv bootargs "${fwu_arguments} fwupdate.slot=${fwu_slot} root=PARTUUID=${fwupdate_uuid}"
    if test ${fwu_start} = zboot; then
      if test ${fwu_ramdisk} = -; then
        zboot ${fwu_kernel_addr} ${fwu_kernel_size}
      else
        zboot ${fwu_kernel_addr} ${fwu_kernel_size} ${fwu_initrd_addr} ${fwu_initrd_size}
      fi
    else
      ${fwu_start} ${fwu_kernel_addr} ${fwu_ramdisk} ${fwu_fdt_addr}
    fi
  fi
  echo "fwupdate: slot ${fwu_slot} does not boot"
done

echo "fwupdate: no slot can be booted"
reset
