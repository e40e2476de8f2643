#!/bin/bash
# `make bench`: one machine, one run, side by side with what people use, all from Debian's packages. What an install
# of a whole image costs, and what updates between real images cost. Every tool gets the same slot, a loop device over
# a file, and is done when the slot is flushed; what it wrote is compared with the image. fwupdate runs twice: with
# the chunk maps of what the slots hold, as a gateway keeps them from its installs, and without any, as for the first
# update from the factory's image.
#
#   run.sh FOLDER      RUNS=5 rounds; needs root. The images are made in FOLDER unless they are there (images.sh).
#                      PREPARE=1 only makes what a build host makes.
#                      FWUPDATE_BUNDLE and FWUPDATE_INSTALL name other programs than the release builds,
#                      FWUPDATE_PROGRAMS the folder of another fwupdated.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
dir=$(mkdir -p "${1:?usage: run.sh FOLDER}" && cd "$1" && pwd)
runs=${RUNS:-5}
tool=${FWUPDATE_BUNDLE:-$top/target/release/fwupdate-bundle}
install=${FWUPDATE_INSTALL:-$top/target/release/examples/install}
programs=${FWUPDATE_PROGRAMS:-$top/target/release}
pairs=${PAIRS:-ext4:new ext4:one squashfs:new erofs:new}
# rauc-service would start a daemon that nobody needs here: the program is enough.
packages="rauc swupdate casync zchunk xdelta3 zstd curl cpio dbus openssl squashfs-tools erofs-utils e2fsprogs
    mmdebstrap util-linux time python3-minimal"
missing=$(for name in $packages; do
    dpkg-query -W -f '${db:Status-Status}' "$name" 2> /dev/null | grep -qx installed || echo "$name"
done)
[ -z "$missing" ] || apt-get install -qy --no-install-recommends $missing > /dev/null

exec 9> "$dir.lock"
flock 9
"$here/images.sh" "$dir" > /dev/null
cd "$dir"
. "$here/rivals.sh"

once() { [ -e "$1" ] || { "${@:2}" && [ -e "$1" ]; }; }   # once FILE COMMAND...: unless FILE is there
bundle() { "$tool" create --image "$1.$2" --compatible bench --version "$1" --security-version 1 --created 2026-01-01T00:00:00Z \
    --key keys/release.key.pem -o "$1.$2.fwb" "${@:3}" > /dev/null; }
based() { "$tool" create --image "$1.$2" --base "old.$2" --compatible bench --version "$1" --security-version 1 \
    --created 2026-01-01T00:00:00Z --key keys/release.key.pem -o "$1.$2.base.fwb" > /dev/null; }

# Everything that a build host makes.
has_base=$("$tool" create --help | grep -c -- '--base' || true)
once keys/release.pub.pem "$tool" keygen --out keys > /dev/null
once server.pem "$here/certificates.sh" .
once signer.pem sign_certificate
once new.ext4.zst zstd -19 -q -k new.ext4
once new.raucb rauc_bundle
once new.swu swupdate_bundle
once new.ext4.fwb bundle new ext4
for pair in $pairs; do
    kind=${pair%:*} name=${pair#*:}
    for image in old "$name"; do
        once "$image.$kind.fwb" bundle "$image" "$kind"
        once "$image.$kind.zck" zck -o "$image.$kind.zck" "$image.$kind"
        once "$image.$kind.caibx" casync make --store="$image.$kind.castr" "$image.$kind.caibx" "$image.$kind" > /dev/null
    done
    once "$name.$kind.xd3" xdelta3 -e -9 -B 805306368 -s "old.$kind" "$name.$kind" "$name.$kind.xd3"
    [ "$has_base" = 0 ] || once "$name.$kind.base.fwb" based "$name" "$kind"
done
# What the slot holds before each run are other images of the same system, so that little lies in place.
size=$(stat -c %s new.ext4)
foreign() { cat old.squashfs old.erofs one.erofs new.squashfs > stale.img; truncate -s "$size" stale.img; }
once stale.img foreign
once stale.img.fwb bundle stale img --level 3
[ -z "${PREPARE:-}" ] || exit 0

# The slot.
fallocate -l "$size" slot.img
cleanup() {
    [ -z "${rauc_pid:-}" ] || rauc_stop
    [ -z "${server:-}" ] || kill "$server"
    rm -f slot
    losetup -d "$slot" "$booted" 2> /dev/null || true
}
slot=$(losetup --find --show --direct-io=on slot.img)
booted=$(losetup --find --show --read-only --direct-io=on old.ext4)
trap cleanup EXIT
ln -sfn "$slot" slot
stale() { dd if=stale.img of="$slot" bs=1M oflag=direct conv=fsync status=none; }
# The maps that installs of what the slots hold keep.
mapped() { rm -rf map && mkdir map && "$install" "$1.fwb" keys/release.pub.pem "$slot" - - map > /dev/null &&
    mv map/chunks.target "$1.chunks"; }
once stale.img.chunks mapped stale.img
for kind in $(for pair in $pairs; do echo "${pair%:*}"; done | sort -u); do
    once "old.$kind.chunks" mapped "old.$kind"
done
mkdir -p maps

rm -f ports
python3 "$here/serve.py" "$dir" server.pem server.key > ports &
server=$!
until [ -s ports ]; do kill -0 $server; sleep 0.05; done
read -r secure plain < ports
https=https://localhost:$secure http=http://localhost:$plain
sent() { curl -sS "$http/.sent"; }

# The command lines that are measured; what they print is thrown away.
declare -A shown
shown[pipe]="curl -sS --cacert ca.pem $https/new.ext4.zst | zstd -dc | tee >(sha256sum > pipe.sum) | dd of=$slot bs=1M iflag=fullblock oflag=direct conv=fsync status=none"
shown[rauc]="rauc install $PWD/new.raucb"
shown[swupdate]="swupdate -l 1 -k signer.pem -H bench:1.0 -i new.swu"
shown[fwupdate]="$install $https/new.ext4.fwb keys/release.pub.pem $slot ca.pem - maps"
shown[fwupdate-no-maps]="$install $https/new.ext4.fwb keys/release.pub.pem $slot ca.pem"

median() { sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
column() { cut -d' ' -f"$2" "$1" | median; }
# measured NAME COMMAND...: one run over a foreign slot, checked against IMAGE; one more line in costs.NAME.
measured() {
    local name=$1 options=()
    shift
    stale
    rm -f maps/*
    cp stale.img.chunks maps/chunks.target
    [ -z "${work:-}" ] || cp "old.$kind.chunks" maps/chunks.booted
    [ "$name" != rauc ] || options=(--daemon "$rauc_pid")
    sent > /dev/null
    local cost
    cost=$(python3 "$here/measure.py" "$slot" "${options[@]}" "$@")
    cmp -n "$(stat -c %s "$image")" "$slot" "$image"
    echo "$cost $(sent)" >> "costs.$name"
}
mib() { awk "BEGIN {printf \"%.1f\", $1 / 1024}"; }
ratio() { awk "BEGIN {printf \"%.2f\", $1 / $2}"; }

rm -f costs.*
image=new.ext4
for _ in $(seq "$runs"); do
    measured pipe bash -c "set -o pipefail; ${shown[pipe]}"
    rauc_start "$booted" "$slot"
    measured rauc ${shown[rauc]}
    rauc_stop
    unset rauc_pid
    measured swupdate ${shown[swupdate]}
    measured fwupdate ${shown[fwupdate]}
    measured fwupdate-no-maps ${shown[fwupdate-no-maps]}
done

echo "# Machine: $(nproc) cores, $(sed -n 's/model name.*: //p' /proc/cpuinfo | head -1), Linux $(uname -r), load $(cut -d' ' -f1-2 /proc/loadavg)"
echo "# $(dpkg-query -W -f '${Package} ${Version}, ' rauc swupdate casync zchunk xdelta3 zstd curl)fwupdate $("$tool" --version | cut -d' ' -f2)"
echo
echo "| whole install of $((size >> 20)) MiB, median of $runs | seconds | ratio | CPU s | peak MiB | MiB written |"
echo "|---|---|---|---|---|---|"
base=$(column costs.pipe 1)
for name in pipe swupdate rauc fwupdate fwupdate-no-maps; do
    s=$(column costs.$name 1)
    echo "| $name | $s | $(ratio "$s" "$base") | $(column costs.$name 2) | $(mib "$(column costs.$name 3)") | $(($(column costs.$name 4) >> 20)) |"
done
echo
echo "Pipe and fwupdate fetch over TLS from the same server; rauc and swupdate read a local file. Peak: the largest"
echo "single process of each; the pipe has five. Only fwupdate reads back what it wrote."
echo
for name in pipe swupdate rauc fwupdate fwupdate-no-maps; do echo "    ${shown[$name]}"; done
echo
echo "| update of a slot, median of $runs | bytes fetched | ratio to best without a base | seconds | CPU s | peak MiB | MiB written |"
echo "|---|---|---|---|---|---|---|"
commands=
for pair in $pairs; do
    kind=${pair%:*} name=${pair#*:} image=${pair#*:}.${pair%:*}
    losetup -d "$booted"
    booted=$(losetup --find --show --read-only --direct-io=on "old.$kind")
    work=$(mktemp -d -p .)
    shown[zchunk]="cd $work && zckdl -q -s ../old.$kind.zck $http/$image.zck && unzck -c $image.zck | dd of=$slot bs=1M iflag=fullblock status=none && rm $image.zck"
    shown[casync]="casync extract --what=blob-index --store=$http/$image.castr --seed=$booted $http/$image.caibx $slot"
    shown[xdelta3]="curl -sS $http/$image.xd3 | xdelta3 -d -c -B 805306368 -s old.$kind | dd of=$slot bs=1M iflag=fullblock status=none"
    shown[fwupdate]="$install $https/$image.fwb keys/release.pub.pem $slot ca.pem $booted maps"
    shown[fwupdate-no-maps]="$install $https/$image.fwb keys/release.pub.pem $slot ca.pem $booted"
    shown[fwupdate-base]="$install $https/$image.base.fwb keys/release.pub.pem $slot ca.pem $booted maps"
    rivals="zchunk casync fwupdate fwupdate-no-maps xdelta3"
    [ "$has_base" = 0 ] || rivals="$rivals fwupdate-base"
    for tool_name in $rivals; do
        rm -f "costs.$tool_name"
        for _ in $(seq "$runs"); do
            measured "$tool_name" bash -c "set -o pipefail; ${shown[$tool_name]}"
        done
    done
    rmdir "$work"
    estimated=$("$tool" --json estimate "old.$kind" "$image.fwb" | sed -nE 's/.*"downloadBytes": ?([0-9]+).*/\1/p')
    best=$(for rival in zchunk casync; do column costs.$rival 5; done | sort -n | head -1)
    for tool_name in $rivals; do
        bytes=$(column "costs.$tool_name" 5)
        echo "| $kind, old to $name: $tool_name | $bytes | $(ratio "$bytes" "$best") | $(column "costs.$tool_name" 1) | $(column "costs.$tool_name" 2) | $(mib "$(column "costs.$tool_name" 3)") | $(($(column "costs.$tool_name" 4) >> 20)) |"
    done
    echo "| $kind, old to $name: fwupdate-bundle estimate | $estimated | | | | | |"
    commands=${commands:-$(for tool_name in $rivals; do echo "    ${shown[$tool_name]}"; done)}
done
echo
echo "zchunk and xdelta3 know the old image in a form of their own (old.zck beside the slot; the patch is for this old"
echo "image alone). fwupdate fetches over TLS, the others without. Of the first pair:"
echo
echo "$commands"
echo
echo "fwupdated as a whole, with its session to the hub, while it updates old.ext4 to new.ext4, peak:"
echo
for name in new.ext4.fwb new.ext4.base.fwb; do
    [ ! -e $name ] || "$top/target/debug/examples/peak" "$programs" "$name" keys/release.pub.pem old.ext4 |
        sed -E "s/.*\"peakKiB\":([0-9]+).*/\1/" | awk "{printf \"    %s %.1f MiB\n\", \"$name\", \$1 / 1024}"
done
echo
echo "Full bundle of new.ext4: $(stat -c %s new.ext4.fwb) bytes; zstd -19 of the image: $(stat -c %s new.ext4.zst); new.raucb: $(stat -c %s new.raucb); new.swu: $(stat -c %s new.swu)."
