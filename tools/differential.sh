#!/bin/bash
# differential.sh [OPTION…]: the same requests to kube-apiserver (over etcd, on loopback) and to ours; the report tells what differs and
# has no reason in tests/differential/known-differences.txt. An hour at most; goes on where it was interrupted.
# differential.sh record: writes the sample of kube-apiserver's answers anew that `cargo test` holds ours to.
set -euo pipefail
cd "$(dirname "$0")/.."
. conformance/lib/env.sh
{ [ -x "$BIN/kube-apiserver" ] && [ -x "$BIN/etcd" ]; } || conformance/build.sh differential
export KEELSON_PEER_BIN=$BIN
differential() { ${CARGO:-cargo} run --locked --profile "${TEST_PROFILE:-fast}" -p keelson-differential -- "$@"; }
case ${1:-run} in
  record) differential record --out tests/differential/recorded.jsonl.gz ;;
  run) differential run --work "$LAB/differential" --shrink "${@:2}" ;;
  *) differential run --work "$LAB/differential" --shrink "$@" ;;
esac
