#!/bin/bash
# run.sh [PROGRAM…]: real programs against a cluster of ours, a cluster a program: builds them (build.sh), runs PROGRAM.sh, and holds what passed to passing.txt, which only grows.
# What a program has passed with this very keelson and scripts is not run again (tests/clients/out; remove it to start over).
# env: KEELSON=program, CLUSTER, NODE_IP, RECORD=1 adds what passed to passing.txt, KEEP=1 leaves the cluster
export LC_ALL=C; cd "$(dirname "$0")"; HERE=$PWD; ROOT=$(cd ../.. && pwd); set -uo pipefail
export KEELSON=${KEELSON:-$ROOT/target/release/keelson} CLUSTER=${CLUSTER:-klcl0} NODE_IP=${NODE_IP:-10.79.71.1}
say() { printf '%s %s\n' "$(date +%T)" "$*"; }
all() { for s in [a-z]*.sh; do case $s in run.sh|lib.sh|build.sh) ;; *) echo "${s%.sh}" ;; esac; done; }
needs() { sed -n 's/^# needs: //p' "$1.sh"; }
[ $# -gt 0 ] || set -- $(all)
OUT=$HERE/out/$(sha256sum "$KEELSON" | cut -c1-12); mkdir -p "$OUT"
[ -x "${LAB:=${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}/bin/kubectl" ] || ../../conformance/build.sh kubectl
failed=0 done=0
for name in "$@"; do
  done=$((done + 1)); results=$OUT/$name.tsv mark=$OUT/$name.done
  if [ "$mark" -nt "$name.sh" ] && [ "$mark" -nt lib.sh ] && [ "$mark" -nt programs.tsv ] && [ -z "$(find "$name"/ -newer "$mark" 2>/dev/null)" ]; then say "$name: passed before ($done of $#)"; continue; fi
  say "=== $name ($done of $#)"
  # shellcheck disable=SC2046
  ./build.sh $(needs "$name") || { say "$name: not built"; failed=1; continue; }
  ../../conformance/cluster.sh down >/dev/null 2>&1; : >"$results"
  if RESULTS=$results timeout -k 30 900 "./$name.sh" 2>&1 | tee "$OUT/$name.log"; then touch "$mark"; else failed=1; fi
  lost=$(grep "^$name: " passing.txt | sort | comm -23 - <(sed -n 's/^PASS\t//p' "$results" | sort))
  [ -z "$lost" ] || { failed=1; rm -f "$mark"; sed 's/^/LOST /' <<<"$lost"; }
  [ -z "${RECORD:-}" ] || { sed -n 's/^PASS\t//p' "$results" | sort -u - passing.txt -o passing.txt; }
done
say "$(cat "$OUT"/*.tsv 2>/dev/null | grep -c ^PASS) checks have passed with this program, $(cat "$OUT"/*.tsv 2>/dev/null | grep -c ^FAIL) failed; $(grep -c . passing.txt) are to pass"
exit $failed
