#!/bin/bash
# test-etcd-api.sh: our store in etcd's place, in a network namespace: etcdctl's commands on it, then upstream's kube-apiserver, which makes,
# watches, lists, changes and deletes; then the store moves into a real etcd and back, by `keelson store migrate`, the API server with it.
# Ends only what it started. A minute.
# env: KEELSON=program, KUBE_APISERVER, KUBECTL, KEELSON_ETCD, KEELSON_ETCDCTL, KEELSON_ETCDUTL, KEEP=1 keeps the logs
set -euo pipefail
cd "$(dirname "$0")/.."; . conformance/lib/env.sh
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NS=${NS:-kle0} KUBECTL=${KUBECTL:-kubectl}
ETCD=${KEELSON_ETCD:-$(command -v etcd || { conformance/build.sh etcd >&2; command -v etcd; })}
ETCDCTL=${KEELSON_ETCDCTL:-$(command -v etcdctl)} ETCDUTL=${KEELSON_ETCDUTL:-$(command -v etcdutl)}
APISERVER=${KUBE_APISERVER:-$(command -v kube-apiserver || { conformance/build.sh apiserver >&2; command -v kube-apiserver; })}
S=$(mktemp -d /tmp/keelson-etcd-api.XXXXXX) URL=http://127.0.0.1:2379
on() { nsenter --net=/run/netns/$NS "$@"; }
c() { on "$ETCDCTL" --endpoints $URL "$@"; }
k() { on "$KUBECTL" --kubeconfig "$S/admin" --request-timeout=20s "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
is() { [ "$2" = "$3" ] || fail "$1: '$2', not '$3'"; ok "$1"; }
within() { # seconds, what, command
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { (set -x; "$@") || true; fail "$what"; }; sleep 0.1; done; ok "$what"
}
start() { # name, command
  local name=$1; shift
  setsid nsenter --net=/run/netns/$NS "$@" >>"$S/$name.log" 2>&1 </dev/null & echo $! >"$S/$name.pid"
}
stop() { # name: how it ends on SIGTERM
  local p; p=$(cat "$S/$1.pid" 2>/dev/null) || return 0
  kill "$p" 2>/dev/null || true
  for _ in $(seq 300); do kill -0 "$p" 2>/dev/null || { rm -f "$S/$1.pid"; return 0; }; sleep 0.1; done
  rm -f "$S/$1.pid"; kill -9 "$p" 2>/dev/null || true; fail "$1 did not stop within 30 s"
}
cleanup() {
  status=$?
  [ $status = 0 ] || for log in "$S"/*.log; do echo "=== ${log##*/}:"; tail -12 "$log"; done
  for name in watch apiserver etcd; do p=$(cat "$S/$name.pid" 2>/dev/null) && kill "$p" 2>/dev/null || true; done
  sleep 1; clear_away $NS
  [ -n "${KEEP:-}" ] || rm -rf "$S"
  exit $status
}
trap cleanup EXIT; clear_away $NS
ip netns add $NS; on ip link set lo up
# Called by etcd's name, as kubeadm and envtest do.
ln -s "$KEELSON" "$S/etcd"
ours() { start etcd "$S/etcd" --data-dir "$S/data" --listen-client-urls $URL --advertise-client-urls $URL --listen-peer-urls http://localhost:0 --watch-progress-notify-interval=5s; within 20 "our store listens as etcd" c endpoint health; }
ours
c put /a 1 >/dev/null; c put /b 2 >/dev/null
is "get" "$(c get / --prefix --print-value-only | tr '\n' ' ')" "1 2 "
is "txn" "$(printf 'mod("/a") > "0"\n\nput /a 3\ndel /b\n\nget /a\n\n' | c txn 2>&1 | head -1)" SUCCESS
is "one revision" "$(c get / --prefix -w fields | grep -c '"ModRevision" : 4')" 1
lease=$(c lease grant 100 | awk '{print $2}'); c put /leased 1 --lease="$lease" >/dev/null
is "lease keys" "$(c lease timetolive "$lease" --keys | grep -c 'attached keys(\[/leased\])')" 1
c lease keep-alive --once "$lease" >/dev/null; c lease revoke "$lease" >/dev/null; is "revoked" "$(c get /leased | wc -l)" 0
c compaction 5 --physical >/dev/null; c defrag >/dev/null; c endpoint status -w table >/dev/null; c endpoint hashkv >/dev/null; c member list >/dev/null; c alarm list
is "the past is given up" "$(c get /a --rev 2 2>&1 | grep -c '^Error.*required revision has been compacted')" 1
c snapshot save "$S/snapshot" >/dev/null 2>&1; is "etcdutl reads our snapshot" "$("$ETCDUTL" snapshot status "$S/snapshot" -w json | grep -c '"totalKey":1')" 1
c lock l true; ok "a lock is taken and given back"
c auth enable 2>/dev/null && fail "auth enable" ; c member add other --peer-urls http://x:1 2>/dev/null && fail "member add"; ok "users and members are refused"
c del /a >/dev/null

C=$S/pki; mkdir -p "$C"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=kubernetes -keyout "$C/ca.key" -out "$C/ca.crt" 2>/dev/null
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$C/sa.key" 2>/dev/null; openssl pkey -in "$C/sa.key" -pubout -out "$C/sa.pub"
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /O=system:masters/CN=admin -keyout "$C/admin.key" -out "$C/admin.csr" 2>/dev/null
echo extendedKeyUsage=clientAuth >"$C/ext"
openssl x509 -req -in "$C/admin.csr" -CA "$C/ca.crt" -CAkey "$C/ca.key" -CAcreateserial -days 2 -extfile "$C/ext" -out "$C/admin.crt" 2>/dev/null
printf 'apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]\nusers: [{name: u, user: {client-certificate: %s, client-key: %s}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n' "$C/admin.crt" "$C/admin.key" >"$S/admin"
ready() { [ "$(k get --raw /readyz)" = ok ]; }
upstream() { start apiserver "$APISERVER" --etcd-servers $URL --secure-port 6443 --bind-address 127.0.0.1 --advertise-address 10.79.23.2 --endpoint-reconciler-type none --service-cluster-ip-range 10.96.0.0/16 --cert-dir "$S/certs" \
  --client-ca-file "$C/ca.crt" --authorization-mode RBAC --disable-admission-plugins ServiceAccount --service-account-issuer https://kubernetes.default.svc \
  --service-account-key-file "$C/sa.pub" --service-account-signing-key-file "$C/sa.key"; within 90 "kube-apiserver is ready on $1" ready; }
upstream "our store"
k create configmap first >/dev/null
start watch "$KUBECTL" --kubeconfig "$S/admin" get configmaps -n default -w -o name
within 20 "a watch begins" grep -q configmap/first "$S/watch.log"
for n in 1 2 3 4 5; do k create configmap m$n --from-literal=n=$n >/dev/null; done
k patch configmap m1 -p '{"data":{"n":"9"}}' >/dev/null; k delete configmap m2 >/dev/null
is "listed" "$(k get configmaps -o name | grep -c /m)" 4
is "in pages" "$(k get --raw '/api/v1/namespaces/default/configmaps?limit=2' | grep -c '"continue"')" 1
k create -f - >/dev/null <<Y
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec: {group: example.com, scope: Namespaced, names: {plural: things, singular: thing, kind: Thing}, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}
Y
thing() { printf 'apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: t}\n' | k apply -f -; }
within 20 "a custom resource is served" thing
seen() { [ "$(grep -c configmap/m "$S/watch.log")" -ge 7 ]; }
within 10 "the watch saw all of it" seen
p=$(cat "$S/watch.pid"); kill "$p"; rm "$S/watch.pid"

version() { k get configmap m1 -o jsonpath='{.metadata.resourceVersion} {.data.n}'; }
before=$(version); stop apiserver; stop etcd
"$KEELSON" store migrate to-etcd --data-dir "$S/data" --etcd-data-dir "$S/real" --etcdutl "$ETCDUTL" 2>/dev/null
start etcd "$ETCD" --data-dir "$S/real" --log-level warn --listen-client-urls $URL --advertise-client-urls $URL --listen-peer-urls http://127.0.0.1:2380
within 20 "the store in a real etcd" c endpoint health; upstream "etcd"; is "no revision has changed" "$(version)" "$before"
k create configmap m6 >/dev/null; stop apiserver
on "$KEELSON" store migrate from-etcd --data-dir "$S/data" --etcd-servers $URL; stop etcd
ours; upstream "our store again"; is "no revision has changed" "$(version)" "$before"; k get configmap m6 >/dev/null; ok "what etcd took is there"
stop apiserver; stop etcd; ok "all end on SIGTERM"
