#!/bin/sh
# The tables of docs/delta.md: what chunk sizes, kinds of image and dictionaries change.
#
#   run.sh EXPERIMENT FOLDER     the built program, and the folder of images.sh
set -eu
program=$1
cd "$2"
export SOURCE_DATE_EPOCH=1767225600
uuid=5b1c7b2e-6e0d-4d7c-9e52-0d4f4b9c1a77

# As images.sh makes them, but not compressed, or with the ends of files in blocks of their own.
erofs() {   # erofs NAME KIND OPTIONS...
    [ -e "$1.$2.erofs" ] && return
    tree=root-$1 out=$1.$2.erofs
    shift 2
    mkfs.erofs "$@" -T$SOURCE_DATE_EPOCH -U $uuid --exclude-path=.done part "$tree" > /dev/null
    truncate -s %4096 part
    mv part "$out"
}
squashfs() {   # squashfs NAME
    [ -e "$1.plain.squashfs" ] && return
    mksquashfs "root-$1" part -quiet -no-progress -noappend -reproducible -noI -noD -noF -noX -e .done
    truncate -s %4096 part
    mv part "$1.plain.squashfs"
}
for name in old new one; do
    erofs $name plain
    erofs $name plain.aligned -Enoinline_data
    erofs $name lz4.aligned -zlz4hc -Enoinline_data
    squashfs $name
done

for kind in ext4 plain.aligned.erofs plain.erofs lz4.aligned.erofs erofs squashfs plain.squashfs; do
    for name in new one; do
        echo "old.$kind -> $name.$kind, exact, not compressed"
        "$program" $name.$kind old.$kind 0 4/4/4/2048/blocks/19 4/12/128/2048/blocks/19 8/16/128/2048/blocks/19 \
            8/32/128/2048/blocks/19 16/64/256/2048/blocks/19 4/12/128/2048/blocks/19/bytes
    done
done

echo "old.ext4 -> new.ext4, every sixteenth 4 MiB compressed"
"$program" new.ext4 old.ext4 16 16/64/256/2048/frame/19 8/32/128/2048/frame/19 8/16/128/2048/frame/19 \
    4/12/128/2048/frame/19 8/32/128/1024/blocks/19 8/16/128/1024/blocks/19 8/16/128/2048/blocks/19 \
    4/12/128/1024/blocks/19 4/12/128/2048/blocks/19 4/12/128/4096/blocks/19 4/4/4/2048/blocks/19 \
    4/12/128/2048/blocks/22
form() { echo "4/12/128/2048/$1/19"; }
"$program" new.ext4 old.ext4 16 $(for corpus in old:112 new:112 missing:112 old:1024 new:1024 missing:1024; do
    form frame+$corpus
    form blocks+$corpus
done)
echo "old.ext4 -> new.ext4, everything compressed"
"$program" new.ext4 old.ext4 1 $(form blocks) $(form frame) $(form frame+old:1024) $(form blocks+old:1024) \
    4/4/4/64/unit/19
