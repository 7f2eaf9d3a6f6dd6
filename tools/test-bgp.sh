#!/bin/bash
# test-bgp.sh: a cluster of two machines (network namespaces joined by a bridge) tells a router, GoBGP in a third one, of load balancers' addresses: both families,
# every node that takes them in, policy Local, nodes that are left out, emptied or silent, restarts of this program and of the router, passwords, a wrong number.
# What the router learns becomes its kernel's routes, and is asked for. Two minutes.
# env: KEELSON=program, GOBGP=directory of gobgpd and gobgp (else built there from their Go module, with go from PATH), KUBECTL=kubectl
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}
GOBGP=${GOBGP:-$LAB/gobgp} VERSION=v4.7.0
export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
KUBECTL=${KUBECTL:-kubectl} S=$(mktemp -d /tmp/keelson-bgp.XXXXXX) BRIDGE=hb-bridge
[ -x "$GOBGP/gobgpd" ] || { mkdir -p "$GOBGP"; for p in gobgpd gobgp; do GOBIN=$GOBGP GOFLAGS=-mod=mod go install github.com/osrg/gobgp/v4/cmd/$p@$VERSION; done; }
in_() { nsenter --net=/run/netns/hb$1 "${@:2}"; } # 0 and 1 are nodes, 2 is the router
k() { in_ 0 "$KUBECTL" --kubeconfig "$S/admin" "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # SECONDS WHAT COMMAND…
  local began=$(date +%s%N) what=$2 limit=$(($1 * 1000)); shift 2
  until "$@" >/dev/null 2>&1; do
    [ $((($(date +%s%N) - began) / 1000000)) -lt $limit ] || { echo "$*:"; (set -x; "$@") || true; fail "$what"; }; sleep 0.1
  done
  ok "$what ($((($(date +%s%N) - began) / 1000000)) ms)"
}
says() { [ "$("${@:2}")" = "$1" ]; }
stop() { # pid file, signal
  [ -f "$1" ] || return 0
  kill "${2:--TERM}" "$(cat "$1")" 2>/dev/null || true
  for _ in $(seq 200); do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done; rm -f "$1"
}
cleanup() {
  status=$?
  [ $status = 0 ] || { echo "=== failed; server:"; tail -25 "$S/0.log" || true; echo "=== agent:"; tail -15 "$S/1.log" || true; echo "=== router:"; tail -15 "$S/2.log" || true; k get bgppeers -o yaml || true; }
  stop "$S/0.pid"; stop "$S/1.pid"; stop "$S/2.pid"
  for n in 0 1; do [ ! -d "$S/$n" ] || in_ $n "$KEELSON" uninstall --data-dir "$S/$n" --yes >/dev/null 2>&1 || true; done
  clear_away hb0 hb1 hb2 $BRIDGE
  rm -rf "$S"; exit $status
}
trap cleanup EXIT; clear_away hb0 hb1 hb2 $BRIDGE
machine() { # number, end of its address
  ip netns add hb$1
  ip link add hb$1-port type veth peer name eth0 netns hb$1
  ip link set hb$1-port master $BRIDGE up
  in_ $1 sysctl -qw net.ipv6.conf.eth0.accept_dad=0
  in_ $1 ip link set lo up; in_ $1 ip link set eth0 up
  in_ $1 ip addr add 10.79.13.$2/24 dev eth0; in_ $1 ip addr add fd79:13::$2/64 dev eth0 nodad
  [ "$2" = 254 ] || { in_ $1 ip route add default via 10.79.13.254; in_ $1 ip -6 route add default via fd79:13::254; }
}
start() { setsid nsenter --net=/run/netns/hb$1 "$KEELSON" "${@:2}" --data-dir "$S/$1" --node-name hb$1 --eviction-hard "nodefs.available<1%,nodefs.inodesFree<1%" --images "$IMAGES" >>"$S/$1.log" 2>&1 </dev/null & echo $! >"$S/$1.pid"; disown; }
server() { start 0 server --kubeconfig "$S/admin" --cluster-cidr 10.244.0.0/16,fd00:244::/48 --service-cidr 10.96.0.0/16,fd00:96::/112; }
agent() { start 1 agent "$@"; }
router() { # the nodes' password; whether it takes part in graceful restarts, which GoBGP then does whatever nodes say; the nodes' AS
  { printf '[global.config]\nas = 64500\nrouter-id = "10.79.13.254"\n[global.use-multiple-paths.config]\nenabled = true\n'
    for n in 10 11; do
      printf '[[neighbors]]\n[neighbors.config]\nneighbor-address = "10.79.13.%s"\npeer-as = %s\nauth-password = "%s"\n' $n "${3:-64512}" "${1:-}"
      printf '[neighbors.transport.config]\npassive-mode = true\n[neighbors.graceful-restart.config]\nenabled = %s\nrestart-time = 60\n' "${2:-false}"
      for f in ipv4 ipv6; do printf '[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = "%s-unicast"\n[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = %s\n' $f "${2:-false}"; done
    done; } >"$S/router.toml"
  setsid nsenter --net=/run/netns/hb2 "$GOBGP/gobgpd" -f "$S/router.toml" --api-hosts 127.0.0.1:50051 >>"$S/2.log" 2>&1 </dev/null & echo $! >"$S/2.pid"; disown
}
r() { in_ 2 "$GOBGP/gobgp" "$@"; }
# The next hops of a network at the router.
hops() { local v6=(); [[ $1 != *:* ]] || v6=(-a ipv6); r global rib "${v6[@]}" "$1" -j 2>/dev/null | grep -oE '"nexthop":"[^"]*"' | cut -d'"' -f4 | sort -u | xargs; }
install() { # makes the router's kernel lead to a network as it has learned
  local via=(); for hop in $(hops "$1"); do via+=(nexthop via "$hop"); done
  in_ 2 ip route replace "$1" "${via[@]}"
}
status() { k get bgppeer router -o "jsonpath={.status.$1}"; }
annotated() { [[ $(k get bgppeer router -o jsonpath='{.status.sessions[*].error}') == *"$1"* ]]; }
shows() { [[ $(r global rib "$1") == *"$2"* ]] || { r global rib "$1"; fail "$2 of $1"; }; }
pods() {
  for n in 0 1; do cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: web$n, labels: {app: web, at: "$n"}}
spec:
  nodeName: hb$n
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: "example.local/web:1", imagePullPolicy: Never, command: [sh, -c, "mkdir /w; echo on-hb$n >/w/index.html; exec httpd -f -p 8080 -h /w"],
     readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
YAML
  done
}
balancer() { # name, port, selector, policy
  echo "{apiVersion: v1, kind: Service, metadata: {name: $1}, spec: {type: LoadBalancer, ipFamilyPolicy: PreferDualStack, externalTrafficPolicy: $4, selector: {$3}, ports: [{port: $2, targetPort: 8080}]}}"
}
# Both nodes answer for an address: many connections from the router, by several ports.
spread() { local all; all=$(for _ in $(seq 20); do in_ 2 curl -fsS -m 2 "http://$1/" || exit 1; done | sort -u | xargs); [ "$all" = "on-hb0 on-hb1" ]; }

[ -n "${IMAGES:-}" ] || { mkdir "$S/images"; examples/image.sh "$S/images" >/dev/null; IMAGES=$S/images; }
ip link add $BRIDGE type bridge; ip link set $BRIDGE up; machine 0 10; machine 1 11; machine 2 254
in_ 2 sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv6.fib_multipath_hash_policy=1
: >"$S/0.log"; : >"$S/1.log"; : >"$S/2.log"
server; in_ 0 "$KEELSON" wait --kubeconfig "$S/admin" --timeout 60s; ok "a server"
agent --server https://10.79.13.10:6443 --token "$(in_ 0 "$KEELSON" token create --kubeconfig "$S/admin")"
within 40 "the agent's node is Ready" says True k get node hb1 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
pods | k apply -f - >/dev/null
router "" true; within 20 "a router" r neighbor

refuse() { ! k apply -f - 2>"$S/refused" <<<"$1" && grep -q "$2" "$S/refused" || fail "refused: $2"; }
peer() { echo "{apiVersion: keelson.dev/v1, kind: BGPPeer, metadata: {name: router}, spec: {localASN: 64512, peerASN: 64500, peerAddress: $1}}"; }
refuse "$(peer fe80::1)" 'neither of a link only'
refuse "$(peer 127.0.0.1)" 'nor a loopback'
refuse "$(peer '10.79.13.254, holdTimeSeconds: 2')" 'must be 0, or 3 at least'
refuse "$(peer '10.79.13.254, ebgpMultihop: 3, ttlSecurityHops: 2')" "can't be together"
pool() { cat <<YAML
apiVersion: keelson.dev/v1
kind: LoadBalancerIPPool
metadata: {name: routed}
spec:
  addresses: [203.0.113.0/27, "2001:db8:77::/120"]
  announce: {protocol: BGP, advertisements: [{communities: [$1]}, {aggregationLength: 27, aggregationLengthV6: 120, communities: ["64512:2:3"]}]}
YAML
}
refuse "$(pool '"64512:70000"')" 'must be A:B'
ok "what can't be is refused"
pool '"64512:7", no-advertise' | k apply -f - >/dev/null
k wait --for=condition=Ready pod web0 web1 --timeout=60s >/dev/null
k apply -f - >/dev/null <<<"$(peer '10.79.13.254, holdTimeSeconds: 3, connectRetrySeconds: 2')"
within 10 "both nodes have a session, says the peer's status" says "2 2" k get bgppeer router -o 'jsonpath={.status.nodes} {.status.established}'
balancer all 80 "app: web" Cluster | k apply -f - >/dev/null
within 10 "an address of each family" says "203.0.113.0 2001:db8:77::" k get svc all -o 'jsonpath={.status.loadBalancer.ingress[*].ip}'
BOTH="10.79.13.10 10.79.13.11" BOTH6="fd79:13::10 fd79:13::11"
within 3 "the router has both nodes as next hops" says "$BOTH" hops 203.0.113.0/32
within 3 "and for IPv6" says "$BOTH6" hops 2001:db8:77::/128
within 3 "and of the whole pool" says "$BOTH" hops 203.0.113.0/27
shows 203.0.113.0/32 ' 64512 '; shows 203.0.113.0/32 '64512:7, no-advertise'; shows 203.0.113.0/27 '64512:2:3'
ok "communities, large ones, and the path"
install 203.0.113.0/32; install 2001:db8:77::/128
within 10 "the address is reached" in_ 2 curl -fsS -m 2 http://203.0.113.0/
within 10 "and by both nodes" spread 203.0.113.0
within 10 "and by IPv6" spread "[2001:db8:77::]"
balancer near 81 'at: "1"' Local | k apply -f - >/dev/null
within 5 "policy Local: only the pod's node" says 10.79.13.11 hops 203.0.113.1/32
install 203.0.113.1/32; within 5 "and it is reached there" says on-hb1 in_ 2 curl -fsS -m 2 http://203.0.113.1:81/
k patch svc near -p '{"spec":{"selector":{"at":"0"}}}' >/dev/null
within 3 "the endpoint is elsewhere, and so is the route" says 10.79.13.10 hops 203.0.113.1/32

LABEL=node.kubernetes.io/exclude-from-external-load-balancers
k label node hb1 $LABEL=true >/dev/null; within 2 "a node that is left out tells nothing" says 10.79.13.10 hops 203.0.113.0/32
k label node hb1 $LABEL- >/dev/null; within 2 "and again" says "$BOTH" hops 203.0.113.0/32
k cordon hb0 >/dev/null; within 2 "a node that is to be emptied leaves it to others" says 10.79.13.11 hops 203.0.113.0/32
says 10.79.13.10 hops 203.0.113.1/32 || fail "where traffic stays, it is the pod's node still"
k uncordon hb0 >/dev/null; within 2 "and takes it again" says "$BOTH" hops 203.0.113.0/32

up() { [[ $(r neighbor 10.79.13.1$1) == *"STATE_ESTABLISHED"* ]]; }
down() { ! up "$1"; }
# Watches that the router never lacks a next hop while something happens.
watching() { while [ -e "$S/watch" ]; do says "$BOTH" hops 203.0.113.0/32 || echo "$(date +%T.%N) $(hops 203.0.113.0/32)" >>"$S/gaps"; sleep 0.05; done; }
for what in "agent 1 TERM" "agent 1 KILL" "server 0 KILL"; do
  read -r program n signal <<<"$what"
  touch "$S/watch"; rm -f "$S/gaps"; watching & watcher=$!
  up $n || fail "the session stands"; stop "$S/$n.pid" -$signal
  within 3 "SIG$signal: the router has no session with the $program" down $n; sleep 1; says "$BOTH" hops 203.0.113.0/32 || fail "and keeps its routes"; $program
  within 30 "the program is started anew, and the session stands again" up $n
  sleep 3; rm "$S/watch"; wait $watcher
  [ ! -e "$S/gaps" ] || { cat "$S/gaps"; fail "routes stay over a restart"; }
  ok "and no route was missed meanwhile"
done
stop "$S/2.pid"; router; k patch bgppeer router --type merge -p '{"spec":{"gracefulRestart":{"enabled":false}}}' >/dev/null
within 15 "without graceful restarts" says "$BOTH" hops 203.0.113.0/32; within 5 "a session" up 1
stop "$S/1.pid" -KILL; within 3 "a killed program's routes go at once" says 10.79.13.10 hops 203.0.113.0/32
agent; within 30 "and come back with it" says "$BOTH" hops 203.0.113.0/32
ip link set hb1-port down; within 5 "a machine whose cable is cut: routes to it go by the hold time of 3 s" says 10.79.13.10 hops 203.0.113.0/32
ip link set hb1-port up; within 15 "the cable is back, and so are the routes" says "$BOTH" hops 203.0.113.0/32

stop "$S/2.pid" -KILL; within 10 "the router goes, and the status says so" says 0 status established
within 10 "and why" annotated 'cannot connect to 10.79.13.254:179: Connection refused'
router; within 10 "the router is back" says "$BOTH" hops 203.0.113.0/32
within 10 "and the status says so, too" says 2 status established

SECRET=of-router-and-nodes-$RANDOM$RANDOM
stop "$S/2.pid"; router "$SECRET"; sleep 5; says 0 status established || fail "no session without the password"
k patch bgppeer router --type merge -p '{"spec":{"passwordKey":"router"}}' >/dev/null
within 10 "a password that isn't there is missed" annotated 'Secret kube-system/keelson-bgp has no key router'
k -n kube-system create secret generic keelson-bgp --from-literal=router="not-$SECRET" >/dev/null
within 20 "a wrong one doesn't get through" annotated 'cannot connect'
says "" hops 203.0.113.0/32 || fail "a route by a wrong password"
k -n kube-system create secret generic keelson-bgp --from-literal=router="$SECRET" --dry-run=client -o yaml | k apply -f - >/dev/null 2>&1
within 20 "the right one does (TCP MD5)" says 2 status established
within 5 "and routes are told" says "$BOTH" hops 203.0.113.0/32
! grep -q "$SECRET" "$S/0.log" "$S/1.log" || fail "the password is in a log"; ok "no log has it"

k patch bgppeer router --type merge -p '{"spec":{"peerASN":64999}}' >/dev/null
within 10 "a wrong number is told" annotated 'the peer is of AS 64500, and AS 64999 is expected'
k get bgppeers
k patch bgppeer router --type merge -p '{"spec":{"peerASN":64500,"ttlSecurityHops":1}}' >/dev/null
sleep 3; says 0 status established || fail "a router that sends with few hops left is not listened to"; ok "a router that might be far away is not listened to"
k patch bgppeer router --type merge -p '{"spec":{"ttlSecurityHops":null}}' >/dev/null
within 15 "and is when it may be" says 2 status established
stop "$S/2.pid"; router "" false 64500; k patch bgppeer router --type merge -p '{"spec":{"localASN":64500,"passwordKey":null}}' >/dev/null
within 15 "a router of the nodes' own AS" says "$BOTH" hops 203.0.113.0/32; shows 203.0.113.0/32 'LocalPref: 100'
k delete svc all >/dev/null; within 3 "a service goes, and its routes" says "" hops 203.0.113.0/32
k delete bgppeer router >/dev/null; within 3 "a peer goes, and all of its" says "" hops 203.0.113.1/32
within 5 "and nothing is shown of it" says "" k get node hb0 -o 'jsonpath={.metadata.annotations.keelson\.dev/bgp-sessions}'
echo "test-bgp: all well"
