#!/bin/sh
# Checks that all that runs on the device builds with Rust 1.85, Debian 12's rustc-web. The compiler is unpacked below
# target/, for the mirror's newer one would replace it when installed.
set -eu

cd "$(dirname "$0")/.."
version=1.85.0+dfsg3-1~deb12u3
dir=$PWD/target/msrv/toolchain
if ! test -x "$dir/usr/bin/rustc"; then
    mkdir -p "$dir/packages"
    (
        cd "$dir/packages"
        apt-get -q download rustc-web=$version libstd-rust-web-dev=$version \
            libstd-rust-web-1.85=$version $(ldconfig -p | grep -q 'libLLVM.so.19' || echo libllvm19)
        for package in *.deb; do dpkg -x "$package" "$dir"; done
    )
fi
export LD_LIBRARY_PATH="$dir/usr/lib/x86_64-linux-gnu:$dir/usr/lib/llvm-19/lib" RUSTC="$dir/usr/bin/rustc"
"$RUSTC" --version
${CARGO:-cargo} check --locked -p fwupdate --lib --bins --target-dir target/msrv
