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

missing=""
python3 -c 'import ensurepip' 2>/dev/null || missing="python3-venv"
command -v openssl >/dev/null || missing="$missing openssl"
if [ -n "$missing" ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "interop: install these packages and try again: $missing" >&2
        exit 1
    fi
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of packages
    apt-get install -qq -y $missing >/dev/null
fi
python3 -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
cp "$wanted" "$venv/requirements.done"
