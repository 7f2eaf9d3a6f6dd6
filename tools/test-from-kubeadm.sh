#!/bin/bash
# test-from-kubeadm.sh: docs/from-kubeadm.md done for real: a control plane of upstream's (etcd and kube-apiserver with the keys that kubeadm makes,
# laid out as there) has objects; a snapshot of its etcd and its keys become a Keelson cluster, to which the old kubeconfig and the old
# tokens lead and in which the workloads run. Needs root, openssl, and what conformance/build.sh makes (etcd, kube-apiserver, kubectl). A minute.
set -euo pipefail
cd "$(dirname "$0")/.."; . conformance/lib/env.sh; . tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NS=klfk0 IP=10.79.84.1
for p in etcd etcdctl kube-apiserver kubectl; do [ -x "$BIN/$p" ] || { echo "there is no $BIN/$p: conformance/build.sh" >&2; exit 1; }; done
S=$(mktemp -d /tmp/keelson-from-kubeadm.XXXXXX); K=$S/etc/kubernetes P=$S/etc/kubernetes/pki
on() { nsenter --net=/run/netns/$NS "$@"; }
k() { on "$BIN/kubectl" --kubeconfig "$K/admin.conf" "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { local end=$((SECONDS + $1)) what=$2; shift 2; until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { (set -x; "$@") || true; fail "$what"; }; sleep 0.1; done; ok "$what"; }
start() { local name=$1; shift; setsid nsenter --net=/run/netns/$NS "$@" >>"$S/$name.log" 2>&1 </dev/null & echo $! >"$S/$name.pid"; }
stop() { local p; p=$(cat "$S/$1.pid" 2>/dev/null) || return 0; kill "$p" 2>/dev/null || true; for _ in $(seq 300); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done; rm -f "$S/$1.pid"; }
cleanup() {
  status=$?; [ $status = 0 ] || for name in keelson apiserver etcd; do echo "=== $name:"; tail -15 "$S/$name.log" 2>/dev/null | cut -c1-400 || true; done
  stop keelson; stop apiserver; [ ! -d "$S/keelson" ] || on "$KEELSON" uninstall --data-dir "$S/keelson" --yes >/dev/null 2>&1 || true
  stop etcd; clear_away $NS; rm -rf "$S"; exit $status
}
trap cleanup EXIT; clear_away $NS; ip netns add $NS
on bash -c "ip link set lo up; ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up; ip addr add $IP/24 dev eth0
  ip route add default via ${IP%.*}.254; sysctl -qw net.ipv4.ip_forward=1"
# kubeadm's keys: the authorities, the key of service accounts, and what these sign.
mkdir -p "$P"
authority() { openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=$2" -keyout "$P/$1.key" -out "$P/$1.crt" -addext basicConstraints=critical,CA:true -addext keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign 2>/dev/null; }
leaf() { # file, subject, authority, usage, names
  openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "$P/$1.key" -out "$P/$1.csr" 2>/dev/null
  printf 'extendedKeyUsage=%sAuth\n%s\n' "$4" "${5:+subjectAltName=$5}" >"$P/ext"; openssl x509 -req -in "$P/$1.csr" -CA "$P/$3.crt" -CAkey "$P/$3.key" -CAcreateserial -days 365 -extfile "$P/ext" -out "$P/$1.crt" 2>/dev/null
}
authority ca kubernetes; authority front-proxy-ca front-proxy-ca
leaf apiserver /CN=kube-apiserver ca server "IP:$IP,IP:10.96.0.1,DNS:kubernetes"; leaf front-proxy-client /CN=front-proxy-client front-proxy-ca client
leaf admin /O=system:masters/CN=kubernetes-admin ca client
openssl genrsa -out "$P/sa.key" 2048 2>/dev/null; openssl rsa -in "$P/sa.key" -pubout -out "$P/sa.pub" 2>/dev/null
kubeconfig() { on "$BIN/kubectl" config --kubeconfig "$K/admin.conf" "$@" >/dev/null; }
kubeconfig set-cluster kubernetes --server=https://$IP:6443 --certificate-authority="$P/ca.crt" --embed-certs
kubeconfig set-credentials kubernetes-admin --client-certificate="$P/admin.crt" --client-key="$P/admin.key" --embed-certs
kubeconfig set-context kubernetes-admin@kubernetes --cluster=kubernetes --user=kubernetes-admin; kubeconfig use-context kubernetes-admin@kubernetes
start etcd "$BIN/etcd" --data-dir "$S/etcd" --log-level warn
start apiserver "$BIN/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --secure-port 6443 --advertise-address $IP --service-cluster-ip-range 10.96.0.0/12 --authorization-mode Node,RBAC \
  --enable-admission-plugins NodeRestriction --allow-privileged --client-ca-file "$P/ca.crt" --tls-cert-file "$P/apiserver.crt" --tls-private-key-file "$P/apiserver.key" \
  --service-account-issuer https://kubernetes.default.svc.cluster.local --service-account-key-file "$P/sa.pub" --service-account-signing-key-file "$P/sa.key" \
  --requestheader-client-ca-file "$P/front-proxy-ca.crt" --requestheader-allowed-names front-proxy-client --proxy-client-cert-file "$P/front-proxy-client.crt" --proxy-client-key-file "$P/front-proxy-client.key"
within 60 "kube-apiserver is ready" k get --raw /readyz
within 30 "namespaces are there" k get namespace default kube-system
k create namespace shop >/dev/null; k -n shop create serviceaccount default >/dev/null 2>&1 || true
k -n shop create secret generic password --from-literal=is=kept >/dev/null; k -n shop create serviceaccount ci >/dev/null
k create clusterrolebinding ci --clusterrole=view --serviceaccount=shop:ci >/dev/null
k -n shop create deployment web --image=example.local/web:1 --replicas=2 >/dev/null; k -n shop expose deployment web --port=80 --target-port=8080 >/dev/null
ADDRESS=$(k -n shop get service web -o jsonpath='{.spec.clusterIP}'); TOKEN=$(k -n shop create token ci --duration=24h)
# What kubeadm's node and proxy leave behind.
k apply -f - >/dev/null <<'Y'
{apiVersion: v1, kind: Node, metadata: {name: old}, spec: {podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24]}}
Y
k apply -f - >/dev/null <<'Y'
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-proxy, namespace: kube-system, labels: {k8s-app: kube-proxy}}
spec:
  selector: {matchLabels: {k8s-app: kube-proxy}}
  template:
    metadata: {labels: {k8s-app: kube-proxy}}
    spec: {hostNetwork: true, containers: [{name: kube-proxy, image: "registry.k8s.io/kube-proxy:v1.37.2"}]}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns, kubernetes.io/cluster-service: "true", kubernetes.io/name: CoreDNS}}
spec:
  clusterIP: 10.96.0.10
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}, {name: metrics, port: 9153, protocol: TCP}]
Y
on "$BIN/etcdctl" --endpoints http://127.0.0.1:2379 snapshot save "$S/kubeadm.db" >/dev/null 2>&1; ok "a snapshot of upstream's etcd"
stop apiserver; stop etcd
# What the page says.
mkdir -p -m 700 "$S/keelson/pki"
cp "$P"/{ca,front-proxy-ca}.{crt,key} "$P"/sa.{key,pub} "$S/keelson/pki/"
"$KEELSON" store --data-dir "$S/keelson" snapshot restore "$S/kubeadm.db" >"$S/restored" || fail "the snapshot is restored: $(cat "$S/restored")"
ok "it is restored"
mkdir "$S/images"; examples/image.sh "$S/images" >/dev/null
start keelson "$KEELSON" server --data-dir "$S/keelson" --node-name new --node-ip $IP --service-cidr 10.96.0.0/12 --cluster-cidr 10.244.0.0/16 --images "$S/images" --eviction-hard 'nodefs.available<1%'
within 60 "the old kubeconfig leads to it" k get --raw /readyz
k delete node old >/dev/null; k -n kube-system delete daemonset/kube-proxy service/kube-dns >/dev/null
within 60 "the new node is Ready" k wait --for=condition=Ready node/new --timeout=1s
[ "$(k -n shop get secret password -o jsonpath='{.data.is}' | base64 -d)" = kept ] && ok "a secret is there" || fail "a secret is there"
within 90 "the workload runs" k -n shop rollout status deployment/web --timeout=1s
[ "$(k -n shop get service web -o jsonpath='{.spec.clusterIP}')" = "$ADDRESS" ] && ok "the service has its address" || fail "the service has its address"
within 20 "and answers there" on curl -sf -m 2 "http://$ADDRESS/"
[ -z "$(k -n kube-system get service kube-dns -o jsonpath='{.spec.selector}')" ] && ok "kube-dns is ours, which selects nothing" || fail "kube-dns is ours, which selects nothing"
within 60 "names are answered" k -n shop exec deployment/web -- nslookup web.shop.svc.cluster.local
[ "$(on curl -s -m 5 -o /dev/null -w '%{http_code}' --cacert "$P/ca.crt" -H "Authorization: Bearer $TOKEN" "https://$IP:6443/api/v1/namespaces/shop/pods")" = 200 ] && ok "a token of before is good" || fail "a token of before is good"
stored=$(k get --raw /api/v1/namespaces/shop/secrets/password >/dev/null && on "$KEELSON" secrets --kubeconfig "$K/admin.conf" status 2>&1) || fail "secrets status: $stored"
ok "secrets: $(tr '\n' ' ' <<<"$stored" | cut -c1-200)"
