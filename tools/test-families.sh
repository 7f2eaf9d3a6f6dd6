#!/bin/bash
# test-families.sh: clusters of two machines (network namespaces joined by a bridge) with IPv6 alone and with both families: addresses of nodes and pods, pod to
# pod, services, node and host ports, DNS with AAAA and PTR, the way out, logs and exec. Half a minute a cluster.
# env: KEELSON=program, FAMILIES="46 64 6": clusters, the primary family first; NETWORK=vxlan|host-gw, KUBECTL=kubectl
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab} FAMILIES=${FAMILIES:-46 64 6}
export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
KUBECTL=${KUBECTL:-kubectl} S=$(mktemp -d /tmp/keelson-families.XXXXXX) BRIDGE=klf-bridge
in_() { nsenter --net=/run/netns/klf$1 "${@:2}"; } # 0 and 1 are nodes, 2 is a machine that is none
k() { in_ 0 "$KUBECTL" --kubeconfig "$S/admin" "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # SECONDS WHAT COMMAND…
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "$*:"; (set -x; "$@") || true; fail "$what"; }; sleep 0.2; done; ok "$what"
}
says() { [ "$("${@:2}")" = "$1" ]; }
stop() { # pid file
  [ -f "$1" ] || return 0
  kill "$(cat "$1")" 2>/dev/null || true
  for _ in $(seq 200); do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done; rm -f "$1"
}
down() {
  stop "$S/0.pid"; stop "$S/1.pid"
  for n in 0 1; do [ ! -d "$S/$n" ] || in_ $n "$KEELSON" uninstall --data-dir "$S/$n" --yes >/dev/null 2>&1 || true; rm -rf "${S:?}/$n" "$S/admin"; done
  clear_away klf0 klf1 klf2 $BRIDGE
}
cleanup() {
  status=$?
  [ $status = 0 ] || { echo "=== failed; server:"; tail -25 "$S/0.log" || true; echo "=== agent:"; tail -25 "$S/1.log" || true; }
  down; rm -rf "$S"; exit $status
}
trap cleanup EXIT; clear_away klf0 klf1 klf2 $BRIDGE
machine() { # number; only addresses of the cluster's families
  ip netns add klf$1
  ip link add klf$1-port type veth peer name eth0 netns klf$1
  ip link set klf$1-port master $BRIDGE up
  in_ $1 sysctl -qw net.ipv6.conf.eth0.accept_dad=0
  in_ $1 ip link set lo up; in_ $1 ip link set eth0 up
  [[ $F != *4* ]] || { in_ $1 ip addr add 10.79.9.1$1/24 dev eth0; in_ $1 ip route add default via 10.79.9.254; }
  [[ $F != *6* ]] || { in_ $1 ip addr add fd79:9::1$1/64 dev eth0 nodad; in_ $1 ip -6 route add default via fd79:9::254; }
}
start() { setsid nsenter --net=/run/netns/klf$1 "$KEELSON" "${@:2}" --data-dir "$S/$1" --node-name klf$1 --eviction-hard "nodefs.available<1%,nodefs.inodesFree<1%" --images "$IMAGES" >>"$S/$1.log" 2>&1 </dev/null & echo $! >"$S/$1.pid"; disown; }
list() { local all=(); for ((i = 0; i < ${#F}; i++)); do [ ${F:i:1} = 4 ] && all+=("$1") || all+=("$2"); done; (IFS=${3:-,}; echo "${all[*]}"); } # of IPv4, of IPv6: in the cluster's order
url() { [[ $1 != *:* ]] && echo "http://$1:$2/" || echo "http://[$1]:$2/"; }
get() { k exec "web$1" -- timeout 3 wget -qO- "$2"; } # from the pod on this node
out() { k get "$@"; }
pods() {
  for n in 0 1; do cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: web$n, labels: {app: web, on: "$n"}}
spec:
  nodeName: klf$n
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: "example.local/web:1", imagePullPolicy: Never, command: [sh, -c, "mkdir /w; echo on-klf$n >/w/index.html; echo serving; exec httpd -f -p 8080 -h /w"],
     ports: [{containerPort: 8080, hostPort: 8088}], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: web$n}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {on: "$n"}, ports: [{port: 80, targetPort: 8080, nodePort: 3008$n}]}
YAML
  done
}
[ -n "${IMAGES:-}" ] || { mkdir "$S/images"; examples/image.sh "$S/images" >/dev/null; IMAGES=$S/images; }
for F in $FAMILIES; do
  echo "=== a cluster of families $F"; : >"$S/0.log"; : >"$S/1.log"
  ip link add $BRIDGE type bridge; ip link set $BRIDGE up; machine 0; machine 1; machine 2
  start 0 server --kubeconfig "$S/admin" --cluster-cidr "$(list 10.244.0.0/16 fd00:244::/48)" --service-cidr "$(list 10.96.0.0/16 fd00:96::/112)" ${NETWORK:+--network "$NETWORK"}
  in_ 0 "$KEELSON" wait --kubeconfig "$S/admin" --timeout 60s; ok "a server"
  host=$(list 10.79.9.10 '[fd79:9::10]' ' '); token=$(in_ 0 "$KEELSON" token create --kubeconfig "$S/admin")
  start 1 agent --server "https://${host%% *}:6443" --token "$token"
  within 40 "the agent's node is Ready" says True out node klf1 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
  for n in 0 1; do
    says "$(list 10.79.9.1$n fd79:9::1$n ' ')" out node klf$n -o 'jsonpath={.status.addresses[?(@.type=="InternalIP")].address}' || fail "addresses of klf$n"
    [ "$(out node klf$n -o 'jsonpath={.spec.podCIDRs[*]}' | wc -w)" = ${#F} ] || fail "ranges of klf$n"
  done
  ok "nodes have an address and a range of each family"
  pods | k apply -f - >/dev/null
  k wait --for=condition=Ready pod web0 web1 --timeout=60s >/dev/null; ok "pods on both nodes"
  for n in 0 1; do
    [ "$(out pod web$n -o 'jsonpath={.status.podIPs[*].ip}' | wc -w) $(out pod web$n -o 'jsonpath={.status.hostIPs[*].ip}')" = "${#F} $(list 10.79.9.1$n fd79:9::1$n ' ')" ] || fail "addresses of web$n"
  done
  ok "and they have an address of each family, and their nodes'"
  for n in 0 1; do
    m=$((1 - n))
    for ip in $(out pod web$m -o 'jsonpath={.status.podIPs[*].ip}'); do within 10 "klf$n: pod to pod, $ip" says on-klf$m get $n "$(url "$ip" 8080)"; done
    for ip in $(out svc web$m -o 'jsonpath={.spec.clusterIPs[*]}'); do within 10 "klf$n: service, $ip" says on-klf$m get $n "$(url "$ip" 80)"; done
    within 10 "klf$n: service by name" says on-klf$m get $n http://web$m.default.svc.cluster.local/
    for ip in $(list 10.79.9.1$m fd79:9::1$m ' '); do
      within 10 "node port from elsewhere, $ip" says on-klf$m in_ 2 curl -gfsS -m 3 "$(url $ip 3008$m)"
      within 10 "host port from elsewhere, $ip" says on-klf$m in_ 2 curl -gfsS -m 3 "$(url $ip 8088)"
      within 10 "host port from a pod, $ip" says on-klf$m get $n "$(url $ip 8088)"
    done
  done
  says "$(list IPv4 IPv6 $'\n' | sort | tr '\n' ' ')" bash -c "$(declare -f k in_); S=$S KUBECTL=$KUBECTL; k get endpointslices -l kubernetes.io/service-name=web0 -o 'jsonpath={.items[*].addressType}' | tr ' ' '\n' | sort | tr '\n' ' '" || fail "a slice of each family"
  ok "a slice of each family"
  dns=$(out svc -n kube-system kube-dns -o 'jsonpath={.spec.clusterIPs[*]}'); [ "$(wc -w <<<"$dns")" = ${#F} ] || fail "DNS by each family"
  for server in $dns; do
    for ip in $(out svc web1 -o 'jsonpath={.spec.clusterIPs[*]}'); do
      type=A; [[ $ip != *:* ]] || type=AAAA
      within 10 "DNS at $server: $type" bash -c "$(declare -f k in_); S=$S KUBECTL=$KUBECTL; k exec web0 -- nslookup -type=$type web1.default.svc.cluster.local $server | grep -F '$ip'"
      within 10 "DNS at $server: PTR of $ip" bash -c "$(declare -f k in_); S=$S KUBECTL=$KUBECTL; k exec web0 -- nslookup $ip $server | grep -F web1.default.svc.cluster.local"
    done
  done
  for ip in $(list 10.79.9.12 fd79:9::12 ' '); do within 10 "the way out, to $ip" k exec web1 -- ping -c 1 -W 2 $ip; done
  within 10 "logs of the agent's pod" says serving k logs web1
  within 10 "exec in the agent's pod" says there k exec web1 -- echo there
  for n in 0 1; do for ip in $(list 10.79.9.1$n fd79:9::1$n ' '); do in_ 2 bash -c "exec 3<>/dev/tcp/$ip/10250" || fail "kubelet at $ip"; done; done
  for ip in $(list 10.79.9.10 '[fd79:9::10]' ' '); do says 401 in_ 2 curl -gsk -m 3 -o /dev/null -w '%{http_code}' "https://$ip:6443/api/v1/nodes" || says 403 in_ 2 curl -gsk -m 3 -o /dev/null -w '%{http_code}' "https://$ip:6443/api/v1/nodes" || fail "the API at $ip"; done
  ok "kubelets and API by each address"
  k delete pod web0 web1 --timeout=20s >/dev/null
  stop "$S/1.pid"; stop "$S/0.pid"
  for n in 0 1; do
    in_ $n "$KEELSON" uninstall --data-dir "$S/$n" --yes >/dev/null
    left=$(in_ $n nft list tables 2>/dev/null | grep keelson || true; in_ $n ip -o link | grep -E 'kls|keelson' || true; in_ $n ip -6 route | grep fd00: || true)
    [ -z "$left" ] || fail "left behind on klf$n: $left"
  done
  ok "nothing left behind"; down
done
