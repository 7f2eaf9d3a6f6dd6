#!/bin/bash
# package.sh PROGRAM DIR: an archive of a program and an image of it, where dpkg-deb and rpmbuild are also packages, and their sums. The same
# program gives the same bytes: names are sorted, and every time is SOURCE_DATE_EPOCH (the commit's). SBOM=FILE is handed out beside them.
set -euo pipefail
PROGRAM=$(realpath "$1"); mkdir -p "$2"; OUT=$(realpath "$2")
cd "$(dirname "$0")/.."
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
umask 022
VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -1)
case $({ readelf -h "$PROGRAM" || true; } 2>/dev/null | sed -n 's/ *Machine: *//p') in
*X86-64*) ARCH=x86_64 ;; *AArch64*) ARCH=aarch64 ;; *) ARCH=$(uname -m) ;;
esac
case $ARCH in x86_64) OTHER=amd64 ;; aarch64) OTHER=arm64 ;; *) OTHER=$ARCH ;; esac   # as Debian and OCI call it
NAME=keelson-$VERSION-linux-$ARCH
WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT
. tools/packaging/formats.sh

# What the program tells of itself must not depend on who asks. One of another machine runs in emulation.
emulator=(); [ "$ARCH" = "$(uname -m)" ] || emulator=("qemu-$ARCH-static")
own() { env -i PATH="$PATH" HOME=/ "${emulator[@]}" "$PROGRAM" "$@"; }
TREE=$WORK/$NAME; mkdir -p "$TREE/completions"
install -m 755 "$PROGRAM" "$TREE/keelson"
install -m 644 LICENSE README.md docs/install.md tools/packaging/keelson.service tools/packaging/keelson.openrc "$TREE"
own man "$TREE/man"
own completion bash >"$TREE/completions/keelson"
own completion zsh >"$TREE/completions/_keelson"
own completion fish >"$TREE/completions/keelson.fish"
find "$TREE/man" -type f -exec chmod 644 {} +

archive
image
installed "$WORK/root"
! command -v dpkg-deb >/dev/null || deb
! command -v rpmbuild >/dev/null || rpm
[ -z "${SBOM:-}" ] || install -m 644 "$SBOM" "$OUT/$NAME.cdx.json"
cd "$OUT"
find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum >SHA256SUMS
