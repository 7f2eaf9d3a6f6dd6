#!/bin/bash
# run.sh LIST OUTDIR: runs the suite's tests named in LIST (one exact name a line) against the cluster of cluster.sh.
# Prints a line a test and a closing line; fails when a test fails, is skipped, is flaky or matches no test.
# env: PROCS=4 (shards; [Serial] tests run alone at the end), KC=kubeconfig, NETNS=namespace, TIMEOUT=3h, NODES=how many there are, E2E_FLAGS
. "$(dirname "$0")/lib/env.sh"
[ $# = 2 ] || { sed -n 2,4p "$0"; exit 2; }
LIST=$(realpath "$1"); mkdir -p "$2"; OUT=$(realpath "$2"); KC=${KC:-$KUBECONFIG_FILE}; NETNS=${NETNS:-$CLUSTER}
rm -f "$OUT"/junit*.xml "$OUT"/results.tsv "$OUT"/failures.txt
FOCUS=$(python3 - "$LIST" <<'PY'
import re, sys
names = [l.strip() for l in open(sys.argv[1]) if l.strip() and not l.startswith('#')]
print('(' + '|'.join(re.sub(r'([\\.*+?()\[\]{}|^$])', r'\\\1', n) for n in names) + ')$')
PY
)
( [ -z "$PROGRESS" ] && exit; while sleep 60 >/dev/null 2>&1; do printf '… %s tests done\n' "$(grep -cE '^[^ ]*• ' "$OUT/e2e.log" 2>/dev/null)"; done ) & PROGRESS_PID=$!
nsenter --net=/run/netns/$NETNS ginkgo -v --procs=${PROCS:-4} --timeout=${TIMEOUT:-3h} --focus="$FOCUS" --no-color --poll-progress-after=300s \
  --junit-report=junit.xml --output-dir="$OUT" --keep-going $BIN/e2e.test -- --kubeconfig="$(realpath "$KC")" --provider=skeleton --report-dir="$OUT" \
  --dump-logs-on-failure=false --disable-log-dump=true --allowed-not-ready-nodes=-1 --num-nodes=${NODES:--1} --storage.testdriver="$HERE/lib/local-driver.yaml" $E2E_FLAGS >"$OUT/e2e.log" 2>&1
rc=$?; kill $PROGRESS_PID 2>/dev/null
python3 "$HERE/lib/summary.py" "$OUT" || rc=1
# A name that matched no test would otherwise pass in silence; so would a skipped one.
cut -f3 "$OUT/results.tsv" 2>/dev/null | bare | sort >"$OUT/ran.txt"
sed 's/ *$//' "$LIST" | grep -v '^#' | grep . | sort | comm -23 - "$OUT/ran.txt" | sed 's/^/NOT RUN  /' | tee "$OUT/not-run.txt"
[ -s "$OUT/not-run.txt" ] && rc=1
grep -q '^SKIP' "$OUT/results.tsv" && rc=1
awk -F'\t' '{n[$1]++} END{printf "%d passed, %d failed, %d skipped\n", n["PASS"], n["FAIL"], n["SKIP"]}' "$OUT/results.tsv"
exit $rc
