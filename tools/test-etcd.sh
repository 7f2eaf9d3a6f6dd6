#!/bin/bash
# test-etcd.sh: the store over a real etcd, on loopback: the contract of stores, reconnects, lost answers, refusals; and random requests to etcd
# and to our own stores in its place, which are answered alike. Two minutes.
# Takes $KEELSON_ETCD and $KEELSON_ETCDCTL, or those on PATH, or builds them (conformance/build.sh etcd; needs Go).
set -euo pipefail
cd "$(dirname "$0")/.."
. conformance/lib/env.sh
for program in etcd etcdctl; do
  variable=KEELSON_${program^^}
  [ -n "${!variable:-}" ] || command -v $program >/dev/null || conformance/build.sh etcd
  export "$variable=${!variable:-$(command -v $program)}"
done
${CARGO:-cargo} test --locked --workspace --profile "${PROFILE:-dev}" --test etcd
