#!/usr/bin/env bash
# The short form of the campaigns on the virtual gateway, both bootloaders at once. Prints one line for each part, what
# a failed part printed, and a line that tests/run.sh counts. As root, after `make deb`.
set -uo pipefail
cd "$(dirname "$0")/../.."
cargo build -q -p fwupdate-vm --bins || exit 1
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

part() {
    local log=$results/$1.${2//[^a-z0-9]/-}
    if target/debug/fwupdate-vm --deb target/debian/fwupdate-agent.deb --bootloader "$1" $2 > "$log" 2>&1; then
        echo "ok      $1: $2"
        grep -E '^(allowed|refused) ' "$log"
    else
        echo "FAILED  $1: $2"
        cat "$log"
        touch "$log.failed"
    fi
}

for bootloader in uboot grub; do
    {
        part $bootloader "replay --prefixes 200 --boots 1"
        part $bootloader "power-cut --cuts 6"
        part $bootloader "failures check-fails"
        test $bootloader = uboot || part $bootloader token
    } &
done
wait

failed=$(find "$results" -name '*.failed' | wc -l)
echo "test result: $([ "$failed" -eq 0 ] && echo ok || echo FAILED). $((7 - failed)) passed; $failed failed"
[ "$failed" -eq 0 ]
