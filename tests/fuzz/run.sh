#!/usr/bin/env bash
# Fuzzes every target (or those that are named) for SECONDS_EACH; the last line is counted by tests/run.sh.
# What is learned stays in target/fuzz/corpus; what ends the process is put into tests/fuzz/findings, where the
# tests replay it for ever.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${SECONDS_EACH:?SECONDS_EACH says how long each target runs}
jobs=${JOBS:-2}
folder=${CARGO_TARGET_DIR:-target}/fuzz
mkdir -p "$folder"

RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/rustc.sh \
    cargo build -q --workspace --bin fwupdate-fuzz --features fwupdate-fuzz/libfuzzer
cargo build -q --workspace --bin fwupdate-fuzz-seeds
program=$(realpath "${CARGO_TARGET_DIR:-target}/debug/fwupdate-fuzz")
mapfile -t all < <("${program}-seeds" "$folder/corpus")
targets=("$@")
[ $# -gt 0 ] || targets=("${all[@]}")

# Whole sentences are logged by parsers that warn; nobody reads them here.
one() {
    local target=$1 log=$folder/$1.log
    mkdir -p "$folder/found/$target"
    if FUZZ_TARGET=$target "$program" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 -max_len=65536 \
        -print_final_stats=1 -artifact_prefix="$folder/found/$target/" "$folder/corpus/$target" > "$log" 2>&1; then
        echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs, nothing found"
    else
        mkdir -p "tests/fuzz/findings/$target"
        cp "$folder/found/$target"/* "tests/fuzz/findings/$target/" 2> /dev/null || :
        echo "$target: FOUND, see $log and tests/fuzz/findings/$target"
        grep -hm 3 -E "panicked|ERROR|SUMMARY" -A 1 "$log" || tail -n 5 "$log"
        return 1
    fi
}

failed=0
running=0
for target in "${targets[@]}"; do
    one "$target" &
    running=$((running + 1))
    if [ "$running" -ge "$jobs" ]; then
        wait -n || failed=$((failed + 1))
        running=$((running - 1))
    fi
done
while [ "$running" -gt 0 ]; do
    wait -n || failed=$((failed + 1))
    running=$((running - 1))
done
verdict=ok
[ "$failed" -eq 0 ] || verdict=FAILED
echo "test result: $verdict. $((${#targets[@]} - failed)) passed; $failed failed; fuzzing ${#targets[@]} targets for $seconds s each"
[ "$failed" -eq 0 ]
