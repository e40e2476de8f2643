#!/bin/bash
# `make bench-engines`: what other ways to the medium would bring. Sequential writes and reads of 768 MiB past the page
# cache on a loop device as `run.sh` has it, in pieces as the agent's, by threads that wait (psync: what the agent
# does, with one thread that writes and one that reads) and by io_uring with more on its way.
#
#   engines.sh FOLDER      RUNS=5; needs root, and fio, which it installs
set -euo pipefail
dir=$(mkdir -p "${1:?usage: engines.sh FOLDER}" && cd "$1" && pwd)
command -v fio > /dev/null || apt-get install -qy --no-install-recommends fio > /dev/null
cd "$dir"
fallocate -l 768M engines.img
device=$(losetup --find --show --direct-io=on engines.img)
trap 'losetup -d "$device"; rm -f engines.img engines.*.log' EXIT

# engine NAME ENGINE DEPTH PIECE DIRECTION: MiB/s and CPU per cent, appended to engines.NAME.log
engine() {
    fio --minimal --name="$1" --filename="$device" --ioengine="$2" --iodepth="$3" --bs="$4" --rw="$5" --direct=1 \
        --size=768M --end_fsync=1 --randrepeat=1 --refill_buffers=0 |
        awk -F';' -v rw="$5" '{ bandwidth = rw == "write" ? $48 : $7; printf "%.0f %.0f\n", bandwidth / 1024, $88 + $89 }' \
            >> "engines.$1.log"
}
ways="psync:1:128k psync:1:256k psync:1:1m io_uring:1:256k io_uring:2:256k io_uring:4:256k io_uring:8:128k"
for _ in $(seq "${RUNS:-5}"); do
    for way in $ways; do
        IFS=: read -r name depth piece <<< "$way"
        for direction in write read; do engine "$way-$direction" "$name" "$depth" "$piece" "$direction"; done
    done
done
median() { cut -d' ' -f"$2" "engines.$1.log" | sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
ratio() { awk "BEGIN {printf \"%.2f\", $1 / $2}"; }
own=psync:1:256k
echo "# $(fio --version), $(nproc) cores, Linux $(uname -r), median of ${RUNS:-5}"
echo "| way, on its way at once, piece | write, MiB/s | of the agent's | CPU, % | read, MiB/s | of the agent's | CPU, % |"
echo "|---|---|---|---|---|---|---|"
for way in $ways; do
    w=$(median "$way-write" 1) r=$(median "$way-read" 1)
    echo "| ${way//:/, } | $w | $(ratio "$w" "$(median "$own-write" 1)") | $(median "$way-write" 2)" \
        "| $r | $(ratio "$r" "$(median "$own-read" 1)") | $(median "$way-read" 2) |"
done
