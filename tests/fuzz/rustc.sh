#!/bin/sh
# RUSTC_WORKSPACE_WRAPPER of the fuzzer's build: coverage for our own crates, by LLVM's pass, which any rustc has.
rustc=$1
shift
# A build script is run by cargo, without the fuzzer that would take the coverage.
case " $* " in *" --crate-name build_script_"*) exec "$rustc" "$@" ;; esac
exec "$rustc" "$@" -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares -C codegen-units=1
