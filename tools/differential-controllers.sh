#!/bin/bash
# differential-controllers.sh [OPTION…]: the same scenarios (tests/differential/controllers) under kube-controller-manager and ours, each over a
# kube-apiserver and an etcd of its own on loopback; the report tells what differs and has no reason in known-differences.txt there. Half an hour at
# most; outcomes are kept in $LAB/differential-controllers, and only what changed is played again. --only REGEX: scenarios of such names.
# differential-controllers.sh record: writes what upstream's left anew, to which `cargo test` holds ours; with --only, of those alone.
set -euo pipefail
cd "$(dirname "$0")/.."
. conformance/lib/env.sh
{ [ -x "$BIN/kube-apiserver" ] && [ -x "$BIN/etcd" ]; } || conformance/build.sh differential
[ -x "$BIN/kube-controller-manager" ] || conformance/build.sh components
export KEELSON_PEER_BIN=$BIN
PROFILE=${TEST_PROFILE:-fast}
[ -n "${KEELSON:-}" ] || { ${CARGO:-cargo} build --locked --profile "$PROFILE" -p keelson; KEELSON=${CARGO_TARGET_DIR:-target}/${PROFILE/#dev/debug}/keelson; }
controllers() { ${CARGO:-cargo} run --locked --profile "$PROFILE" -p keelson-differential -- controllers --program "$KEELSON" --work "$LAB/differential-controllers" "$@"; }
case ${1:-run} in
  record) controllers --record tests/differential/controllers/recorded.jsonl.gz "${@:2}" ;;
  run) controllers "${@:2}" ;;
  *) controllers "$@" ;;
esac
