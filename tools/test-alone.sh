#!/bin/bash
# test-alone.sh: a scheduler as a program of its own, on the cluster of conformance/cluster.sh: it binds the pods that name it, tells how it is, and
# ends on SIGTERM. Ten seconds.
set -euo pipefail
cd "$(dirname "$0")/.."; . conformance/lib/env.sh
KEELSON=${KEELSON:-$PWD/target/release/keelson}
k() { inns "$BIN/kubectl" --kubeconfig "$KUBECONFIG_FILE" "$@"; }
fail() { echo "FAILED: $*" >&2; tail -5 "$STATE/alone.log" >&2; exit 1; }
printf 'apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles: [{schedulerName: alone}]\n' >"$STATE/alone.yaml"
nsenter --net=/run/netns/"$CLUSTER" "$KEELSON" scheduler --kubeconfig "$KUBECONFIG_FILE" --config "$STATE/alone.yaml" >"$STATE/alone.log" 2>&1 & P=$!
trap 'kill $P 2>/dev/null || true; k delete pod alone --ignore-not-found --force >/dev/null 2>&1 || true' EXIT
k run alone --image=none --restart=Never --overrides='{"spec":{"schedulerName":"alone","terminationGracePeriodSeconds":0}}' >/dev/null
k wait --for=condition=PodScheduled pod/alone --timeout=20s >/dev/null || fail "the pod that names it is not bound"
for _ in $(seq 50); do health=$(inns curl -sk -m 5 https://127.0.0.1:10259/healthz || true); [ "$health" != ok ] || break; sleep 0.1; done
[ "$health" = ok ] || fail "health: $health"
[ "$(inns curl -sk -m 5 -o /dev/null -w '%{http_code}' https://127.0.0.1:10259/metrics)" = 403 ] || fail "metrics for anybody"
[ -n "$(k -n kube-system get lease kube-scheduler -o jsonpath='{.spec.holderIdentity}')" ] || fail "no Lease"
kill $P; for _ in $(seq 100); do kill -0 $P 2>/dev/null || break; sleep 0.1; done; kill -0 $P 2>/dev/null && fail "it doesn't end"
[ -z "$(k -n kube-system get lease kube-scheduler -o jsonpath='{.spec.holderIdentity}')" ] || fail "it kept its Lease"
echo "ok  a scheduler alone binds, tells how it is, and gives its Lease back"
