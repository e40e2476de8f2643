#!/bin/sh
# Makes target/venv with the Azure SDKs at the pinned versions, or leaves it alone when it is up to date.
set -eu
cd "$(dirname "$0")/../.."
venv=target/venv
wanted=tests/interop/requirements.txt
if cmp -s "$wanted" "$venv/requirements.done"; then exit 0; fi

if ! python3 -c 'import ensurepip' 2>/dev/null; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "interop: python3-venv is missing; install it (apt-get install python3-venv) and try again" >&2
        exit 1
    fi
    apt-get update -qq
    apt-get install -qq -y python3-venv >/dev/null
fi
mkdir -p target
python3 -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
cp "$wanted" "$venv/requirements.done"
