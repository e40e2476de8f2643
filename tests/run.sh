#!/usr/bin/env bash
# Runs every test and counts: the last line is `N passed, N failed`, and the exit status says the same.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Each command prints lines that are counted below; one that fails without counting a failure counts as one.
step() {
    local before after
    echo "== $*"
    before=$(failures)
    "$@" 2>&1 | tee -a "$log"
    local status=${PIPESTATUS[0]}
    after=$(failures)
    if [ "$status" -ne 0 ] && [ "$after" -eq "$before" ]; then
        echo "test result: FAILED. 0 passed; 1 failed; $* ended with status $status" | tee -a "$log"
    fi
}

# Both cargo's and our scripts' closing lines: `test result: ok. 12 passed; 0 failed; ...`.
count() { awk -v word="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ "^" word) n += $(i-1) } END { print n + 0 }' "$log"; }
failures() { count failed; }

[ "$(id -u)" -eq 0 ] || echo "not root: tests on loop devices, mounts and virtual gateways and of the packages are left out"

step cargo build --workspace --bins
step cargo test --workspace --no-fail-fast
step env SECONDS_EACH=3 tests/fuzz/run.sh
step tests/interop/run.sh
if [ "$(id -u)" -eq 0 ]; then
    step make --no-print-directory deb
    step packaging/check.sh
    step tests/setup.sh vm
    step tests/vm/short.sh
fi

passed=$(count passed)
failed=$(failures)
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
