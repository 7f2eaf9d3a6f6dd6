#!/bin/bash
# build.sh PROFILE CARGO'S WORDS...: cargo build. What is built to be used is laid out by use (tools/layout/clang); names of symbols are such that a function has the same one
# in each build.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$1" != dev ] && [ "$(uname -m)" = x86_64 ]; then
  export RUSTFLAGS="${RUSTFLAGS:+$RUSTFLAGS }-C symbol-mangling-version=v0" CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=$PWD/tools/layout/clang
fi
"${CARGO:-cargo}" build --profile "$1" --locked "${@:2}"
cat "${CARGO_TARGET_DIR:-target}/${1/#dev/debug}/deps/layout" 2>/dev/null || true
