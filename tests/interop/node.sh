#!/bin/sh
# Makes target/node with Microsoft's packages for Node at the locked versions, or leaves it alone when it is up to date.
# As root on a bare Debian it installs what it needs for that.
set -eu
cd "$(dirname "$0")/../.."
made=target/node
# Several tests may want it at once.
mkdir -p "$made"
exec 9>target/node.lock
flock 9
wanted=tests/interop/node/package-lock.json
if cmp -s "$wanted" "$made/done.json"; then exit 0; fi

missing=""
command -v node >/dev/null || missing="nodejs"
command -v npm >/dev/null || missing="$missing npm"
if [ -n "$missing" ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "interop: install these packages and try again: $missing" >&2
        exit 1
    fi
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of packages
    apt-get install -qq -y --no-install-recommends $missing >/dev/null
fi
cp tests/interop/node/package.json "$wanted" "$made/"
# Their install scripts build nothing that is used here.
npm ci --prefix "$made" --ignore-scripts --no-audit --no-fund --loglevel=error
cp "$wanted" "$made/done.json"
