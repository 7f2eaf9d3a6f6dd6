#!/bin/bash
# swap.sh: one cluster in a network namespace whose components change hands, one by one, while its workload runs. It begins with etcd and
# kube-apiserver of upstream's and all else ours, each a program of its own; then our API server takes the flags and the place of upstream's,
# CoreDNS that of our DNS, and upstream's scheduler and controllers (where conformance/build.sh components has built them) those of ours.
# At the end the API server is started as envtest does it. Ends only what it started. Three minutes.
# env: KEELSON=program, KEELSON_ETCD, KUBE_APISERVER, KUBECTL, KEEP=1 keeps the logs
set -euo pipefail
cd "$(dirname "$0")/.."; . conformance/lib/env.sh
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NS=${NS:-kls0} IP=${IP:-10.79.9.1} KUBECTL=${KUBECTL:-kubectl}
ETCD=${KEELSON_ETCD:-$(command -v etcd || { conformance/build.sh etcd >&2; command -v etcd; })}
APISERVER=${KUBE_APISERVER:-$(command -v kube-apiserver || { conformance/build.sh apiserver >&2; command -v kube-apiserver; })}
S=$(mktemp -d /tmp/keelson-swap.XXXXXX); CGROUP=/${S##*/}
on() { nsenter --net=/run/netns/$NS "$@"; }
k() { on "$KUBECTL" --kubeconfig "$S/admin" --request-timeout=20s "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # seconds, what, command
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { (set -x; "$@") || true; fail "$what"; }; sleep 0.2; done; ok "$what"
}
start() { # name, command
  local name=$1; shift
  setsid nsenter --net=/run/netns/$NS "$@" >>"$S/$name.log" 2>&1 </dev/null & echo $! >"$S/$name.pid"
}
stop() { # name: how it ends on SIGTERM
  local p; p=$(cat "$S/$1.pid" 2>/dev/null) || return 0
  kill "$p" 2>/dev/null || true
  for _ in $(seq 300); do kill -0 "$p" 2>/dev/null || { rm -f "$S/$1.pid"; return 0; }; sleep 0.1; done
  rm -f "$S/$1.pid"; kill -9 "$p" 2>/dev/null || true; echo "$1 did not stop within 30 s"
}
cleanup() {
  status=$?
  [ $status = 0 ] || for log in "$S"/*.log; do echo "=== ${log##*/}:"; tail -12 "$log"; done
  for name in dns coredns proxy kubelet runtime scheduler controllers apiserver envtest; do stop $name; done
  [ ! -d "$S/machine" ] || on "$KEELSON" uninstall --data-dir "$S/machine" --cgroup-root "$CGROUP" --yes >"$S/uninstall.log" 2>&1 || tail -3 "$S/uninstall.log"
  stop etcd; clear_away $NS
  [ -n "${KEEP:-}" ] || rm -rf "$S"
  exit $status
}
trap cleanup EXIT; clear_away $NS
ip netns add $NS
on bash -c "ip link set lo up; ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up; ip addr add $IP/24 dev eth0
  ip route add default via ${IP%.*}.254; sysctl -qw net.ipv4.ip_forward=1"

# What a cluster's operator has: an authority, a certificate a component, keys of service accounts, kubeconfigs.
C=$S/pki; mkdir -p "$C"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=kubernetes -keyout "$C/ca.key" -out "$C/ca.crt" 2>/dev/null
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$C/sa.key" 2>/dev/null; openssl pkey -in "$C/sa.key" -pubout -out "$C/sa.pub"
certificate() { # name, subject, server or client, names
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$C/$1.key" -out "$C/$1.csr" 2>/dev/null
  { echo "extendedKeyUsage=$3Auth"; [ -z "${4:-}" ] || echo "subjectAltName=$4"; } >"$C/ext"
  openssl x509 -req -in "$C/$1.csr" -CA "$C/ca.crt" -CAkey "$C/ca.key" -CAcreateserial -days 2 -extfile "$C/ext" -out "$C/$1.crt" 2>/dev/null
}
kubeconfig() { # name, subject
  certificate "$1" "$2" client
  printf 'apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: "https://%s:6443", certificate-authority: %s}}]\nusers: [{name: u, user: {client-certificate: %s, client-key: %s}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n' \
    $IP "$C/ca.crt" "$C/$1.crt" "$C/$1.key" >"$S/$1"
}
certificate apiserver /CN=kube-apiserver server IP:$IP,IP:127.0.0.1,IP:10.96.0.1,DNS:kubernetes.default.svc
certificate kubelet /CN=system:node:$NS server IP:$IP,DNS:$NS
certificate to-kubelets /O=system:masters/CN=kube-apiserver-kubelet-client client
kubeconfig admin /O=system:masters/CN=admin
for who in kube-scheduler kube-controller-manager kube-proxy keelson-dns keelson-network; do kubeconfig $who /CN=system:$who; done
kubeconfig node /O=system:nodes/CN=system:node:$NS

start etcd "$ETCD" --data-dir "$S/etcd" --log-level warn --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
ISSUER=https://kubernetes.default.svc.cluster.local
FLAGS=(--etcd-servers http://127.0.0.1:2379 --secure-port 6443 --advertise-address $IP --service-cluster-ip-range 10.96.0.0/16
  --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --enable-bootstrap-token-auth=true --allow-privileged=true
  --client-ca-file "$C/ca.crt" --tls-cert-file "$C/apiserver.crt" --tls-private-key-file "$C/apiserver.key"
  --kubelet-client-certificate "$C/to-kubelets.crt" --kubelet-client-key "$C/to-kubelets.key" --kubelet-certificate-authority "$C/ca.crt"
  --service-account-issuer $ISSUER --service-account-key-file "$C/sa.pub" --service-account-signing-key-file "$C/sa.key")
ready() { [ "$(k get --raw /readyz)" = ok ]; }
start apiserver "$APISERVER" "${FLAGS[@]}" --kubelet-preferred-address-types InternalIP; within 60 "upstream's API server is ready" ready

# What our DNS, network and policies read, upstream's roles know nobody for.
k apply -f - >/dev/null <<Y
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: keelson-reader}
rules:
- {apiGroups: [""], resources: [services, nodes, pods, namespaces], verbs: [get, list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}
- {apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: keelson-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: keelson-reader}
subjects:
- {kind: User, apiGroup: rbac.authorization.k8s.io, name: system:keelson-dns}
- {kind: User, apiGroup: rbac.authorization.k8s.io, name: system:keelson-network}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.10, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: [$IP], conditions: {ready: true}}]
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
Y
scheduler() { start scheduler "$KEELSON" scheduler --kubeconfig "$S/kube-scheduler" --leader-elect=true; }
CONTROLLERS=(--kubeconfig "$S/kube-controller-manager" --use-service-account-credentials=true --allocate-node-cidrs=true --cluster-cidr 10.244.0.0/16
  --service-cluster-ip-range 10.96.0.0/16 --root-ca-file "$C/ca.crt" --service-account-private-key-file "$C/sa.key"
  --cluster-signing-cert-file "$C/ca.crt" --cluster-signing-key-file "$C/ca.key")
controllers() { start controllers "$KEELSON" controller-manager "${CONTROLLERS[@]}"; }
dns() { start dns "$KEELSON" dns --kubeconfig "$S/keelson-dns" --bind-address $IP --cluster-cidr 10.244.0.0/16; }
mkdir -p "$S/machine" "$S/images"; cp "$LAB"/images/e2e-test-images_agnhost_*.tar "$S/images"
IMAGE=registry.k8s.io/e2e-test-images/agnhost:$(basename "$S"/images/*agnhost_*.tar .tar | sed 's/.*_//')
scheduler; controllers
start runtime "$KEELSON" runtime --container-runtime-endpoint unix://$S/cri.sock --data-dir "$S/machine" --cgroup-root $CGROUP --images "$S/images" \
  --kubeconfig "$S/keelson-network" --hostname-override $NS --node-ip $IP --network none
within 60 "our runtime serves CRI" test -S "$S/cri.sock"
cat >"$S/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {x509: {clientCAFile: $C/ca.crt}, webhook: {enabled: true}, anonymous: {enabled: false}}
authorization: {mode: Webhook}
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
tlsCertFile: $C/kubelet.crt
tlsPrivateKeyFile: $C/kubelet.key
cgroupRoot: $CGROUP
podLogsDir: $S/machine/logs/pods
evictionHard: {nodefs.available: 1%, memory.available: 10Mi}
Y
start kubelet "$KEELSON" kubelet --kubeconfig "$S/node" --config "$S/kubelet.yaml" --container-runtime-endpoint unix://$S/cri.sock \
  --hostname-override $NS --node-ip $IP --root-dir "$S/machine/kubelet"
start proxy "$KEELSON" proxy --kubeconfig "$S/kube-proxy" --hostname-override $NS --cluster-cidr 10.244.0.0/16
dns
within 60 "the node is Ready" k wait --for=condition=Ready node/$NS --timeout=1s
k apply -f - >/dev/null <<Y
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: "$IMAGE", imagePullPolicy: Never, args: [netexec, --http-port=8080]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
Y
rollout() { k rollout status deployment/web --timeout=1s; }
within 120 "a Deployment comes up" rollout
pod() { k get pods -l app=web --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }
by_name() { k exec "$(pod)" -- /agnhost connect web.default.svc.cluster.local:80 --timeout=5s; }
within 30 "a pod reaches the Service by its name (exec, DNS, proxy)" by_name

# Health and metrics, and who may see them.
code() { on curl -sk -m 5 -o /dev/null -w '%{http_code}' "$@"; }
is() { [ "$(code "${@:2}")" = "$1" ] || fail "${*:2}: $(code "${@:2}"), not $1"; }
for port in 10257 10259; do
  is 200 https://127.0.0.1:$port/healthz; is 403 https://127.0.0.1:$port/metrics
  is 200 --cert "$C/admin.crt" --key "$C/admin.key" https://127.0.0.1:$port/metrics
  is 200 -H "Authorization: Bearer $(k create token default)" https://127.0.0.1:$port/livez
  is 403 -H "Authorization: Bearer $(k create token default)" https://127.0.0.1:$port/metrics
  is 401 -H "Authorization: Bearer nobody" https://127.0.0.1:$port/metrics
done
for url in 127.0.0.1:10248/healthz 127.0.0.1:10249/metrics $IP:10256/healthz 127.0.0.1:8080/health 127.0.0.1:8181/ready 127.0.0.1:9153/metrics; do is 200 http://$url; done
ok "health and metrics on upstream's ports, the secure ones for whom the API server lets"

# A planned stop gives the Lease back at once; the next one works.
holder() { k -n kube-system get lease "$1" -o jsonpath='{.spec.holderIdentity}'; }
[ -n "$(holder kube-scheduler)" ] && [ -n "$(holder kube-controller-manager)" ] || fail "no leader"
stop scheduler; [ -z "$(holder kube-scheduler)" ] || fail "the scheduler kept its Lease"; ok "a stopped scheduler gives its Lease back"
scale() { k scale deployment/web --replicas="$1" >/dev/null; }
now() { [ "$(k get deployment web -o jsonpath='{.status.readyReplicas}')" = "$1" ]; }
pending() { [ "$(k get pods -l app=web --field-selector=status.phase=Pending -o name | wc -l)" = 1 ]; }
scale 3; within 20 "without a scheduler a pod waits" pending
scheduler; within 30 "with it the pod runs" now 3

stop apiserver; ln -s "$KEELSON" "$S/kube-apiserver"
start apiserver "$S/kube-apiserver" "${FLAGS[@]}"; within 60 "ours takes the place of kube-apiserver, with its flags" ready
scale 4; within 60 "the same components work with it" now 4; within 30 "and names are answered" by_name
if command -v coredns >/dev/null; then
  stop dns; printf '.:53 {\n bind %s\n errors\n kubernetes cluster.local in-addr.arpa {\n  kubeconfig %s\n }\n}\n' $IP "$S/keelson-dns" >"$S/Corefile"
  start coredns coredns -conf "$S/Corefile"; within 60 "CoreDNS answers in our DNS's place" by_name
  stop coredns; dns; within 30 "and ours again in CoreDNS's" by_name
fi
if command -v kube-scheduler >/dev/null && command -v kube-controller-manager >/dev/null; then
  stop scheduler; start scheduler kube-scheduler --kubeconfig "$S/kube-scheduler" --authentication-kubeconfig "$S/kube-scheduler" --authorization-kubeconfig "$S/kube-scheduler"
  scale 5; within 60 "upstream's scheduler in ours' place" now 5
  stop controllers; start controllers kube-controller-manager "${CONTROLLERS[@]}"
  scale 2; within 60 "upstream's controllers in ours' place" now 2
  stop scheduler; stop controllers; scheduler; controllers; scale 4; within 60 "and ours again in upstream's" now 4
else echo "not run: kube-scheduler and kube-controller-manager of upstream's aren't built"; fi
stop apiserver; start apiserver "$APISERVER" "${FLAGS[@]}" --kubelet-preferred-address-types InternalIP; within 60 "kube-apiserver has its place back" ready
scale 2; within 60 "and everything works with it" now 2
after=$(k get pods -l app=web -o jsonpath='{range .items[*]}{.status.containerStatuses[0].restartCount}{end}')
[ "$after" = 00 ] || fail "containers were restarted: $after"; ok "no container was restarted"
for name in dns proxy kubelet scheduler controllers; do stop $name | grep . && fail "$name didn't stop"; done; ok "all end on SIGTERM"

# As controller-runtime's envtest does it: an etcd, the program under upstream's name, and its flags.
E=$S/envtest; mkdir -p "$E"; cp "$C/apiserver.crt" "$C/apiserver.key" "$E"
start envtest "$S/kube-apiserver" --allow-privileged=true --authorization-mode=RBAC --bind-address=127.0.0.1 --cert-dir="$E" --client-ca-file="$C/ca.crt" \
  --disable-admission-plugins=ServiceAccount --etcd-servers=http://127.0.0.1:2379 --etcd-prefix=/envtest --secure-port=45999 --service-account-issuer=https://127.0.0.1:45999/ \
  --service-account-key-file="$C/sa.pub" --service-account-signing-key-file="$C/sa.key" --service-cluster-ip-range=10.0.0.0/24
e() { on "$KUBECTL" --kubeconfig "$S/admin" --server https://127.0.0.1:45999 "$@"; }
healthy() { [ "$(e get --raw /healthz)" = ok ]; }
within 20 "healthy as envtest asks" healthy
within 10 "a pod without an account, as its tests make them" e run p --image=x
stop envtest | grep . && fail "it didn't stop"; ok "the API server as envtest starts it"
