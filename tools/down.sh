#!/bin/bash
# down.sh: stops the cluster of up.sh and removes every trace of it.
set -euo pipefail
cd "$(dirname "$0")/.."
KEELSON=${KEELSON:-$PWD/target/up/keelson}; DATA=${DATA:-$PWD/.keelson}
[ -d "$DATA" ] || { echo "nothing to remove"; exit 0; }
[ ! -f "$DATA/program" ] || KEELSON=$(cat "$DATA/program")
"$KEELSON" uninstall --data-dir "$DATA" --yes
rm -rf "$DATA"
