#!/bin/bash
# gateway.sh [all|TEST …|up|down]: upstream's conformance suite of the Gateway API against a cluster of its own (cluster.sh): all of it, or tests by
# their short names. What passed and what failed goes to $OUT/results.tsv, which grows from run to run; `all` also writes the report and fails if
# a test of lists/gateway.txt doesn't pass. The features that are tested are those that the class itself tells. Three minutes; one test less than one.
# env: those of cluster.sh; OUT=where results go, PROFILES, REPORT=file, SUITE=more flags of the suite, KEEP=1 (the cluster stays)
export CLUSTER=${CLUSTER:-kgc0} NODE_IP=${NODE_IP:-10.78.5.1} NOREGISTRY=1 EXTRA="--gateway-api $EXTRA"
. "$(dirname "$0")/lib/env.sh"; set -e
OUT=${OUT:-$LAB/gateway} VERSION=$(sed -n 's/^version = "\(.*\)"/v\1/p' "$ROOT/Cargo.toml" | head -1)
PROFILES=${PROFILES:-GATEWAY-HTTP,GATEWAY-GRPC,GATEWAY-TLS,GATEWAY-TCP,GATEWAY-UDP}
USABLE=${NODE_IP%.*}.200   # only who asks for it gets it
mkdir -p "$OUT"; REPORT=${REPORT:-$OUT/report.yaml}
up() {
  [ -f $STATE/server.pid ] && kill -0 "$(cat $STATE/server.pid)" 2>/dev/null && return
  "$HERE/build.sh" gateway
  ls $LAB/images/{gateway-api_echo-basic,coredns_coredns,pause}_*.tar >/dev/null 2>&1 || env -u OUT "$HERE/images.sh" 'gateway-api/echo-basic|coredns/coredns|/pause'
  "$HERE/cluster.sh" up
  for j in $(seq 300); do "$HERE/cluster.sh" kubectl get loadbalancerippools >/dev/null 2>&1 && break; sleep 0.1; done
  # Each Gateway has an address of its own: those of the suite all have the same ports.
  "$HERE/cluster.sh" kubectl apply -f - >/dev/null <<YAML
apiVersion: keelson.dev/v1
kind: LoadBalancerIPPool
metadata: {name: gateways}
spec: {addresses: [${NODE_IP%.*}.64/26]}
---
apiVersion: keelson.dev/v1
kind: LoadBalancerIPPool
metadata: {name: asked}
spec: {addresses: [$USABLE/32], autoAssign: false}
YAML
  for j in $(seq 300); do
    [ "$("$HERE/cluster.sh" kubectl get gatewayclass keelson -o 'jsonpath={.status.conditions[?(@.type=="Accepted")].status}' 2>/dev/null)" = True ] && return; sleep 0.1
  done
  echo "the class isn't accepted" >&2; exit 1
}
suite() { # log, flags …
  KUBECONFIG=$KUBECONFIG_FILE inns $BIN/gateway.test -test.run 'TestConformance$' -test.v -test.timeout ${TIMEOUT:-60m} --gateway-class=keelson \
    --conformance-profiles=$PROFILES --usable-address=$USABLE --unusable-address=203.0.113.77 --cleanup-base-resources=${CLEANUP:-false} "${@:2}" $SUITE >"$1" 2>&1
}
record() { # log: the word on a test is the last run's
  sed -nE 's/^    --- (PASS|FAIL): TestConformance\/([A-Za-z0-9]+) .*/\1\t\2/p' "$1" >"$OUT/new.tsv"
  touch "$OUT/results.tsv"; awk -F'\t' 'NR == FNR {new[$2] = 1; print; next} !($2 in new)' "$OUT/new.tsv" "$OUT/results.tsv" | sort -k2 >"$OUT/merged.tsv"
  mv "$OUT/merged.tsv" "$OUT/results.tsv"; sort "$OUT/new.tsv"; rm "$OUT/new.tsv"
}
rc=0
case ${1:-all} in
up) up; exit ;;
down) "$HERE/cluster.sh" down; exit ;;
all)
  up; suite "$OUT/suite.log" --report-output="$REPORT" --organization=keelson --project=keelson --url=https://keelson.dev --version=$VERSION --contact=keelson.dev || rc=1
  record "$OUT/suite.log"
  grep -v '^#' "$HERE/lists/gateway.txt" | while read -r name; do grep -q "^PASS	$name$" "$OUT/results.tsv" || echo "NOT PASSED  $name"; done >"$OUT/lost.txt"
  cat "$OUT/lost.txt"; [ ! -s "$OUT/lost.txt" ] || rc=1 ;;
*)
  up; for name in "$@"; do suite "$OUT/$name.log" --run-test=$name || rc=1; record "$OUT/$name.log"; done ;;
esac
[ -n "$KEEP" ] || "$HERE/cluster.sh" down
exit $rc
