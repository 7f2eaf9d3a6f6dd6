#!/bin/bash
# test-traces.sh: a pod's trace on a cluster of one machine: server, kubelet and runtime tell a collector on loopback, in one trace whose id is the pod's
# UID; a request that its caller traces is told in its parts; and a collector that has gone holds nobody up. In a network namespace of its own.
# Needs root. env: KEELSON=program, COLLECTOR=the example `collector` of crates/base/trace
set -euo pipefail
cd "$(dirname "$0")/.."
export CLUSTER=${TRACES_CLUSTER:-klq0} NODE_IP=${TRACES_IP:-10.79.27.1} NOREGISTRY=1 NODES=1
unset STATE; . conformance/lib/env.sh
export STATE KEELSON=${KEELSON:-$PWD/target/release/keelson}
COLLECTOR=${COLLECTOR:-$PWD/target/debug/examples/collector}
[ -x "$COLLECTOR" ] || cargo build --quiet --locked --workspace --example collector
k() { inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
conformance/cluster.sh down >/dev/null 2>&1 || true
export LAB=$STATE/lab; mkdir -p "$LAB/images"; examples/image.sh "$LAB/images" >/dev/null
spans=$STATE/spans.jsonl collector=
end() {
  status=$?
  [ $status = 0 ] || { echo "=== failed; the end of the server's log:"; tail -40 "$STATE/server.log" || true; tail -5 "$spans" || true; }
  [ -z "$collector" ] || kill "$collector" 2>/dev/null || true
  conformance/cluster.sh down >/dev/null 2>&1 || true
  exit $status
}
trap end EXIT
cat >"$STATE/tracing.yaml" <<Y
apiVersion: apiserver.config.k8s.io/v1
kind: TracingConfiguration
endpoint: 127.0.0.1:4317
samplingRatePerMillion: 1000000
Y
export EXTRA="--kubelet-link none --disable ingress,metrics --tracing-config-file $STATE/tracing.yaml"
conformance/cluster.sh up
ok "a cluster whose collector isn't there"
# Without the function: the number is the collector's own.
nsenter --net="/run/netns/$CLUSTER" "$COLLECTOR" 127.0.0.1:4317 >"$spans" & collector=$!
# What was told before it came is lost; the server tries again with the next lot.
for _ in $(seq 150); do grep '"service":"apiserver"' "$spans" >/dev/null && break; sleep 0.2; done
grep '"service":"apiserver"' "$spans" >/dev/null || fail "a collector that came later hears nothing"
pod() {
  k apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "example.local/web:1", imagePullPolicy: Never, command: [sleep, "1000000"]}]
Y
  k wait --for=condition=Ready "pod/$1" --timeout=60s >/dev/null || fail "$1 isn't ready"
}
pod traced
uid=$(k get pod traced -o jsonpath='{.metadata.uid}'); trace=${uid//-/}
# Names of the trace's spans, each with who told it.
names() { python3 - "$spans" "$1" <<'P'
import json, sys
spans = [json.loads(line) for line in open(sys.argv[1]) if line.endswith("\n")]
mine = [s for s in spans if s["trace"] == sys.argv[2]]
known = {s["span"] for s in mine}
for s in mine:
    print(s["service"], s["name"], "child" if s["parent"] in known else "first" if not s["parent"] else "lost")
P
}
wanted="apiserver pod default/traced first
kubelet syncPod child
kubelet runtime.v1.RuntimeService/RunPodSandbox child
runtime runtime.v1.RuntimeService/RunPodSandbox child
runtime network child
runtime shim child
runtime runtime.v1.RuntimeService/StartContainer child"
missing() { comm -23 <(sort -u <<<"$wanted") <(names "$trace" | sort -u); }
for _ in $(seq 100); do [ -n "$(missing)" ] || break; sleep 0.2; done
[ -z "$(missing)" ] || fail "of the pod's trace $trace there isn't: $(missing); there is: $(names "$trace" | sort | uniq -c)"
! names "$trace" | grep lost || fail "spans whose parent nobody told"
ok "one trace from the request to the container: $(names "$trace" | sort -u | wc -l) kinds of spans"

# What a caller traces, of which an administrator is believed.
k get --raw /api/v1/namespaces/default/pods >/dev/null
token=1234567890abcdef1234567890abcdef
inns curl -sf --cacert "$STATE/data/pki/ca.crt" --cert "$STATE/data/pki/client-kubernetes-admin.crt" --key "$STATE/data/pki/client-kubernetes-admin.key" \
  -H "traceparent: 00-$token-1234567890abcdef-01" "https://$NODE_IP:6443/api/v1/namespaces/default/pods/traced" >/dev/null || fail "curl"
for _ in $(seq 100); do names "$token" | grep Get >/dev/null && break; sleep 0.2; done
names "$token" | grep "apiserver Get" >/dev/null && names "$token" | grep "GET /api/v1/namespaces/{:namespace}/pods/{:name}" >/dev/null ||
  fail "a caller's trace: $(names "$token")"
ok "a caller's trace goes on here"

kill "$collector"; wait "$collector" 2>/dev/null || true; collector=
pod untold
lost() { grep -c "the collector of traces doesn't take them" "$STATE/server.log" || true; }
# Once before the collector came, by the server; now by each that has something to tell.
for _ in $(seq 100); do [ "$(lost)" -lt 2 ] || break; sleep 0.2; done
k get pods untold >/dev/null
lost=$(lost)
[ "$lost" -ge 2 ] && [ "$lost" -le 8 ] || fail "that the collector has gone is said $lost times"
ok "a collector that has gone holds nobody up, and is told of $lost times"
