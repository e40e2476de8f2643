#!/bin/sh
# The official Azure SDKs, unmodified, against fwupdate-hub. The exit status is the verdict.
set -eu
cd "$(dirname "$0")/../.."
tests/interop/venv.sh
tests/interop/node.sh
cargo build --quiet -p fwupdate-hub
cargo build --quiet --bin fwupdated
hub="${CARGO_TARGET_DIR:-target}/debug/fwupdate-hub"
verdict=0
for part in sdks calls provisioning service_app trace node; do
    target/venv/bin/python -B -W ignore "tests/interop/$part.py" "$hub" || verdict=1
done
exit $verdict
