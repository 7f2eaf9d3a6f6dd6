#!/bin/bash
# test-dev.sh: a developer's cluster of two nodes, by one command: pods on each, reached from this machine; nodes that were killed are started again; nothing
# is left of it. Half a minute. env: KEELSON=program, KUBECTL=kubectl
set -euo pipefail
cd "$(dirname "$0")/.."
LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}; export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") KUBECTL=${KUBECTL:-kubectl} S=$(mktemp -d /tmp/keelson-dev.XXXXXX)
dev() { "$KEELSON" dev "$1" --dir "$S/clusters" "${@:2}"; }
other() { "$KEELSON" dev "$1" --dir "$S/others" --kubeconfig none tried "${@:2}"; }
k() { "$KUBECTL" --kubeconfig "$S/config" "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
cleanup() {
  status=$?
  [ $status = 0 ] || tail -n 20 "$S"/clusters/*/*.log 2>/dev/null || true
  dev down --kubeconfig none tried >/dev/null 2>&1 || true; other down >/dev/null 2>&1 || true; rm -rf "$S"; exit $status
}
trap cleanup EXIT
mkdir "$S/images"; examples/image.sh "$S/images" >/dev/null
printf 'apiVersion: v1\nkind: Config\nclusters: [{name: mine, cluster: {server: "https://mine"}}]\ncontexts: [{name: own, context: {cluster: mine, user: u}}]\nusers: []\ncurrent-context: own\n' >"$S/config"
options=(--eviction-hard "nodefs.available<1%,imagefs.available<1%,nodefs.inodesFree<1%")
dev up --kubeconfig "$S/config" --images "$S/images" --nodes 2 tried -- "${options[@]}" | tail -n 2
[ "$(k get nodes -o name | wc -l)" = 2 ] || fail "two nodes"; ok "two nodes, in the kubeconfig's current context"
BRIDGE=kldev$(sed -n 's/.*"number": \([0-9]*\).*/\1/p' "$S/clusters/tried/cluster.json")
[ "$(grep -c 'name: mine' "$S/config")" = 1 ] || fail "what else the kubeconfig has stays"
k create deployment web --image=example.local/web:1 --replicas=2 --dry-run=client -o yaml |
  sed 's/^      containers:/      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io\/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}]\n      containers:/;s/^        name: web/        name: web\n        imagePullPolicy: Never\n        command: [sh, -c, "mkdir \/w; echo served >\/w\/index.html; exec httpd -f -p 8080 -h \/w"]/' |
  k apply -f - >/dev/null
k expose deployment web --type=NodePort --port=80 --target-port=8080 >/dev/null
k rollout status deployment web --timeout=60s >/dev/null
[ "$(k get pods -o 'jsonpath={.items[*].spec.nodeName}' | tr ' ' '\n' | sort | tr '\n' ' ')" = "tried-0 tried-1 " ] || fail "a pod on each node"; ok "a pod on each node"
port=$(k get svc web -o 'jsonpath={.spec.ports[0].nodePort}')
for ip in $(k get nodes -o 'jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}'); do
  for _ in $(seq 50); do [ "$(curl -fsS -m 2 "http://$ip:$port/" 2>/dev/null)" = served ] && continue 2; sleep 0.2; done; fail "served at $ip"
done
ok "reached from this machine at each node"
before=$(k get pods -o 'jsonpath={.items[*].status.containerStatuses[*].containerID}')
for n in 0 1; do kill -KILL "$(cat "$S/clusters/tried/node-$n/server.pid")"; done
dev ls | grep -Eq '^tried +2 +1 +[012] ' || fail "it is listed"
dev up --kubeconfig "$S/config" tried -- "${options[@]}" | tail -n 2
[ "$(k get pods -o 'jsonpath={.items[*].status.containerStatuses[*].containerID}')" = "$before" ] || fail "pods go on"; ok "started again, and pods went on"
other up -- "${options[@]}" >/dev/null; other down >/dev/null
k get --raw /readyz >/dev/null && ip netns exec "$BRIDGE-1" true || fail "another's cluster of the same name comes and goes"; ok "another's cluster of the same name comes and goes"
dev down --kubeconfig "$S/config" tried >/dev/null
[ "$(grep -c keelson-tried "$S/config")" = 0 ] && [ "$(grep -c 'name: mine' "$S/config")" = 1 ] && grep -q '^current-context: "\?own' "$S/config" || fail "the kubeconfig is as it was"
left=$(ip -o link | grep -E "$BRIDGE(p|:)" || true; ls /run/netns 2>/dev/null | grep "^$BRIDGE-" || true; nft list tables 2>/dev/null | grep "$BRIDGE\$" || true; grep -F "$S" /proc/mounts || true; ls "$S/clusters" | grep tried || true)
[ -z "$left" ] || fail "left behind: $left"; ok "nothing left behind"
