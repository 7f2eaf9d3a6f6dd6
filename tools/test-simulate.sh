#!/bin/bash
# test-simulate.sh: keelson simulate on a control plane without a node, in a network namespace: 50 nodes are Ready, pods run, a job ends, pods are
# deleted with their grace, a node that is down is noticed, the command takes its nodes away; then the same cluster by stages. A minute.
# env: KEELSON=program, KUBECTL, NODES, KEEP=1 keeps the logs
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NS=${NS:-klsim0} KUBECTL=${KUBECTL:-kubectl} NODES=${NODES:-50}
S=$(mktemp -d /tmp/keelson-simulate.XXXXXX)
on() { nsenter --net=/run/netns/$NS "$@"; }
k() { on "$KUBECTL" --kubeconfig "$S/data/admin.kubeconfig" --request-timeout=20s "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # seconds, what, command
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { (set -x; "$@") || true; fail "$what"; }; sleep 0.3; done; ok "$what"
}
start() { # name, command
  local name=$1; shift
  setsid nsenter --net=/run/netns/$NS "$@" >>"$S/$name.log" 2>&1 </dev/null & echo $! >"$S/$name.pid"
}
stop() { # name: how it ends on SIGTERM
  local p; p=$(cat "$S/$1.pid"); kill "$p"
  for _ in $(seq 300); do kill -0 "$p" 2>/dev/null || { rm -f "$S/$1.pid"; ok "$1 ends on SIGTERM"; return 0; }; sleep 0.1; done
  fail "$1 did not stop within 30 s"
}
cleanup() {
  status=$?
  [ $status = 0 ] || for log in "$S"/*.log; do echo "=== ${log##*/}:"; tail -12 "$log"; done
  for name in simulate server; do p=$(cat "$S/$name.pid" 2>/dev/null) && kill "$p" 2>/dev/null || true; done
  for _ in $(seq 100); do [ -n "$(ip netns pids $NS 2>/dev/null)" ] || break; sleep 0.1; done
  clear_away $NS
  [ -n "${KEEP:-}" ] || rm -rf "$S"
  exit $status
}
trap cleanup EXIT; clear_away $NS
ip netns add $NS; on ip link set lo up
start server "$KEELSON" server --data-dir "$S/data" --disable agent,dns,ingress,local-storage,metrics,policy,proxy,snapshots,load-balancer --bind-address 127.0.0.1 --node-ip 127.0.0.1
within 60 "the server answers" k get --raw /readyz
count() { [ "$(k get "${@:2}" --no-headers 2>/dev/null | wc -l)" = "$1" ]; }
ready() { [ "$(k get nodes --no-headers 2>/dev/null | grep -c ' Ready ')" = "$1" ]; }
phases() { [ "$(k get pods --field-selector "status.phase=$2" -l "$3" --no-headers 2>/dev/null | wc -l)" = "$1" ]; }
deployment() { printf 'apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: %s, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: i, readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}}]}}}\n' "$1"; }
job() { printf 'apiVersion: batch/v1\nkind: Job\nmetadata: {name: sum}\nspec: {completions: 4, parallelism: 2, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}\n'; }

start simulate "$KEELSON" simulate --nodes "$NODES" --kubeconfig "$S/data/admin.kubeconfig" --delay 0s..1s --job-time 2s --labels zone=z --delete-nodes-on-exit
within 60 "$NODES nodes are Ready" ready "$NODES"
count "$NODES" nodes -l zone=z,simulate.keelson.dev/node=true || fail "the nodes' labels"
deployment $((NODES * 2)) | k apply -f - >/dev/null
within 120 "twice as many pods are ready" k rollout status deployment/web --timeout=1s
[ "$(k get pods -o jsonpath='{range .items[*]}{.status.podIP}{"\n"}{end}' | sort -u | grep -c .)" = $((NODES * 2)) ] && ok "each has an address of its own" || fail "addresses"
job | k apply -f - >/dev/null
within 60 "a job is complete" k wait --for=condition=complete job/sum --timeout=1s
node=$(k get pods -l app=web -o jsonpath='{.items[0].spec.nodeName}')
k drain "$node" --ignore-daemonsets --delete-emptydir-data --timeout=20s >/dev/null 2>&1 && ok "a node is drained" || fail "drain"
k uncordon "$node" >/dev/null; within 10 "and takes pods again" ready "$NODES"
k annotate node "$node" simulate.keelson.dev/not-ready=true >/dev/null
within 30 "it isn't ready while its annotation says so" ready $((NODES - 1))
k annotate node "$node" simulate.keelson.dev/not-ready- >/dev/null
within 30 "and then it is" ready "$NODES"
k annotate node "$node" simulate.keelson.dev/down=true >/dev/null
within 90 "a node that is down is noticed" ready $((NODES - 1))
k annotate node "$node" simulate.keelson.dev/down- >/dev/null
within 60 "and it comes back" ready "$NODES"
k delete deployment/web job/sum --wait=false >/dev/null
within 60 "pods end" count 0 pods
stop simulate
count 0 nodes && ok "it took its nodes away" || fail "nodes are left"

start simulate "$KEELSON" simulate --nodes "$NODES" --kubeconfig "$S/data/admin.kubeconfig" --stages examples/stages/fast.yaml --delete-nodes-on-exit
within 60 "$NODES nodes are Ready by stages" ready "$NODES"
deployment $((NODES * 2)) | k apply -f - >/dev/null
within 120 "pods are ready by stages" k rollout status deployment/web --timeout=1s
job | k apply -f - >/dev/null
within 60 "a job is complete by stages" k wait --for=condition=complete job/sum --timeout=1s
k delete deployment/web job/sum --wait=false >/dev/null
within 60 "pods end by stages" count 0 pods
stop simulate
count 0 nodes && ok "it took its nodes away" || fail "nodes are left"
printf 'apiVersion: kwok.x-k8s.io/v1alpha1\nkind: Stage\nmetadata: {name: s}\nspec: {resourceRef: {kind: Pod}, selector: {}, next: {statusTemplate: "{{ upper .a }}"}}\n' >"$S/stage.yaml"
said=$(on "$KEELSON" simulate --nodes 1 --kubeconfig "$S/data/admin.kubeconfig" --stages "$S/stage.yaml" 2>&1) && fail "a stage that can't be honoured" || true
[[ $said = *'stage "s"'*upper* ]] && ok "a stage that can't be honoured is refused by name" || fail "refusal: $said"
