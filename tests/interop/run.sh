#!/bin/sh
# The official Azure SDKs, unmodified, against fwupdate-hub. The exit status is the verdict.
set -eu
cd "$(dirname "$0")/../.."
tests/interop/venv.sh
cargo build --quiet -p fwupdate-hub
exec target/venv/bin/python -B -W ignore tests/interop/sdks.py "${CARGO_TARGET_DIR:-target}/debug/fwupdate-hub"
