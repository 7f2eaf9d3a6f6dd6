#!/bin/bash
# compare.sh REV: what requests cost with this tree's program, and with that of another revision, which is built in a work tree beside this one: paired
# rounds, and a verdict for each row. History: bench/out/compare.jsonl. Goes on where it was interrupted.
# env: KEELSON=program of this tree, PROFILE (release), ROUNDS (6, and no verdict with fewer), ROWS=regex of ROW/CLIENTS, QUICK=1, MINUTES at most (60), LOAD=request-bench
set -euo pipefail
cd "$(dirname "$0")/.."
REV=$(git rev-parse --short "${1:?which revision?}^{commit}") PROFILE=${PROFILE:-release}
KEELSON=${KEELSON:-target/release/keelson} LOAD=${LOAD:-target/release/request-bench}
OUT=${OUT:-bench/out}; mkdir -p "$OUT"
BEFORE=$OUT/keelson-$REV-$PROFILE
if [ ! -x "$BEFORE" ]; then
  TREE=$(realpath "$OUT")/tree-$REV
  trap 'git worktree remove --force "$TREE"' EXIT
  [ -d "$TREE" ] || git worktree add --detach "$TREE" "$REV"
  # As that revision builds. What both have alike is built once.
  BUILD=(cargo build --profile "$PROFILE" --locked); [ ! -x "$TREE/tools/build.sh" ] || BUILD=(tools/build.sh "$PROFILE")
  (cd "$TREE" && CARGO_TARGET_DIR=$OLDPWD/target/compare "${BUILD[@]}" -p keelson)
  cp "target/compare/$([ "$PROFILE" = dev ] && echo debug || echo "$PROFILE")/keelson" "$BEFORE.new"; mv "$BEFORE.new" "$BEFORE"
fi
"$LOAD" rounds --side "$REV=keelson:$BEFORE" --side "now=keelson:$KEELSON" --history "$OUT/compare.jsonl" --dir "$OUT/run" \
  --revision "$(git describe --always --dirty)" --rounds "${ROUNDS:-6}" --minutes "${MINUTES:-60}" --rows "${ROWS:-}" ${QUICK:+--quick}
"$LOAD" verdict --history "$OUT/compare.jsonl" --sides "$REV,now" | tee "$OUT/compare.md"
