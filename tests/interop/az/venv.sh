#!/bin/sh
# Makes target/az with the az command line at the pinned version, or leaves it alone when it is up to date. With the
# argument `extension`, also Microsoft's extension azure-iot, which az fetches itself and no package registry has.
set -eu
cd "$(dirname "$0")/../../.."
venv=target/az
wanted=tests/interop/az/requirements.txt
# Several tests may want it at once.
mkdir -p target
exec 9>target/az.lock
flock 9
if ! cmp -s "$wanted" "$venv/requirements.done"; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile -r "$wanted"
    cp "$wanted" "$venv/requirements.done"
fi
if [ "${1:-}" = extension ] && [ ! -e "$venv/extensions/azure-iot" ]; then
    AZURE_CONFIG_DIR="$PWD/$venv/config" AZURE_EXTENSION_DIR="$PWD/$venv/extensions" \
        "$venv/bin/az" extension add --name azure-iot --yes
fi
