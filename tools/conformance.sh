#!/bin/bash
# conformance.sh [LIST …=conformance/lists/passing.txt]: the suite's tests named in the lists against a cluster in a network namespace.
# What has passed with this very program is not run again: it stands in conformance/out/PROGRAM/passed.txt, also after an
# interruption; remove that directory to start over. On two nodes. env: KEELSON=program, PROCS=10, NODES=1|2, OWN=1 (cluster.sh)
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- conformance/lists/passing.txt
export KEELSON=${KEELSON:-$PWD/target/release/keelson} CLUSTER=${CLUSTER:-klc0} NODE_IP=${NODE_IP:-10.79.1.1} PROCS=${PROCS:-10} NODES=${NODES:-2} PROGRESS=1
. conformance/lib/env.sh
OUT=$PWD/conformance/out/$(sha256sum "$KEELSON" | cut -c1-12); mkdir -p "$OUT"
say() { printf '%s %s\n' "$(date +%T)" "$*"; }
names() { cat "$@" | grep -v '^#' | sed 's/ *$//' | grep . | sort -u; }
LIST=$OUT/list.txt; names "$@" >"$LIST"
# Adds what the last run's log tells: a mark, and the name below it.
collect() {
  touch "$OUT/passed.txt"
  [ ! -e "$OUT/run/e2e.log" ] || awk '/^• \[[0-9.]+ seconds\]/ {getline; print}' "$OUT/run/e2e.log" |
    bare | sort -u - "$OUT/passed.txt" -o "$OUT/passed.txt"
  names "$LIST" | comm -23 - "$OUT/passed.txt" >"$OUT/todo.txt"
}
collect
failed=0
if [ -s "$OUT/todo.txt" ]; then
  say "building the suite (once)"
  conformance/build.sh all; conformance/images.sh >/dev/null
  conformance/cluster.sh down >/dev/null 2>&1 || true
  trap 'collect; conformance/cluster.sh down >/dev/null 2>&1 || true' EXIT
  conformance/cluster.sh up
  say "$(wc -l <"$OUT/todo.txt") tests to run, those that need the cluster for themselves at the end"
  conformance/run.sh "$OUT/todo.txt" "$OUT/run" | grep --line-buffered -E '^(…|[0-9]+ passed)' || failed=1
  collect
  cat "$OUT/run/failures.txt" "$OUT/run/not-run.txt" 2>/dev/null || true
fi
for sig in $(names "$LIST" | grep -o '^\[sig-[a-z-]*\]' | sort -u | tr -d '[]'); do
  all=$(names "$LIST" | grep -cF "[$sig]") left=$(grep -cF "[$sig]" "$OUT/todo.txt" || true)
  say "$sig: $((all - left)) of $all"
done
say "$(names conformance/lists/all.txt | comm -12 - "$OUT/passed.txt" | wc -l) of $(wc -l <conformance/lists/all.txt) conformance tests have passed with this program"
exit $failed
