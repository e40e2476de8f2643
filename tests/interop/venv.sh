#!/bin/sh
# Makes target/venv with the Azure SDKs at the pinned versions, or leaves it alone when it is up to date.
# As root on a bare Debian it installs what it needs for that.
set -eu
cd "$(dirname "$0")/../.."
venv=target/venv
wanted=tests/interop/requirements.txt
# Several tests may want it at once.
mkdir -p target
exec 9>target/venv.lock
flock 9
if cmp -s "$wanted" "$venv/requirements.done"; then exit 0; fi

tests/setup.sh interop
python3 -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
cp "$wanted" "$venv/requirements.done"
