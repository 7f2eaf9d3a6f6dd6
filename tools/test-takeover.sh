#!/bin/bash
# test-takeover.sh: Keelson and kube-apiserver take turns at one etcd, reached by TLS with client certificates, while workloads run.
# After each hand-over all objects are listed by both and compared, resourceVersions included. Three minutes, and those for building
# kube-apiserver (conformance/build.sh; needs Go).
# env: KEELSON=program, KEELSON_ETCD, KUBE_APISERVER, KUBECTL
set -euo pipefail
cd "$(dirname "$0")/.."; . conformance/lib/env.sh
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NS=klx0 IP=10.79.8.1 KUBECTL=${KUBECTL:-kubectl}
command -v "$KUBECTL" >/dev/null || conformance/build.sh kubectl
ETCD=${KEELSON_ETCD:-$(command -v etcd || { conformance/build.sh etcd >&2; command -v etcd; })}
APISERVER=${KUBE_APISERVER:-$(command -v kube-apiserver || { conformance/build.sh apiserver >&2; command -v kube-apiserver; })}
S=$(mktemp -d /tmp/keelson-takeover.XXXXXX)
on() { nsenter --net=/run/netns/$NS "$@"; }
k() { on "$KUBECTL" --kubeconfig "$S/admin" "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # seconds, what, command
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { (set -x; "$@") || true; fail "$what"; }; sleep 0.1; done; ok "$what"
}
start() { # name, command
  local name=$1; shift
  setsid nsenter --net=/run/netns/$NS "$@" >>"$S/$name.log" 2>&1 </dev/null & echo $! >"$S/$name.pid"
}
stop() { # name
  local p; p=$(cat "$S/$1.pid" 2>/dev/null) || return 0
  kill "$p" 2>/dev/null || true
  for _ in $(seq 300); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done; rm -f "$S/$1.pid"
}
cleanup() {
  status=$?
  [ $status = 0 ] || for name in keelson apiserver etcd; do echo "=== $name:"; tail -15 "$S/$name.log" 2>/dev/null || true; done
  stop keelson; stop apiserver
  [ ! -d "$S/data" ] || on "$KEELSON" uninstall --data-dir "$S/data" --yes >/dev/null 2>&1 || true
  stop etcd; clear_away $NS
  [ -n "${KEEP:-}" ] || rm -rf "$S"
  exit $status
}
trap cleanup EXIT; clear_away $NS
ip netns add $NS
on bash -c "ip link set lo up; ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up; ip addr add $IP/24 dev eth0
  ip route add default via ${IP%.*}.254; sysctl -qw net.ipv4.ip_forward=1"

# An authority of etcd's own, its certificate and a client's.
C=$S/certs; mkdir -p "$C"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=etcd-ca -keyout "$C/ca.key" -out "$C/ca.crt" 2>/dev/null
for name in server client; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name -keyout "$C/$name.key" -out "$C/$name.csr" 2>/dev/null
  printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=%sAuth\n' $name >"$C/ext"
  openssl x509 -req -in "$C/$name.csr" -CA "$C/ca.crt" -CAkey "$C/ca.key" -CAcreateserial -days 2 -extfile "$C/ext" -out "$C/$name.crt" 2>/dev/null
done
start etcd "$ETCD" --data-dir "$S/etcd" --log-level warn --listen-client-urls https://127.0.0.1:2379 --advertise-client-urls https://127.0.0.1:2379 \
  --cert-file "$C/server.crt" --key-file "$C/server.key" --client-cert-auth --trusted-ca-file "$C/ca.crt"
REACH=(--etcd-servers https://127.0.0.1:2379 --etcd-cafile "$C/ca.crt" --etcd-certfile "$C/client.crt" --etcd-keyfile "$C/client.key")
ready() { [ "$(k get --raw /readyz 2>/dev/null)" = ok ]; }
keelson() { # more options
  start keelson "$KEELSON" server --data-dir "$S/data" --kubeconfig "$S/admin" --node-name $NS --node-ip $IP --eviction-hard 'nodefs.available<1%' \
    "${REACH[@]}" "$@"
  within 60 "Keelson is ready" ready
}
only_the_api() { keelson --disable agent,dns,policy,proxy,scheduler,controllers; }
upstream() {
  local p=$S/data/pki issuer=https://kubernetes.default.svc.cluster.local
  start apiserver "$APISERVER" "${REACH[@]}" --secure-port 6443 --advertise-address $IP --service-cluster-ip-range 10.96.0.0/16 \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --enable-bootstrap-token-auth --allow-privileged \
    --client-ca-file "$p/ca.crt" --tls-cert-file "$p/apiserver.crt" --tls-private-key-file "$p/apiserver.key" \
    --kubelet-client-certificate "$p/apiserver-kubelet-client.crt" --kubelet-client-key "$p/apiserver-kubelet-client.key" \
    --service-account-issuer $issuer --service-account-key-file "$p/sa.pub" --service-account-signing-key-file "$p/sa.key" \
    --requestheader-client-ca-file "$p/front-proxy-ca.crt" --requestheader-allowed-names front-proxy-client \
    --requestheader-extra-headers-prefix X-Remote-Extra- --requestheader-group-headers X-Remote-Group --requestheader-username-headers X-Remote-User \
    --proxy-client-cert-file "$p/front-proxy-client.crt" --proxy-client-key-file "$p/front-proxy-client.key"
  within 60 "kube-apiserver is ready" ready
}
# Everything, one file a resource. What is there twice (events in two groups) is taken once.
snapshot() { # directory
  mkdir "$S/$1"
  for r in $(k api-resources --verbs=list -o name | sort); do
    case $r in events | componentstatuses | *.metrics.k8s.io) continue ;; esac
    k get "$r" -A -o json >"$S/$1/$r"
  done
}
# What a server writes for itself when it starts or runs: its identity, its address, its default roles and flow rules.
OWN=('leases.coordination.k8s.io kube-system/apiserver-.*' 'endpoints default/kubernetes' 'endpointslices.discovery.k8s.io default/kubernetes'
  'configmaps kube-system/kube-apiserver-legacy-service-account-token-tracking' 'events.events.k8s.io .*'
  'apiservices.apiregistration.k8s.io /v1beta1.metrics.k8s.io') # served within ours: not there under kube-apiserver
compare() { python3 tools/takeover/compare.py "$S/$1" "$S/$2" "${OWN[@]}" "${@:3}"; }
lives() { # the containers of the pods and how often they were started
  k -n takeover get pods -o jsonpath='{range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort
}

mkdir "$S/images"; cp "$LAB"/images/pause_*.tar "$S/images"
keelson --images "$S/images"
k apply -f tools/takeover/objects.yaml >/dev/null
within 30 "a custom resource" k apply -f - <<<'{"apiVersion":"example.org/v1","kind":"Widget","metadata":{"name":"w","namespace":"takeover"},"spec":{"ratio":0.5}}'
k -n takeover rollout status deployment/web --timeout=90s >/dev/null; k -n takeover rollout status statefulset/db --timeout=90s >/dev/null
before=$(lives); ok "workloads run"
stop keelson; only_the_api; snapshot one; stop keelson

upstream; snapshot two
compare one two || fail "kube-apiserver reads something else"; ok "what Keelson wrote is to kube-apiserver what it was to Keelson"
k -n takeover scale deployment/web --replicas=3 >/dev/null
k -n takeover patch configmap settings -p '{"data":{"by":"upstream"}}' >/dev/null
k -n takeover delete networkpolicy closed >/dev/null
k apply -f <(sed 's/takeover/second/; s/30090/30091/; s/widgets/gadgets/; s/widget/gadget/; s/Widget/Gadget/' tools/takeover/objects.yaml) >/dev/null
within 30 "a custom resource by kube-apiserver" k apply -f - <<<'{"apiVersion":"example.org/v1","kind":"Gadget","metadata":{"name":"g","namespace":"second"},"spec":{"ratio":1.5}}'
sleep 2; snapshot three; stop apiserver

only_the_api; snapshot four
compare three four || fail "Keelson reads something else"; ok "what kube-apiserver wrote is to Keelson what it was to kube-apiserver"
stop keelson
keelson --images "$S/images"
k -n takeover rollout status deployment/web --timeout=90s >/dev/null; k -n second rollout status deployment/web --timeout=90s >/dev/null
after=$(lives)
while read -r line; do [[ "$after" == *"$line"* ]] || fail "a container was restarted: $line, now: $after"; done <<<"$before"
ok "the workloads ran on, and what kube-apiserver was told is carried out"
