#!/bin/bash
# controller-runtime.sh: controller-runtime's own suites against the API server and the etcd that `keelson envtest setup` gives: what envtest starts and ends by itself, on loopback of a namespace.
# needs: controller-runtime
. "$(dirname "$0")/lib.sh"
FROM=$(source_of controller-runtime)
ip netns add "$CLUSTER"; inns ip link set lo up
export KUBEBUILDER_ASSETS=$WORK/assets
check "envtest setup" "$KEELSON" envtest setup --kubectl "$BIN/kubectl" "$KUBEBUILDER_ASSETS"
# What kube-apiserver and etcd themselves don't pass this way: their --skip is ours.
suite() { # package, arguments
  local at=$1 log=$WORK/$(tr '/' '-' <<<"$1").log; shift
  inns env -C "$FROM/$at" -u KUBECONFIG HOME="$WORK" TMPDIR="$WORK" timeout -k 5 "${WITHIN:-280}" "$CLIENTS/controller-runtime-$(tr '/' '-' <<<"$at").test" -test.v "$@" >"$log" 2>&1
  local rc=$?; grep -aE '^(Ran [0-9]+ of|--- FAIL|.*\[FAIL\]|panic:|PASS|FAIL)' "$log" | sed 's/\x1b\[[0-9;]*m//g' | sort -u | head -30; return $rc
}
# Another kube-apiserver's binaries, which it would fetch, it can't get here.
suite_apiutil() { suite pkg/client/apiutil -test.skip '/aggregatedDiscovery=false'; }
check "pkg/client/apiutil, but for discovery of old servers" suite_apiutil
for p in client cache envtest manager manager/internal/integration builder controller controller/controllerutil webhook internal/recorder internal/controller metrics/filters source cluster; do
  check "pkg/$p" suite "pkg/$p"
done
