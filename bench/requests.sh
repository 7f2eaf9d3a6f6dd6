#!/bin/bash
# requests.sh [NAME=keelson:PROGRAM…]: what requests cost our API server and its store, and upstream's kube-apiserver and etcd, on loopback, in turn, round by
# round, in CPU time of the servers. Adds a line of JSON for each figure to bench/out/requests.jsonl, and writes the table of medians to
# bench/out/requests.md. Goes on where it was interrupted; what was measured with these very programs is not measured again.
# env: KEELSON=program, QUICK=1 a few minutes, ROUNDS (5; with QUICK 1), ROWS=regex of ROW/CLIENTS, MINUTES at most (60), HTTP1=1, LOAD=request-bench
set -euo pipefail
cd "$(dirname "$0")/.."
. conformance/lib/env.sh
KEELSON=${KEELSON:-target/release/keelson} LOAD=${LOAD:-target/release/request-bench}
OUT=${OUT:-bench/out}; mkdir -p "$OUT"
{ [ -x "$BIN/kube-apiserver" ] && [ -x "$BIN/etcd" ]; } || conformance/build.sh differential
"$LOAD" rounds --side "keelson=keelson:$KEELSON" --side "upstream=upstream:$BIN" --history "$OUT/requests.jsonl" --dir "$OUT/run" \
  --revision "${REVISION:-$(git describe --always --dirty)}" --rounds "${ROUNDS:-$([ -n "${QUICK:-}" ] && echo 1 || echo 5)}" --minutes "${MINUTES:-60}" \
  --rows "${ROWS:-}" ${QUICK:+--quick} ${HTTP1:+--http1}
"$LOAD" table --history "$OUT/requests.jsonl" --sides keelson,upstream | tee "$OUT/requests.md"
