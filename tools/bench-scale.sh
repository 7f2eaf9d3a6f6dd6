#!/bin/bash
# bench-scale.sh [NODES…]: what simulated nodes cost, and what they cost the server: for each number of nodes a control plane of its own in a network
# namespace, then the nodes, then a Deployment of PODS pods over them. One line of figures for each; docs/scale.md says what they mean.
# env: KEELSON=program, KUBECTL, PODS (10000), REST seconds of rest before a measurement (60), TIME seconds of one (60), RATE nodes a second (100), OPTIONS of simulate
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NS=${NS:-klscale0} KUBECTL=${KUBECTL:-kubectl}
PODS=${PODS:-10000} REST=${REST:-60} TIME=${TIME:-60} RATE=${RATE:-100}
[ $# -gt 0 ] || set -- 100 1000 5000
on() { nsenter --net=/run/netns/$NS "$@"; }
fail() { echo "FAIL $*" >&2; exit 1; }
start() { # name, command: prints the process's number
  setsid nsenter --net=/run/netns/$NS "${@:2}" >>"$S/$1.log" 2>&1 </dev/null & echo $!
}
stop() { # process
  kill "$1" 2>/dev/null || return 0
  for _ in $(seq 600); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
  kill -9 "$1" 2>/dev/null || true
}
cleanup() {
  status=$?
  [ $status = 0 ] || for log in "$S"/*.log; do echo "=== ${log##*/}:"; tail -12 "$log"; done >&2
  for p in ${SIM:-} ${SERVER:-}; do stop "$p"; done
  clear_away $NS
  rm -rf "$S"
  exit $status
}
trap cleanup EXIT; clear_away $NS
rss() { awk '/^VmRSS/ {print $2}' "/proc/$1/status"; }
cpu() { awk '{sub(/.*\) /, ""); print ($12 + $13) * 10000}' "/proc/$1/stat"; } # in µs: the kernel counts in hundredths of seconds
now() { date +%s.%N; }
seconds() { awk -v a="$1" -v b="$2" 'BEGIN {printf "%.1f", b - a}'; }
per() { awk -v a="$1" -v b="$2" -v n="$3" 'BEGIN {printf "%.1f", (b - a) / n}'; }
k() { on "$KUBECTL" --kubeconfig "$S/data/admin.kubeconfig" "$@"; }
available() { k get deployment web -o jsonpath='{.status.availableReplicas}' 2>/dev/null || true; }
echo "program: $KEELSON ($("$KEELSON" version)), $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg)"
echo "| nodes | until all Ready, s | simulate, MiB | KiB a node | µs CPU/s a node | server, MiB | server, % of a core | $PODS pods ready, s | pods/s | CPU s for them: simulate, server | simulate, MiB | KiB a pod | µs CPU/s a node | server, MiB | server, % of a core |"
echo "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
for N in "$@"; do
  S=$(mktemp -d /tmp/keelson-scale.XXXXXX)
  ip netns add $NS; on ip link set lo up
  SERVER=$(start server "$KEELSON" server --data-dir "$S/data" --disable agent,dns,ingress,local-storage,metrics,policy,proxy,snapshots,load-balancer --bind-address 127.0.0.1 --node-ip 127.0.0.1 --cluster-cidr 10.128.0.0/9)
  for _ in $(seq 600); do k get --raw /readyz >/dev/null 2>&1 && break; kill -0 "$SERVER" 2>/dev/null || fail "the server ended"; sleep 0.1; done
  sleep 3; empty=$(rss "$SERVER")
  began=$(now)
  # shellcheck disable=SC2086
  SIM=$(start simulate "$KEELSON" simulate --nodes "$N" --starts "$RATE" --kubeconfig "$S/data/admin.kubeconfig" --log warn ${OPTIONS:-})
  for _ in $(seq 1800); do grep "^$N of $N nodes" "$S/simulate.log" >/dev/null && break; kill -0 "$SIM" || fail "simulate ended"; sleep 1; done
  grep "^$N of $N nodes" "$S/simulate.log" >/dev/null || fail "the nodes are not ready"
  up=$(seconds "$began" "$(now)")
  measure() { # sets a line of figures: simulate's MiB, its µs a node, the server's MiB and share
    sleep "$REST"
    local s0 v0 s1 v1; s0=$(cpu "$SIM") v0=$(cpu "$SERVER"); sleep "$TIME"; s1=$(cpu "$SIM") v1=$(cpu "$SERVER")
    M_SIM=$(rss "$SIM") M_SERVER=$(rss "$SERVER")
    M_SIM_CPU=$(per "$s0" "$s1" $((N * TIME))) M_SERVER_CPU=$(per "$v0" "$v1" $((TIME * 10000)))
  }
  measure
  first="| $N | $up | $((M_SIM / 1024)) | $(per 0 "$M_SIM" "$N") | $M_SIM_CPU | $((M_SERVER / 1024)) (empty $((empty / 1024))) | $M_SERVER_CPU |"
  nodes_rss=$M_SIM
  s0=$(cpu "$SIM") v0=$(cpu "$SERVER") began=$(now)
  printf 'apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: %s, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: i, resources: {requests: {cpu: 10m, memory: 16Mi}}}]}}}\n' "$PODS" | k apply -f - >/dev/null
  for _ in $(seq 3600); do [ "$(available)" != "$PODS" ] || break; sleep 0.5; done
  [ "$(available)" = "$PODS" ] || fail "of $PODS pods $(available) are ready"
  took=$(seconds "$began" "$(now)")
  spent="$(per "$s0" "$(cpu "$SIM")" 1000000), $(per "$v0" "$(cpu "$SERVER")" 1000000)"
  measure
  echo "$first $took | $(awk -v n="$PODS" -v t="$took" 'BEGIN {printf "%.0f", n / t}') | $spent | $((M_SIM / 1024)) | $(per "$nodes_rss" "$M_SIM" "$PODS") | $M_SIM_CPU | $((M_SERVER / 1024)) | $M_SERVER_CPU |"
  stop "$SIM"; stop "$SERVER"; SIM= SERVER=
  clear_away $NS; rm -rf "$S"
done
