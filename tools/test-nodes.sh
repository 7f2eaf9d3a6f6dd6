#!/bin/bash
# test-nodes.sh: two machines (network namespaces joined by a bridge) become one cluster, and come apart again: join, pods
# and services across nodes, load balancers, DNS, logs and exec, silence, rejoin, a name that is taken, removal without a trace. A minute.
# env: KEELSON=program, NETWORK=vxlan|vxlan-direct|host-gw|wireguard, NET=first three numbers of the machines' network, KUBECTL=kubectl
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NET=${NET:-10.79.7} LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}
export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
KUBECTL=${KUBECTL:-kubectl} S=$(mktemp -d /tmp/keelson-nodes.XXXXXX) BRIDGE=kln-bridge
in0() { nsenter --net=/run/netns/kln0 "$@"; }
in1() { nsenter --net=/run/netns/kln1 "$@"; }
in2() { nsenter --net=/run/netns/kln2 "$@"; } # a machine that is no node
k() { in0 "$KUBECTL" --kubeconfig "$S/admin" "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
# Until a command succeeds: `within SECONDS WHAT COMMAND…`
within() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "$*:"; (set -x; "$@") || true; fail "$what"; }; sleep 0.1; done; ok "$what"
}
machine() { # number
  ip netns add kln$1
  ip link add kln$1-port type veth peer name eth0 netns kln$1
  ip link set kln$1-port master $BRIDGE up
  nsenter --net=/run/netns/kln$1 bash -c "ip link set lo up; ip link set eth0 up; ip addr add $NET.1$1/24 dev eth0; ip route add default via $NET.254
    sysctl -qw net.ipv4.ip_forward=1"
}
stop() { # pid file, signal
  [ -f "$1" ] || return 0
  kill "${2:--TERM}" "$(cat "$1")" 2>/dev/null || true
  for _ in $(seq 200); do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done; rm -f "$1"
}
cleanup() {
  status=$?
  [ $status = 0 ] || { echo "=== failed; server:"; tail -25 "$S/0.log" || true; echo "=== agent:"; tail -25 "$S/1.log" || true; }
  stop "$S/0.pid"; stop "$S/1.pid"; stop "$S/2.pid"
  for n in 0 1; do [ ! -d "$S/$n" ] || nsenter --net=/run/netns/kln$n "$KEELSON" uninstall --data-dir "$S/$n" --yes >/dev/null 2>&1 || true; done
  clear_away kln0 kln1 kln2 $BRIDGE
  rm -rf "$S"; exit $status
}
trap cleanup EXIT; clear_away kln0 kln1 kln2 $BRIDGE
ip link add $BRIDGE type bridge; ip link set $BRIDGE up
machine 0; machine 1; machine 2
in0 ip addr add $NET.20/24 dev eth0 # another way to the server, which will be gone
EVICT="nodefs.available<1%,nodefs.inodesFree<1%"
server() {
  setsid nsenter --net=/run/netns/kln0 "$KEELSON" server --data-dir "$S/0" --kubeconfig "$S/admin" --node-name kln0 --node-ip $NET.10 --eviction-hard "$EVICT" ${IMAGES:+--images "$IMAGES"} ${NETWORK:+--network "$NETWORK"} >>"$S/0.log" 2>&1 </dev/null & echo $! >"$S/0.pid"; disown
}
agent() { # more flags
  setsid nsenter --net=/run/netns/kln1 "$KEELSON" agent --data-dir "$S/1" --node-name kln1 --network-interface eth0 --eviction-hard "$EVICT" ${IMAGES:+--images "$IMAGES"} "$@" >>"$S/1.log" 2>&1 </dev/null & echo $! >"$S/1.pid"; disown
}
ready() { [ "$(k get node kln1 -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = "${1:-True}" ]; }
pods() { # a pod on each node, and a service over both
  for n in 0 1; do cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: web$n, labels: {app: web, on: "$n"}}
spec:
  nodeName: kln$n
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: "example.local/web:1", imagePullPolicy: Never, command: [sh, -c, "mkdir /w; echo on-kln$n >/w/index.html; echo serving; exec httpd -f -p 8080 -h /w"],
     readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: web$n}
spec: {type: NodePort, selector: {on: "$n"}, ports: [{port: 80, targetPort: 8080, nodePort: 3008$n}]}
YAML
  done
}
get() { k exec "web$1" -- timeout 5 wget -qO- "$2"; } # from the pod on this node
says() { [ "$("${@:2}")" = "$1" ]; }
ip_of() { k get pod "web$1" -o jsonpath='{.status.podIP}'; }

[ -n "${IMAGES:-}" ] || { mkdir "$S/images"; examples/image.sh "$S/images" >/dev/null; IMAGES=$S/images; }
server; in0 "$KEELSON" wait --kubeconfig "$S/admin" --timeout 60s; ok "a server"

TOKEN=$(in0 "$KEELSON" token create --kubeconfig "$S/admin")
agent --server https://$NET.10:6443 --token "${TOKEN%????}0000"
for _ in $(seq 100); do kill -0 "$(cat "$S/1.pid")" 2>/dev/null || break; sleep 0.1; done
grep -q 'this is not the server of the token' "$S/1.log" && [ ! -e "$S/1/pki/ca.crt" ] || fail "a token of another cluster is refused"
ok "a token of another cluster is refused, and nothing of that server is kept"

before=$(date +%s%N); agent --server https://$NET.20:6443 --token "$TOKEN"
within 30 "the agent's node is Ready" ready
echo "         $((($(date +%s%N) - before) / 1000000)) ms from exec to Ready, as kubectl sees it"
k get node kln1 -o jsonpath='{.spec.podCIDR}' | grep -q / || fail "no pod range"

pods | k apply -f - >/dev/null
k wait --for=condition=Ready pod web0 web1 --timeout=60s >/dev/null; ok "pods on both nodes"
within 10 "pod to pod, there" says on-kln1 get 0 "http://$(ip_of 1):8080/"
within 10 "pod to pod, and back" says on-kln0 get 1 "http://$(ip_of 0):8080/"
within 10 "service from the other node, by name" says on-kln1 get 0 http://web1.default.svc.cluster.local/
within 10 "service from the agent's node, by its own DNS" says on-kln0 get 1 http://web0/
within 10 "node port of the agent, pod of the server" says on-kln0 in0 curl -fsS -m 5 http://$NET.11:30080/
within 10 "node port of the server, pod of the agent" says on-kln1 in1 curl -fsS -m 5 http://$NET.10:30081/
k patch svc web1 -p '{"spec":{"externalTrafficPolicy":"Local"}}' >/dev/null
within 10 "policy Local: not by way of another node" bash -c "! nsenter --net=/run/netns/kln1 curl -fsS -m 1 http://$NET.10:30081/"
within 10 "policy Local: where the pod is" says on-kln1 in0 curl -fsS -m 5 http://$NET.11:30081/
balancer() { # name, port, selector, policy
  echo "{apiVersion: v1, kind: Service, metadata: {name: $1}, spec: {type: LoadBalancer, externalTrafficPolicy: $4, selector: {$3}, ports: [{port: $2, targetPort: 8080}]}}"
}
addresses() { k get svc "$1" -o jsonpath='{.status.loadBalancer.ingress[*].ip}'; }
balancer all 80 "app: web" Cluster | k apply -f - >/dev/null
balancer near 81 'on: "1"' Local | k apply -f - >/dev/null
within 10 "a load balancer has both nodes' addresses" says "$NET.10 $NET.11" addresses all
for n in 0 1; do within 10 "and is reached at kln$n from outside" in2 curl -fsS -m 5 http://$NET.1$n/; done
within 10 "policy Local: the address of the pod's node" says "$NET.11" addresses near
within 10 "and is reached there from outside" says on-kln1 in2 curl -fsS -m 5 http://$NET.11:81/
k delete svc all near --timeout=10s >/dev/null; ok "load balancers go"
echo "{apiVersion: keelson.dev/v1, kind: LoadBalancerIPPool, metadata: {name: test}, spec: {addresses: [$NET.200-$NET.203]}}" | k apply -f - >/dev/null
balancer pooled 80 "app: web" Cluster | k apply -f - >/dev/null
within 10 "a pool gives a service its address" says "$NET.200" addresses pooled
within 10 "and a node answers for it" in2 curl -fsS -m 2 http://$NET.200/
k delete svc pooled --timeout=10s >/dev/null; k delete loadbalancerippool test >/dev/null; ok "and pools go"
[ "$(k get endpointslices -n kube-system -l kubernetes.io/service-name=kube-dns -o jsonpath='{.items[*].endpoints[*].nodeName}')" = "kln0 kln1" ] || fail "DNS of both nodes"
ok "cluster DNS leads to both nodes"
within 10 "logs of the agent's pod" says serving k logs web1
within 10 "exec in the agent's pod" says kln1-pod k exec web1 -- echo kln1-pod
case ${NETWORK:-vxlan} in vxlan) mtu=1450 ;; vxlan-direct) mtu=1450 ;; wireguard) mtu=1440 ;; *) mtu=1500 ;; esac
[ ${NETWORK:-vxlan} != vxlan ] || in1 ip -o link show keelson.1 | grep "mtu $mtu " >/dev/null || fail "the tunnel's MTU"
k exec web1 -- ip -o link show eth0 | grep "mtu $mtu " >/dev/null || fail "the pod's MTU"; ok "MTU $mtu"
cat <<YAML | k apply -f - >/dev/null
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  nodeSelector: {kubernetes.io/hostname: kln1}
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "example.local/web:1", imagePullPolicy: Never, command: [sleep, "100000"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
YAML
k wait --for=condition=Ready pod/keeper --timeout=60s >/dev/null || { k describe pod keeper; k describe pvc data; fail "a volume of the agent's disk"; }
ok "a volume of the agent's disk"
k exec keeper -- sh -c 'echo kept >/data/file && [ "$(df -m /data | tail -1 | awk "{print \$2}")" -lt 65 ]' || fail "its size is enforced"
[ "$(k get pv -o jsonpath='{.items[*].spec.nodeAffinity.required.nodeSelectorTerms[*].matchExpressions[*].values[*]}')" = kln1 ] || fail "it belongs to the agent's node"
[ "$(ls "$S/1/volumes/volumes" | wc -l) $(ls "$S/0/volumes/volumes" | wc -l)" = "1 0" ] || fail "it is on the agent's disk"
as_node() { in0 "$KUBECTL" --kubeconfig "$S/admin" --as "system:keelson:local-storage:$1" --as-group system:keelson:local-storage "${@:2}"; }
as_node kln0 delete pv --all --wait=false >/dev/null 2>&1 && fail "another node deletes it" || ok "another node may not delete it"
rooms() { k -n kube-system get csistoragecapacities -o jsonpath='{.items[*].nodeTopology.matchLabels.*}' | tr ' ' '\n' | sort -u | tr '\n' ' '; }
within 20 "room of both nodes is published" says "kln0 kln1 " rooms
k delete pod keeper >/dev/null; k delete pvc data >/dev/null
within 20 "the volume goes with its claim" says "" k get pv -o name
[ -z "$(ls "$S/1/volumes/volumes")" ] || fail "its file is left"
in1 ip route flush proto 107
within 5 "routes that somebody removes come back" says on-kln0 get 1 "http://$(ip_of 0):8080/"

in1 "$KEELSON" agent --data-dir "$S/2" --node-name kln1 --node-ip $NET.11 --server https://$NET.10:6443 --token "$TOKEN" >"$S/2.log" 2>&1 && fail "a second node of the same name" || true
grep -q 'already exists in the cluster' "$S/2.log" || { cat "$S/2.log"; fail "the reason for refusing a second node of the same name"; }
ok "a second node of the same name is refused"

started=$(k get pod web1 -o jsonpath='{.status.containerStatuses[0].containerID}')
in0 ip addr del $NET.20/24 dev eth0
stop "$S/1.pid" -KILL; mv "$S/1.log" "$S/1-first.log"; agent
within 20 "kill -9, and a start without token, the server by which it joined being gone" grep -q 'all components are started' "$S/1.log"
within 10 "its pod goes on" says on-kln1 get 0 "http://$(ip_of 1):8080/"
[ "$(k get pod web1 -o jsonpath='{.status.containerStatuses[0].containerID}')" = "$started" ] || fail "the pod was started anew"
uid() { k get node kln1 -o jsonpath='{.metadata.uid}'; }
was=$(uid); k delete node kln1 >/dev/null
registered() { [ -n "$(uid)" ] && [ "$(uid)" != "$was" ] && ready; }
within 30 "a living node whose object was deleted registers again" registered
within 20 "and is reached" says on-kln1 get 0 "http://$(ip_of 1):8080/"

stop "$S/1.pid"
within 90 "a silent node is not Ready" ready Unknown
agent; within 20 "and is Ready again" ready

stop "$S/1.pid"
in1 "$KEELSON" uninstall --data-dir "$S/1" --yes >/dev/null
k delete node kln1 >/dev/null
left() { # machine
  nsenter --net=/run/netns/kln$1 bash -c 'ip -o link | grep -E "kls|keelson"; ip route show proto 107; nft list tables 2>/dev/null | grep keelson' || true
  grep -F "$S/$1" /proc/mounts || true; ls -d "$S/$1" 2>/dev/null || true
}
[ -z "$(left 1)" ] || fail "the agent left behind: $(left 1)"
ok "the agent leaves nothing behind"
# The fence of WireGuard stays with its node.
alone() { ! in0 ip -o link | grep -E 'keelson\.(1|wg)' && [ -z "$(in0 ip route show proto 107 type unicast)" ]; }
within 10 "and nothing of it is left on the other node" alone
