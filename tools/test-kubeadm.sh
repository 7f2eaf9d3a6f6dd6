#!/bin/bash
# test-kubeadm.sh: a machine with upstream's kubelet, containerd and kube-proxy joins a server of ours by `kubeadm join`, unmodified; pods and services
# across, logs and exec; then the parts are exchanged one by one: our proxy for kube-proxy, our kubelet over containerd, our runtime under upstream's
# kubelet. Not in the gate: the programs are built from Go modules first (conformance/build.sh kubeadm). Two minutes beside that.
# env: KEELSON=program, RUNTIME=containerd|keelson (ours from the beginning: no plug-ins, and only the proxy is exchanged), NET=first three numbers of the machines' network, KUBECTL=kubectl, KEEP=1 keeps the logs
set -euo pipefail
cd "$(dirname "$0")/.."; . conformance/lib/env.sh
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NET=${NET:-10.79.11} KUBECTL=${KUBECTL:-kubectl} CNI_BIN=${CNI_BIN:-/usr/lib/cni} RUNTIME=${RUNTIME:-containerd}
NEEDED="kubeadm kubelet kube-proxy"; [ $RUNTIME = keelson ] || NEEDED+=" containerd containerd-shim-runc-v2 ctr runc"
for p in $NEEDED; do command -v $p >/dev/null || { conformance/build.sh kubeadm; break; }; done
command -v "$KUBECTL" >/dev/null || conformance/build.sh kubectl
# Of the suite's images those of pods, and the one of sandboxes.
ls "$LAB"/images/pause_*.tar >/dev/null 2>&1 || { conformance/build.sh quick; conformance/images.sh >/dev/null; }
[ $RUNTIME = keelson ] || [ -x "$CNI_BIN/ptp" ] || { echo "CNI plug-ins are missing: apt-get install containernetworking-plugins" >&2; exit 1; }
S=$(mktemp -d /tmp/keelson-kubeadm.XXXXXX) BRIDGE=klk-bridge N=klk1
PAUSE=''; [ $RUNTIME = keelson ] || { PAUSE=$(ls "$LAB"/images/pause_*.tar | tail -1); PAUSE_IMAGE=registry.k8s.io/pause:$(basename "$PAUSE" .tar | sed 's/.*_//'); }
in0() { nsenter --net=/run/netns/klk0 "$@"; }
# In all namespaces of the other machine.
in1() { nsenter -t "$(cat "$S/1.inner")" -m -u -i -p -n -- "$@"; }
k() { in0 "$KUBECTL" --kubeconfig "$S/admin" --request-timeout=20s "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # seconds, what, command
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { (set -x; "$@") || true; fail "$what"; }; sleep 0.2; done; ok "$what"
}
stop() { # pid file, signal
  [ -f "$1" ] || return 0
  kill "${2:--TERM}" "$(cat "$1")" 2>/dev/null || true
  for _ in $(seq 200); do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done; rm -f "$1"
}
cleanup() {
  status=$?; set +e
  [ $status = 0 ] || for log in "$S"/0.log "$S"/join*.log "$S"/1/kubelet.log "$S"/1/containerd.log "$S"/proxy.log "$S"/runtime.log; do [ ! -e "$log" ] || { echo "=== ${log##*/}:"; tail -n 15 "$log"; }; done
  stop "$S/proxy.pid"; stop "$S/runtime.pid"; stop "$S/0.pid"
  # With its first process the machine goes, and all that runs in it.
  stop "$S/1.pid" -KILL
  [ ! -d "$S/0" ] || in0 "$KEELSON" uninstall --data-dir "$S/0" --yes >/dev/null 2>&1 || true
  clear_away klk0 klk1 $BRIDGE
  find /sys/fs/cgroup -depth -type d -path "*/$N*" -exec rmdir {} \; 2>/dev/null || true
  grep -F "$S/" /proc/mounts | cut -d' ' -f2 | sort -r | while read -r m; do umount "$m" 2>/dev/null || true; done
  [ -n "${KEEP:-}" ] || rm -rf "$S"
  exit $status
}
trap cleanup EXIT; clear_away klk0 klk1 $BRIDGE
ip link add $BRIDGE type bridge; ip link set $BRIDGE up
for n in 0 1; do
  ip netns add klk$n; ip link add klk$n-port type veth peer name eth0 netns klk$n; ip link set klk$n-port master $BRIDGE up
  nsenter --net=/run/netns/klk$n bash -c "ip link set lo up; ip link set eth0 up; ip addr add $NET.1$n/24 dev eth0; ip route add default via $NET.254
    sysctl -qw net.ipv4.ip_forward=1"
done

# The server. Its nodes reach others' pods by routes, which a node with plug-ins of its own can have, too.
mkdir -p "$S/images" "$S/1/images"; examples/image.sh "$S/images" >/dev/null; cp "$S/images/web.tar" $PAUSE "$S/1/images"
setsid nsenter --net=/run/netns/klk0 "$KEELSON" server --data-dir "$S/0" --kubeconfig "$S/admin" --node-name klk0 --node-ip $NET.10 --network host-gw \
  --eviction-hard "nodefs.available<1%,nodefs.inodesFree<1%" --images "$S/images" >>"$S/0.log" 2>&1 </dev/null & echo $! >"$S/0.pid"; disown
in0 "$KEELSON" wait --kubeconfig "$S/admin" --timeout 120s; ok "a server"

# The machine.
CNI_BIN=$CNI_BIN setsid nsenter --net=/run/netns/klk1 unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc \
  tools/kubeadm/node.sh "$S/1" $N ${PAUSE_IMAGE:-} >"$S/1.log" 2>&1 </dev/null & echo $! >"$S/1.pid"; disown
# That is nsenter, which has become unshare: its child is process 1 of the machine.
inner() { pgrep -P "$(cat "$S/1.pid")" | head -1 >"$S/1.inner" && [ -s "$S/1.inner" ]; }
within 10 "a machine" inner
within 120 "it is up, with its images" test -e "$S/1/up"
beside() { # name, command: on the machine, its pid in ours
  # What is expanded in the background would be a child, too.
  local name=$1 machine entered; shift; machine=$(cat "$S/1.inner")
  setsid nsenter -t "$machine" -m -u -i -p -n -- "$@" >>"$S/$name.log" 2>&1 </dev/null & entered=$!; disown
  for _ in $(seq 50); do ! pgrep -P $entered >"$S/$name.pid" || return 0; sleep 0.1; done; fail "$name doesn't start"
}
ours=$S/1/keelson.sock
# Our runtime; with more flags once there is a certificate by which it may read the cluster.
runtime() {
  beside runtime "$KEELSON" runtime --container-runtime-endpoint "unix://$ours" --data-dir "$S/1/runtime" --cgroup-root /$N --images "$S/images" "$@"
  within 60 "our runtime serves CRI" test -S "$ours"
}
SOCKET=/run/containerd/containerd.sock; [ $RUNTIME != keelson ] || { SOCKET=$ours; runtime; }

# What kubeadm tells of a cluster's tokens it tells of ours.
in0 kubeadm token create --kubeconfig "$S/admin" >/dev/null 2>"$S/token.log" || { cat "$S/token.log"; fail "kubeadm token create"; }
in0 kubeadm token list --kubeconfig "$S/admin" | grep -q 'system:bootstrappers:kubeadm:default-node-token' || fail "kubeadm token list"
ok "kubeadm makes and lists tokens"
read -ra JOIN <<<"$(in0 "$KEELSON" token create --kubeadm --print-join-command --kubeconfig "$S/admin")"
[ "${JOIN[0]} ${JOIN[1]}" = "kubeadm join" ] || fail "the command: ${JOIN[*]}"
JOIN[2]=$NET.10:6443

# Only for where this runs: a machine in namespaces, whose kernel and cgroups kubeadm's look at the system doesn't like, and whose cgroups are beside others'.
SANDBOX=(--ignore-preflight-errors=SystemVerification --patches "$S/patches" --cri-socket "unix://$SOCKET")
mkdir "$S/patches"; cat >"$S/patches/kubeletconfiguration.yaml" <<Y
failCgroupV1: false
failSwapOn: false
cgroupRoot: /$N
cgroupDriver: cgroupfs
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
resolvConf: /etc/resolv.conf
Y
# A token whose group isn't kubeadm's doesn't tell what the cluster is.
read -ra OTHER <<<"$(in0 "$KEELSON" token create --kubeconfig "$S/admin" | sed 's/\.[0-9a-f]\{64\}$//')"
as_token() { in0 curl -sk -m 10 -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $1" "https://$NET.10:6443/api/v1/namespaces/kube-system/configmaps/$2"; }
for m in kubeadm-config kubelet-config; do
  [ "$(as_token "${JOIN[4]}" $m)" = 200 ] && [ "$(as_token "${OTHER[0]}" $m)" = 403 ] || fail "who reads $m"; done; ok "who may read what kubeadm reads"

before=$(date +%s%N)
in1 "${JOIN[@]}" "${SANDBOX[@]}" -v 1 >"$S/join.log" 2>&1 || { tail -n 40 "$S/join.log"; fail "kubeadm join"; }
ok "kubeadm join, in $((($(date +%s%N) - before) / 1000000)) ms"
grep -q 'This node has joined the cluster' "$S/join.log" || fail "what kubeadm says"
registered() { k get node $N; }
within 30 "its node is there" registered
range() { [ -n "$(k get node $N -o jsonpath='{.spec.podCIDR}')" ]; }
within 30 "and has a share of the pods' addresses" range
identity() { # file, who: nodes may act as these; the file is the kubelet's, and one line
  in1 sed "s|^    client-certificate:|    as: $2\n&|" /etc/kubernetes/kubelet.conf >"$1"; grep -q "as: $2" "$1" || fail "$1"
}
identity "$S/1/proxy.kubeconfig" system:kube-proxy
identity "$S/1/network.kubeconfig" system:serviceaccount:kube-system:keelson-policy
with_network() { stop "$S/runtime.pid"; rm -f "$ours"; runtime --kubeconfig "$S/1/network.kubeconfig" --network host-gw --node-ip $NET.11 --hostname-override $N; }
RANGE=$(k get node $N -o jsonpath='{.spec.podCIDR}') OURS=$(k get node klk0 -o jsonpath='{.spec.podCIDR}')

if [ $RUNTIME = keelson ]; then with_network; else
# The network of its pods, as its administrator brings it: plug-ins with the node's share, and a route to the other node's.
cat >"$S/1/etc/cni/net.d/10-ptp.conflist" <<C
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "$RANGE"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
C
in1 ip route add "$OURS" via $NET.10
fi
ready() { [ "$(k get node $N -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = "${1:-True}" ]; }
within 60 "the node is Ready" ready
[ "$(k get node $N -o jsonpath='{.status.nodeInfo.containerRuntimeVersion}' | cut -d: -f1)" = $RUNTIME ] || fail "the runtime of the node"
cat >"$S/1/proxy.yaml" <<C
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $S/1/proxy.kubeconfig}
clusterCIDR: 10.244.0.0/16
hostnameOverride: $N
mode: nftables
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
C
beside proxy kube-proxy --config "$S/1/proxy.yaml"

pod() { # name, node
  cat <<Y
---
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {app: web, at: $1}}
spec:
  nodeName: $2
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: "example.local/web:1", imagePullPolicy: Never, command: [sh, -c, "mkdir /w; echo $1 >/w/index.html; echo serving; exec httpd -f -p 8080 -h /w"],
     readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: $1}
spec: {type: NodePort, selector: {at: $1}, ports: [{port: 80, targetPort: 8080}]}
Y
}
get() { k exec "$1" -- timeout 5 wget -qO- "$2"; }
says() { [ "$("${@:2}")" = "$1" ]; }
ip_of() { k get pod "$1" -o jsonpath='{.status.podIP}'; }
port_of() { k get svc "$1" -o jsonpath='{.spec.ports[0].nodePort}'; }
{ pod here klk0; pod there $N; } | k apply -f - >/dev/null
within 90 "pods on both nodes" k wait --for=condition=Ready pod here there --timeout=1s
works() { # what was exchanged
  within 20 "$1: logs" says serving k logs there
  within 20 "$1: exec" says said k exec there -- echo said
  within 20 "$1: pod to pod, there" says there get here "http://$(ip_of there):8080/"
  within 20 "$1: pod to pod, and back" says here get there "http://$(ip_of here):8080/"
  within 20 "$1: a service from its pod, by name" says here get there http://here.default.svc.cluster.local/
  within 20 "$1: a service that leads to its pod" says there get here http://there/
  within 20 "$1: its node port" says here in0 curl -fsS -m 5 "http://$NET.11:$(port_of here)/"
}
works "upstream's kubelet, $RUNTIME, kube-proxy"
serving() { k get csr -o jsonpath='{range .items[*]}{.spec.signerName} {.status.conditions[*].type}{"\n"}{end}' | grep -q 'kubernetes.io/kubelet-serving Approved'; }
within 5 "the kubelet's serving certificate was approved" serving

# Without a proxy there are no services.
stop "$S/proxy.pid"; in1 nft delete table ip kube-proxy; in1 nft delete table ip6 kube-proxy 2>/dev/null || true
unserved() { ! get there "http://$(k get svc here -o jsonpath='{.spec.clusterIP}')/"; }
within 10 "kube-proxy is gone" unserved
beside proxy "$KEELSON" proxy --kubeconfig "$S/1/proxy.kubeconfig" --hostname-override $N --cluster-cidr 10.244.0.0/16
works "our proxy in kube-proxy's place"

if [ $RUNTIME = containerd ]; then
# Our kubelet, over the same containerd, by the same certificates. Its pods are upstream's kubelet's.
started() { k get pod there -o jsonpath='{.status.containerStatuses[0].containerID}'; }
was=$(started)
cat >"$S/1/keelson-kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}, webhook: {enabled: true}, anonymous: {enabled: false}}
authorization: {mode: Webhook}
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
tlsCertFile: /var/lib/kubelet/pki/kubelet-server-current.pem
tlsPrivateKeyFile: /var/lib/kubelet/pki/kubelet-server-current.pem
cgroupRoot: /$N
evictionHard: {nodefs.available: 1%, memory.available: 10Mi}
Y
printf '#!/bin/sh\nexec "%s" kubelet --kubeconfig /etc/kubernetes/kubelet.conf --config "%s/1/keelson-kubelet.yaml" --container-runtime-endpoint unix:///run/containerd/containerd.sock --hostname-override %s --node-ip %s --root-dir /var/lib/kubelet\n' \
  "$KEELSON" "$S" $N $NET.11 >"$S/1/ours"; chmod +x "$S/1/ours"
# The pid is one of the machine's.
mv "$S/1/ours" "$S/1/kubelet.command"; in1 sh -c "kill \$(cat '$S/1/kubelet.pid')"
runs() { grep -q 'the kubelet runs' "$S/1/kubelet.log"; }
within 60 "our kubelet in upstream's place" runs
works "our kubelet over containerd"
[ "$(started)" = "$was" ] || fail "containers were started anew"; ok "no container was started anew"
pod later $N | k apply -f - >/dev/null; within 60 "and starts pods" k wait --for=condition=Ready pod later --timeout=1s
k delete pod later --timeout=30s >/dev/null; k delete svc later >/dev/null; ok "and ends them"

# Our runtime and its network under upstream's kubelet: another socket in the kubelet's configuration, no plug-ins, no routes by hand.
k delete pod here there --timeout=30s >/dev/null
touch "$S/1/hold"; rm "$S/1/kubelet.command"; in1 sh -c "kill \$(cat '$S/1/kubelet.pid')"
in1 ip route del "$OURS"; rm "$S/1/etc/cni/net.d/10-ptp.conflist"
with_network
in1 sed -i "s|unix://$SOCKET|unix://$ours|" /var/lib/kubelet/config.yaml; rm "$S/1/hold"
taken() { [ "$(k get node $N -o jsonpath='{.status.nodeInfo.containerRuntimeVersion}' | cut -d: -f1)" = keelson ] && ready; }
within 90 "upstream's kubelet over our runtime" taken
{ pod here klk0; pod there $N; } | k apply -f - >/dev/null
within 90 "pods on both nodes" k wait --for=condition=Ready pod here there --timeout=1s
works "our runtime under upstream's kubelet"
fi
policy() { echo '{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed}, spec: {podSelector: {matchLabels: {at: there}}, policyTypes: [Ingress]}}'; }
policy | k apply -f - >/dev/null
closed() { ! k exec here -- timeout 2 wget -qO- "http://$(ip_of there):8080/"; }
within 30 "its network policies hold" closed; k delete networkpolicy closed >/dev/null
within 30 "and let go" says there get here "http://$(ip_of there):8080/"

# A pod of the machine's own, which no drain ends.
in1 mkdir -p /etc/kubernetes/manifests
in1 tee /etc/kubernetes/manifests/own.yaml >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "example.local/web:1", imagePullPolicy: Never, command: [httpd, -f, -p, "8090"], readinessProbe: {tcpSocket: {port: 8090}, periodSeconds: 1}}]
Y
within 60 "a static pod, and its mirror" k wait --for=condition=Ready pod/own-$N --timeout=1s
runs_own() { in1 pgrep -f 'httpd -f -p 8090'; }
runs_own >/dev/null || fail "the static pod's process"

# It leaves as it came.
k drain $N --ignore-daemonsets --force --delete-emptydir-data --grace-period=1 --timeout=60s >/dev/null 2>&1 || fail "drain"
touch "$S/1/hold"; in1 sh -c "kill \$(cat '$S/1/kubelet.pid')"
in1 kubeadm reset -f --cri-socket "unix://$ours" >"$S/reset.log" 2>&1 || { cat "$S/reset.log"; fail "kubeadm reset"; }
for f in etc/kubernetes/kubelet.conf etc/kubernetes/pki/ca.crt etc/kubernetes/manifests/own.yaml var/lib/kubelet/config.yaml; do
  [ ! -e "$S/1/$f" ] || fail "kubeadm reset leaves $f"; done
! runs_own >/dev/null || fail "kubeadm reset leaves a pod"
k delete node $N >/dev/null; ok "kubeadm reset, and the node is taken out"
routed() { ! in0 ip route show proto 107 | grep -qF "$RANGE"; }
within 20 "and the route to it" routed
