#!/bin/bash
# profiles.sh: where the CPU time of hot rows goes, as flame graphs in docs/profiles, one a row. The program is built once more, with symbols and frame pointers, in
# target/profiles: by these perf follows calls at little cost.
# env: ROWS=regex of ROW/CLIENTS, PROFILE (release), LOAD=request-bench, KEELSON=a program that has symbols already, UNWIND=dwarf if it has no frame pointers, QUICK=1
set -euo pipefail
cd "$(dirname "$0")/.."
LOAD=${LOAD:-target/release/request-bench} PROFILE=${PROFILE:-release} OUT=${OUT:-bench/out}
ROWS=${ROWS:-'^(get a pod of|create a (ConfigMap of|pod)|status of a pod|delete a pod|create a custom)[^/]*/16$|^(list 5,000|list, (protobuf|Table)|an event to each[^/]*after)[^/]*/1$'}
if [ -z "${KEELSON:-}" ]; then
  own="profile.$PROFILE"
  CARGO_TARGET_DIR=target/profiles cargo build --profile "$PROFILE" --locked -p keelson --config "$own.strip=false" --config "$own.debug='line-tables-only'" \
    --config 'target."cfg(all())".rustflags=["-Cforce-frame-pointers=yes"]'
  KEELSON=target/profiles/$([ "$PROFILE" = dev ] && echo debug || echo "$PROFILE")/keelson
fi
"$LOAD" profile --side "keelson=keelson:$KEELSON" --dir "$OUT/run" --out docs/profiles --rows "$ROWS" --unwind "${UNWIND:-fp}" ${QUICK:+--quick}
find docs/profiles -name '*.svg' -size +150k | { ! grep . || { echo "these graphs are larger than 150 KB" >&2; exit 1; }; }
