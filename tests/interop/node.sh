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

tests/setup.sh interop
cp tests/interop/node/package.json "$wanted" "$made/"
# Their install scripts build nothing that is used here.
npm ci --prefix "$made" --ignore-scripts --no-audit --no-fund --loglevel=error
cp "$wanted" "$made/done.json"
