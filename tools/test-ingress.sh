#!/bin/bash
# test-ingress.sh: requests from outside come to pods by host and path, on a server and an agent (network namespaces joined by a bridge):
# the first Ingress, the source's address, TLS by name and its renewal, WebSocket, Gateways and routes, a port that is taken, switching off.
# env: KEELSON=program, NET=first three numbers of the machines' network, LAB=directory of programs and images. A minute.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NET=${NET:-10.79.19} LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}
export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
S=$(mktemp -d /tmp/keelson-ingress.XXXXXX) BRIDGE=kgw-bridge EVICT="nodefs.available<1%,nodefs.inodesFree<1%"
in0() { nsenter --net=/run/netns/kgw0 "$@"; }
in2() { nsenter --net=/run/netns/kgw2 "$@"; } # a machine that is no node
k() { in0 kubectl --kubeconfig "$S/admin" "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # SECONDS WHAT COMMAND…
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { (set -x; "$@") || true; fail "$what"; }; sleep 0.2; done; ok "$what"
}
machine() {
  ip netns add kgw$1; ip link add kgw$1-port type veth peer name eth0 netns kgw$1; ip link set kgw$1-port master $BRIDGE up
  nsenter --net=/run/netns/kgw$1 bash -c "ip link set lo up; ip link set eth0 up; ip addr add $NET.1$1/24 dev eth0; ip route add default via $NET.254
    sysctl -qw net.ipv4.ip_forward=1"
}
stop() {
  [ -f "$1" ] || return 0
  kill "$(cat "$1")" 2>/dev/null || true
  for _ in $(seq 200); do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done; rm -f "$1"
}
cleanup() {
  status=$?
  [ $status = 0 ] || { for n in 0 1; do echo "=== log of $n:"; tail -25 "$S/$n.log" || true; done; k get ingress,gateway,httproute -A -o yaml 2>/dev/null | grep -v '^ *f:' | tail -150 || true; k -n keelson-ingress get svc,endpointslices -o yaml 2>/dev/null | tail -80 || true; }
  stop "$S/0.pid"; stop "$S/1.pid"
  for n in 0 1; do [ ! -d "$S/$n" ] || nsenter --net=/run/netns/kgw$n "$KEELSON" uninstall --data-dir "$S/$n" --yes >/dev/null 2>&1 || true; done
  clear_away kgw0 kgw1 kgw2 $BRIDGE; rm -rf "$S"; exit $status
}
trap cleanup EXIT; clear_away kgw0 kgw1 kgw2 $BRIDGE
ip link add $BRIDGE type bridge; ip link set $BRIDGE up
machine 0; machine 1; machine 2
mkdir "$S/images"; cp "$LAB"/images/e2e-test-images_agnhost_*.tar "$S/images"
IMAGE=registry.k8s.io/e2e-test-images/agnhost:$(basename "$S"/images/*agnhost_*.tar .tar | sed 's/.*_//')
server() {
  setsid nsenter --net=/run/netns/kgw0 "$KEELSON" server --data-dir "$S/0" --kubeconfig "$S/admin" --node-name kgw0 --node-ip $NET.10 --eviction-hard "$EVICT" --images "$S/images" "$@" >>"$S/0.log" 2>&1 </dev/null & echo $! >"$S/0.pid"; disown
  in0 "$KEELSON" wait --kubeconfig "$S/admin" --timeout 120s
}
server; ok "a server"
TOKEN=$(in0 "$KEELSON" token create --kubeconfig "$S/admin")
setsid nsenter --net=/run/netns/kgw1 "$KEELSON" agent --data-dir "$S/1" --node-name kgw1 --network-interface eth0 --eviction-hard "$EVICT" --images "$S/images" --server https://$NET.10:6443 --token "$TOKEN" >>"$S/1.log" 2>&1 </dev/null & echo $! >"$S/1.pid"; disown
ready() { [ "$(k get node kgw1 -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
within 60 "the agent's node is Ready" ready
listening() { nsenter --net=/run/netns/kgw$1 ss -Hltn | grep -cE ':(7[6-9][0-9][0-9]) '; }
[ "$(listening 0 || true)$(listening 1 || true)" = 00 ] && [ -z "$(k -n keelson-ingress get svc -o name)" ] || fail "something is open that nobody asked for"
ok "nothing is open before somebody asks for it"

for name in one two; do cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: $name, labels: {app: $name}}
spec:
  nodeName: kgw$([ $name = one ] && echo 0 || echo 1)
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: "$IMAGE", args: [netexec, --http-port=8080], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: $name}
spec: {selector: {app: $name}, ports: [{name: web, port: 80, targetPort: 8080}]}
YAML
done | k apply -f - >/dev/null
k wait --for=condition=Ready pod one two --timeout=120s >/dev/null; ok "two pods"
cat >"$S/ingress.yaml" <<YAML
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: first}
spec:
  tls: [{hosts: [tls.example], secretName: cert}]
  rules:
  - host: x.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: one, port: {name: web}}}},
      {path: /hostname, pathType: Exact, backend: {service: {name: two, port: {number: 80}}}}]}
  - {host: tls.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: one, port: {number: 80}}}}]}}
  - {host: none.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: nobody, port: {number: 80}}}}]}}
YAML
k apply -f "$S/ingress.yaml" >/dev/null
addresses() { k get ingress first -o jsonpath='{.status.loadBalancer.ingress[*].ip}'; }
says() { [ "$("${@:2}")" = "$1" ]; }
ask() { in2 curl -s -m 5 -H "Host: $1" "http://$NET.$2$3"; }
code() { in2 curl -s -m 5 -o /dev/null -w '%{http_code}' -H "Host: $1" "http://$NET.10$2"; }
[ "$(k get ingress first -o jsonpath='{.spec.ingressClassName}')" = keelson ] && ok "the class is the default one" || fail "the class is the default one"
within 20 "an Ingress has the nodes' addresses" says "$NET.10 $NET.11" addresses
for at in 10 11; do
  within 10 "by host and path on $NET.$at" says two ask x.example $at /hostname
  within 10 "and by another host" says one ask tls.example $at /hostname
done
says 404 code y.example / && says 503 code none.example / && ok "404 for no rule, 503 for no endpoint" || fail "404 $(code y.example /), 503 $(code none.example /)"
says $NET.12 ask x.example 10 '/header?key=X-Forwarded-For' && says $NET.12 ask x.example 11 '/header?key=X-Real-Ip' && ok "backends are told the source" || fail "the source is $(ask x.example 10 '/header?key=X-Forwarded-For')"

cert() { openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=$1" -addext "subjectAltName=DNS:tls.example" -keyout "$S/key.pem" -out "$S/cert.pem" 2>/dev/null; k create secret tls cert --cert="$S/cert.pem" --key="$S/key.pem" --dry-run=client -o yaml | k apply -f - >/dev/null; }
tls() { in2 curl -s -m 5 --cacert "$S/cert.pem" --resolve "tls.example:443:$NET.$1" -o /dev/null -w "%{http_code} %{http_version}" https://tls.example/hostname; }
cert first; within 20 "TLS by name, HTTP/2" says "200 2" tls 11
cert second; within 20 "a renewed certificate" says "200 2" tls 10
in2 curl -sk -m 5 --resolve "other.example:443:$NET.10" https://other.example/ && fail "a name without certificate" || ok "a name without certificate is refused"
node=$(k auth can-i get secrets -n default --as system:serviceaccount:kube-system:keelson-ingress || true)
copies=$(k auth can-i get secrets -n keelson-ingress --as system:serviceaccount:kube-system:keelson-ingress || true)
[ "$node $copies" = "no yes" ] && [ "$(k -n keelson-ingress get secrets --field-selector type=kubernetes.io/tls -o name | wc -l)" = 1 ] && ok "nodes read copies of certificates that are shown, and no other secret" || fail "secrets: $node $copies"

k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: late}
spec: {type: LoadBalancer, selector: {app: one}, ports: [{port: 80, targetPort: 8080}]}
YAML
taken() { k get svc late -o jsonpath='{.status.conditions[0].message}' | grep -q ingress; }
within 10 "another load balancer is told who has the port" taken
k delete svc late >/dev/null

echo "--- the Gateway API"
stop "$S/0.pid"; server --gateway-api
accepted() { [ "$(k get gatewayclass keelson -o jsonpath='{.status.conditions[0].status}')" = True ]; }
within 30 "the class is accepted" accepted
k apply -f - >/dev/null <<YAML
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec:
  gatewayClassName: keelson
  listeners:
  - {name: web, port: 8080, protocol: HTTP}
  - {name: tls, port: 8443, protocol: HTTPS, hostname: tls.example, tls: {certificateRefs: [{name: cert}]}}
  - {name: raw, port: 9000, protocol: TCP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: shares}
spec: {gatewayClassName: keelson, listeners: [{name: web, port: 80, protocol: HTTP, hostname: shared.example}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shared}
spec: {parentRefs: [{name: shares}], rules: [{backendRefs: [{name: two, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: raw}
spec: {parentRefs: [{name: g, sectionName: raw}], rules: [{backendRefs: [{name: two, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: taken}
spec: {gatewayClassName: keelson, listeners: [{name: web, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: g}]
  rules:
  - {matches: [{path: {value: /old}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /hostname}}}], backendRefs: [{name: two, port: 80}]}
  - {matches: [{headers: [{name: which, value: two}]}], backendRefs: [{name: two, port: 80}]}
  - {backendRefs: [{name: one, port: 80}]}
YAML
within 30 "a Gateway is programmed" k wait --for=condition=Programmed gateway/g --timeout=1s
says "$NET.10 $NET.11" k get gateway g -o jsonpath='{.status.addresses[*].value}' && says 1 k get gateway g -o jsonpath='{.status.listeners[0].attachedRoutes}' && ok "it has addresses and a route" || fail "status of the gateway"
for at in 10:8080 11:8080; do
  within 10 "a route by $NET.$at" says one ask any $at /hostname
  says two ask any $at /old && ok "a rewritten path" || fail "a rewritten path"
  says two in2 curl -s -m 5 -H "which: two" http://$NET.$at/hostname && ok "by header" || fail "by header"
done
gtls() { in2 curl -s -m 5 --cacert "$S/cert.pem" --resolve "tls.example:8443:$NET.10" https://tls.example:8443/hostname; }
within 10 "a Gateway's TLS" says one gtls
within 10 "a connection that is passed on" says two in2 curl -s -m 5 http://$NET.11:9000/hostname
within 10 "Ingress's port is shared by host" says two ask shared.example 10 /hostname
says two ask x.example 10 /hostname && says 404 code y.example / && ok "and nobody else loses it" || fail "what else is on the shared port"
refused() { k get gateway taken -o jsonpath='{.status.conditions[?(@.type=="Programmed")].message}' | grep -q 'port 80'; }
within 10 "a Gateway is told that its port is taken" refused

echo "--- away again"
k delete gateway g taken shares >/dev/null; k delete ingress first >/dev/null
closed() { [ "$(listening 0 || true)$(listening 1 || true)" = 00 ] && [ -z "$(k -n keelson-ingress get svc,secrets -o name | grep -v token)" ]; }
within 40 "what isn't asked for any more is closed" closed
k apply -f "$S/ingress.yaml" >/dev/null; within 20 "it is there again" says two ask x.example 10 /hostname
stop "$S/0.pid"; server --disable ingress
gone() { ! k get ingressclass keelson && [ -z "$(k -n keelson-ingress get svc,endpointslices,secrets -o name)" ]; }
within 60 "switched off, class and services are gone" gone
[ "$(listening 0 || true)" = 0 ] && ok "and nothing listens on the server" || fail "something listens"
echo "all is well"
