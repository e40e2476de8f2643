#!/bin/bash
# `make bench`: one machine, one run, one table. What an install costs beside `curl | zstd -dc | dd`, and what
# an update moves beside zchunk, casync and xdelta3; every tool from Debian's packages.
#
#   run.sh FOLDER      RUNS=5 rounds of each install; needs root for the images
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
dir=${1:?usage: run.sh FOLDER}
runs=${RUNS:-5}
tool=$top/target/release/fwupdate-bundle
install=$top/target/release/examples/install
mkdir -p "$dir"
"$here/images.sh" "$dir" > /dev/null
cd "$dir"

once() { [ -e "$1" ] || { "${@:2}" && [ -e "$1" ]; }; }   # once FILE COMMAND...: unless FILE is there
bundle() { "$tool" create --image "$1.$2" --compatible bench --version "$1" --created 2026-01-01T00:00:00Z \
    --key keys/release.key.pem -o "$1.$2.fwb" > /dev/null; }
certificates() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=bench-ca \
        -keyout ca.key -out ca.pem 2> /dev/null
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost \
        -keyout server.key -out server.csr 2> /dev/null
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -out server.pem \
        -extfile <(echo subjectAltName=DNS:localhost,IP:127.0.0.1) 2> /dev/null
}

once keys/release.pub.pem "$tool" keygen --out keys > /dev/null
once server.pem certificates
for kind in ext4 squashfs erofs; do
    for name in old one new; do
        once "$name.$kind.fwb" bundle "$name" "$kind"
        once "$name.$kind.zck" zck -o "$name.$kind.zck" "$name.$kind"
        once "$name.$kind.caibx" casync make --store="$name.$kind.castr" "$name.$kind.caibx" "$name.$kind" > /dev/null
    done
    for name in one new; do
        once "$name.$kind.xd3" xdelta3 -e -9 -S none -B 805306368 -s "old.$kind" "$name.$kind" "$name.$kind.xd3"
    done
done
once new.ext4.zst zstd -19 -q -k new.ext4

python3 "$here/serve.py" "$dir" server.pem server.key > port &
server=$!
trap 'kill $server' EXIT
until [ -s port ]; do kill -0 $server; done
url=https://localhost:$(cat port)

# What the slot holds before each install: other images of the same system, so that little lies in place.
foreign() { cat old.squashfs old.erofs one.erofs new.squashfs > stale.img; truncate -s 768M stale.img; }
once stale.img foreign
stale() { dd if=stale.img of=slot.img bs=1M conv=notrunc,fsync status=none; }
pipe() {
    curl -sS --cacert ca.pem "$url/new.ext4.zst" | zstd -dc | tee >(sha256sum > pipe.sum) |
        dd of=slot.img bs=1M iflag=fullblock oflag=direct conv=notrunc,fsync status=none
}
median() { sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
field() { sed -E "s/.*\"$1\":([0-9.]+).*/\\1/"; }

fallocate -l 768M slot.img
: > pipe.times; : > ours.json
for _ in $(seq "$runs"); do
    stale
    /usr/bin/time -o time -f %e bash -c "$(declare -f pipe); set -o pipefail; url=$url; pipe"
    cat time >> pipe.times
    stale
    "$install" "$url/new.ext4.fwb" keys/release.pub.pem slot.img ca.pem >> ours.json
    cmp -n "$(stat -c %s new.ext4)" slot.img new.ext4
done
p=$(median < pipe.times) o=$(field seconds < ours.json | median)
echo "# Machine: $(nproc) cores, $(sed -n 's/model name.*: //p' /proc/cpuinfo | head -1), load $(cut -d' ' -f1 /proc/loadavg)"
echo "# $(zstd --version | grep -o 'v[0-9.]*' | head -1 | sed 's/^/zstd /'), $(curl --version | cut -d' ' -f1-2 | head -1), $(dpkg-query -W -f '${Package} ${Version}, ' zchunk casync xdelta3)"
echo
echo "| whole install of 768 MiB, median of $runs | seconds | CPU s | peak MiB | ratio |"
echo "|---|---|---|---|---|"
echo "| curl, zstd -dc, tee sha256sum, dd direct, fsync | $p | | | 1 |"
echo "| fwupdate: survey, write, flush, read back | $o | $(field cpu < ours.json | median) | $(field peakKiB < ours.json | median | awk '{print $1 / 1024}') | $(awk "BEGIN {print $o / $p}") |"
echo
echo "| bytes to fetch | fwupdate | zchunk | casync | xdelta3 -9 (knows the old image) | ratio to best of zchunk, casync |"
echo "|---|---|---|---|---|---|"
for kind in ext4 squashfs erofs; do
    for name in one new; do
        f=$("$tool" --json estimate "old.$kind.fwb" "$name.$kind.fwb" | grep -o '"downloadBytes": [0-9]*' | grep -o '[0-9]*$')
        z=$(zck_delta_size "old.$kind.zck" "$name.$kind.zck" 2>&1 | sed -nE 's/Would download ([0-9]+) .*/\1/p')
        c=$( { comm -23 <(cd "$name.$kind.castr" && find . -name '*.cacnk' | sort) <(cd "old.$kind.castr" && find . -name '*.cacnk' | sort) |
            sed "s|^|$name.$kind.castr/|"; echo "$name.$kind.caibx"; } | xargs stat -c %s | awk '{s += $1} END {print s}')
        x=$(stat -c %s "$name.$kind.xd3")
        echo "| $kind, old to $name | $f | $z | $c | $x | $(awk "BEGIN {b = $z < $c ? $z : $c; print $f / b}") |"
    done
done
echo
echo "Full bundle of new.ext4: $(stat -c %s new.ext4.fwb) bytes; zstd -19 of the image: $(stat -c %s new.ext4.zst)."
