#!/bin/sh
# The official Azure SDKs, unmodified, against fwupdate-hub. The exit status is the verdict.
set -eu
cd "$(dirname "$0")/../.."
tests/interop/venv.sh
tests/interop/node.sh
cargo build --quiet -p fwupdate-hub
cargo build --quiet --bin fwupdated
hub="${CARGO_TARGET_DIR:-target}/debug/fwupdate-hub"
# Each has a hub of its own and mostly waits: all at once, and what they say one after the other.
parts="sdks calls provisioning certificates service_app trace node"
said=$(mktemp -d)
trap 'rm -rf "$said"' EXIT
for part in $parts; do
    {
        status=0
        target/venv/bin/python -B -W ignore "tests/interop/$part.py" "$hub" >"$said/$part" 2>&1 || status=$?
        echo "$status" >"$said/$part.status"
    } &
done
wait
verdict=0
for part in $parts; do
    cat "$said/$part"
    [ "$(cat "$said/$part.status")" -eq 0 ] || verdict=1
done
exit $verdict
