#!/bin/bash
# release.sh DIR: packs the program that was built ($KEELSON) with everything that is handed out with it.
set -euo pipefail
cd "$(dirname "$0")/.."
KEELSON=${KEELSON:-$PWD/target/release/keelson}; OUT=$(realpath -m "$1")
rm -rf "$OUT"; mkdir -p "$OUT"
WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT
cp "$KEELSON" "$WORK/keelson"
strip "$WORK/keelson"
cargo xtask sbom >"$WORK/sbom.json"
SBOM=$WORK/sbom.json tools/package.sh "$WORK/keelson" "$OUT"
cd "$OUT"; ls -l
