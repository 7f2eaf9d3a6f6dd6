#!/bin/bash
# conformance.sh [LIST=conformance/lists/passing.txt]: the suite's tests named in LIST against a cluster in a network namespace,
# one SIG after the other. What has passed with this very program is not run again: results stand in conformance/out/PROGRAM/SIG;
# remove that directory to start over. env: KEELSON=program, PROCS=6
set -euo pipefail
cd "$(dirname "$0")/.."
LIST=$(realpath "${1:-conformance/lists/passing.txt}")
export KEELSON=${KEELSON:-$PWD/target/release/keelson} CLUSTER=${CLUSTER:-klc0} NODE_IP=${NODE_IP:-10.79.1.1} PROCS=${PROCS:-6} PROGRESS=1
. conformance/lib/env.sh
OUT=$PWD/conformance/out/$(sha256sum "$KEELSON" | cut -c1-12); mkdir -p "$OUT"
say() { printf '%s %s\n' "$(date +%T)" "$*"; }
say "building the suite (once)"
conformance/build.sh all; conformance/images.sh >/dev/null
conformance/cluster.sh down >/dev/null 2>&1 || true
trap 'conformance/cluster.sh down >/dev/null 2>&1 || true' EXIT
conformance/cluster.sh up
failed=0
for sig in $(grep -o '^\[sig-[a-z-]*\]' "$LIST" | tr -d '[]' | sort -u); do
  dir=$OUT/$sig; mkdir -p "$dir"; touch "$dir/passed.txt"
  grep -F "[$sig]" "$LIST" | sort | comm -23 - <(sort "$dir/passed.txt") >"$dir/todo.txt"
  [ -s "$dir/todo.txt" ] || { say "$sig: all $(wc -l <"$dir/passed.txt") passed already"; continue; }
  say "$sig: $(wc -l <"$dir/todo.txt") tests"
  conformance/run.sh "$dir/todo.txt" "$dir/run" | grep --line-buffered -E '^(…|[0-9]+ passed)' || failed=1
  sed -n 's/ \[sig-[a-z-]*, [^]]*\]$//; s/^PASS\t[^\t]*\t//p' "$dir/run/results.tsv" >>"$dir/passed.txt" || true
  cat "$dir/run/failures.txt" "$dir/run/not-run.txt" 2>/dev/null | grep -E '^(FAIL|SKIP|NOT RUN)' || true
done
say "$(cat "$OUT"/*/passed.txt | sort -u | wc -l) of $(wc -l <conformance/lists/all.txt) conformance tests have passed with this program"
exit $failed
