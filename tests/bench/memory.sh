#!/bin/bash
# `make bench-memory`: whether time grows with the bytes moved and memory not at all. Images of growing size, a tenth
# of each random data in 4 MiB pieces, are installed over HTTPS to an empty slot file.
#
#   memory.sh FOLDER [SIZE...]      64M to 8G unless sizes are given; 10 GB, which it gives back. DRAW=FILE.svg draws it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
tool=$top/target/release/fwupdate-bundle
install=$top/target/release/examples/install
draw=$(realpath -m "${DRAW:-/dev/null}")
base=${1:?usage: memory.sh FOLDER [SIZE...]}
sizes=("${@:2}")
[ ${#sizes[@]} -gt 0 ] || sizes=(64M 512M 1G 2G 4G 8G)
mkdir -p "$base"
dir=$(mktemp -d "$base/memory.XXXXXX")
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$dir"' EXIT
cd "$dir"

"$here/certificates.sh" .
"$tool" keygen --out keys > /dev/null
python3 "$here/serve.py" "$dir" server.pem server.key > ports &
server=$!
until [ -s ports ]; do kill -0 $server; done
url=https://localhost:$(cut -d' ' -f1 ports)

field() { sed -E "s/.*\"$1\":([0-9.]+).*/\\1/" result; }
ratio() { awk "BEGIN {printf \"%.2f\", $1 / ($2)}"; }

{
echo "| image | data, MB | chunks | fetched, MB | seconds | seconds a GB of data | seconds a GB of image | CPU s | peak, MiB |"
echo "|---|---|---|---|---|---|---|---|---|"
for size in "${sizes[@]}"; do
    truncate -s "$size" image
    bytes=$(stat -c %s image)
    for ((at = 0; at < bytes; at += 40 << 20)); do
        dd if=/dev/urandom of=image bs=4M count=1 iflag=fullblock oflag=seek_bytes seek=$at conv=notrunc status=none
    done
    data=$(($(stat -c %b image) * 512))
    "$tool" create --level 3 --image image --compatible bench --version 1 --security-version 1 --created 2026-01-01T00:00:00Z \
        --key keys/release.key.pem -o image.fwb > /dev/null
    truncate -s "$size" slot
    "$install" "$url/image.fwb" keys/release.pub.pem slot ca.pem > result
    cmp image slot
    seconds=$(field seconds) chunks=$((($(tar -tvf image.fwb rootfs.index | awk '{print $3}') - 16) / 20))
    echo "| $size | $((data / 1000000)) | $chunks | $(($(field fetched) / 1000000)) | $seconds" \
        "| $(ratio "$seconds" "$data / 1e9") | $(ratio "$seconds" "$bytes / 1e9") | $(field cpu)" \
        "| $(ratio "$(field peakKiB)" 1024) |"
    rm -f image image.fwb slot
done
} | tee table
[ -z "${DRAW:-}" ] || "$here/plot.py" "$draw" < table
