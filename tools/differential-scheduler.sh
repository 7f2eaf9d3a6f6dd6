#!/bin/bash
# differential-scheduler.sh [OPTION…]: the same scenarios (tests/differential/scheduler) under kube-scheduler and ours, each over a
# kube-apiserver and an etcd of its own on loopback; the report tells what differs and has no reason in known-differences.txt there. Half an hour at
# most; outcomes are kept in $LAB/differential-scheduler, and only what changed is played again. --only REGEX: scenarios of such names.
# differential-scheduler.sh record: writes what upstream's left anew, to which `cargo test` holds ours; with --only, of those alone.
set -euo pipefail
cd "$(dirname "$0")/.."
. conformance/lib/env.sh
{ [ -x "$BIN/kube-apiserver" ] && [ -x "$BIN/etcd" ]; } || conformance/build.sh differential
[ -x "$BIN/kube-scheduler" ] || conformance/build.sh components
export KEELSON_PEER_BIN=$BIN
PROFILE=${TEST_PROFILE:-fast}
[ "${1:-run}" != record ] || KEELSON=none # The peer alone is played.
[ -n "${KEELSON:-}" ] || { ${CARGO:-cargo} build --locked --profile "$PROFILE" -p keelson; KEELSON=${CARGO_TARGET_DIR:-target}/${PROFILE/#dev/debug}/keelson; }
scheduler() { ${CARGO:-cargo} run --locked --profile "$PROFILE" -p keelson-differential -- scheduler --program "$KEELSON" --work "$LAB/differential-scheduler" "$@"; }
case ${1:-run} in
  record) scheduler --record tests/differential/scheduler/recorded.jsonl.gz "${@:2}" ;;
  run) scheduler "${@:2}" ;;
  *) scheduler "$@" ;;
esac
