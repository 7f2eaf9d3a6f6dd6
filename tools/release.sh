#!/bin/bash
# release.sh DIR: what is handed out, for each of ARCHS (this machine's; x86_64, aarch64): a program, which is tried, and everything that goes with it.
# env: KEELSON=program that was built already, in place of building one; STATIC=1: linked to nothing (by GNU ld: mold 1.10 makes static programs
# that don't start)
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=$(realpath -m "$1"); ROOT=$PWD HOST=$(uname -m)
rm -rf "$OUT"; mkdir -p "$OUT"
WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT

# bring ARCH: what building for another architecture takes, of Debian's packages
bring() {
  local debian=arm64; [ "$1" = aarch64 ] || { echo "for $1 nobody knows what it takes: aarch64 is the other architecture" >&2; exit 1; }
  local need="gcc-aarch64-linux-gnu libc6-dev-$debian-cross libseccomp-dev:$debian qemu-user-static"
  # shellcheck disable=SC2086
  dpkg -s $need >/dev/null 2>&1 || {
    dpkg --add-architecture $debian; apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need >/dev/null
  }
  [ -d "$(rustc --print target-libdir --target "$1-unknown-linux-gnu")" ] || rustup target add "$1-unknown-linux-gnu"
  export "CARGO_TARGET_$(tr a-z A-Z <<<"$1")_UNKNOWN_LINUX_GNU_LINKER=$1-linux-gnu-gcc"
}

# build ARCH: a program that tells nothing of the machine it was built on
build() {
  local target=$1-unknown-linux-gnu upper cargo_home=${CARGO_HOME:-$HOME/.cargo} with=() flags= linked=${STATIC:-}
  # What another machine has is not known here.
  [ "$1" = "$HOST" ] || { bring "$1"; linked=1; }
  upper=$(tr a-z- A-Z_ <<<"$target")
  # Laid out by use, as tools/build.sh does it, where the linker knows how.
  [ -n "$linked" ] || [ "$1" != x86_64 ] || with=("CARGO_TARGET_${upper}_LINKER=$ROOT/tools/layout/clang")
  [ -z "$linked" ] || { with=(LIBSECCOMP_LINK_TYPE=static); flags="-C target-feature=+crt-static -C relocation-model=static -C link-arg=-fuse-ld=bfd"; }
  env "${with[@]}" "LIBSECCOMP_LIB_PATH=/usr/lib/$1-linux-gnu" \
    "CFLAGS_${target//-/_}=-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$ROOT=/keelson" \
    "CARGO_TARGET_${upper}_RUSTFLAGS=$flags -C symbol-mangling-version=v0 --remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$ROOT=/keelson" \
    cargo build --profile release --locked --package keelson --target "$target"
  KEELSON=${CARGO_TARGET_DIR:-$ROOT/target}/$target/release/keelson
}

cargo xtask sbom >"$WORK/sbom.json"
BUILT=${KEELSON:-}
for arch in ${ARCHS:-$HOST}; do
  [ -n "$BUILT" ] || build "$arch"
  SBOM=$WORK/sbom.json tools/package.sh "$KEELSON" "$OUT"
  tools/packaging/check.sh "$KEELSON" "$OUT"/*-"$arch".oci.tar
done
cd "$OUT"; ls -l
