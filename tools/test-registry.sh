#!/bin/bash
# test-registry.sh: `keelson registry` as a cluster uses it. Two machines (network namespaces joined by a bridge) become one cluster; beside the server runs a
# registry with a certificate of the cluster's authority. skopeo pushes with a service account's token; a pod pulls with a pull secret, one without is refused; when the
# registry's blobs are cut, the second node takes them from the first (counted); who is no node gets none, and who has no secret no image. A minute.
# env: KEELSON=program, NET=first three numbers of the machines' network, KUBECTL=kubectl, SKOPEO=skopeo
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NET=${NET:-10.79.23} LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}
export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
KUBECTL=${KUBECTL:-kubectl} SKOPEO=${SKOPEO:-skopeo} S=$(mktemp -d /tmp/keelson-registry.XXXXXX) BRIDGE=klr-bridge R=$NET.10:5000
in0() { nsenter --net=/run/netns/klr0 "$@"; }
in1() { nsenter --net=/run/netns/klr1 "$@"; }
k() { in0 "$KUBECTL" --kubeconfig "$S/admin" "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # SECONDS WHAT COMMAND…
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "$*:"; (set -x; "$@") || true; fail "$what"; }; sleep 0.1; done; ok "$what"
}
machine() { # number
  ip netns add klr$1
  ip link add klr$1-port type veth peer name eth0 netns klr$1
  ip link set klr$1-port master $BRIDGE up
  nsenter --net=/run/netns/klr$1 bash -c "ip link set lo up; ip link set eth0 up; ip addr add $NET.1$1/24 dev eth0; ip route add default via $NET.254
    sysctl -qw net.ipv4.ip_forward=1"
}
stop() { # pid file, signal
  [ -f "$1" ] || return 0
  kill "${2:--TERM}" "$(cat "$1")" 2>/dev/null || true
  for _ in $(seq 200); do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done; rm -f "$1"
}
cleanup() {
  status=$?
  [ $status = 0 ] || for log in registry 0 1; do echo "=== $log:"; tail -20 "$S/$log.log" 2>/dev/null || true; done
  stop "$S/registry.pid"; stop "$S/0.pid"; stop "$S/1.pid"
  for n in 0 1; do [ ! -d "$S/$n" ] || nsenter --net=/run/netns/klr$n "$KEELSON" uninstall --data-dir "$S/$n" --yes >/dev/null 2>&1 || true; done
  clear_away klr0 klr1 $BRIDGE
  [ -n "${KEEP:-}" ] || rm -rf "$S"; exit $status
}
trap cleanup EXIT; clear_away klr0 klr1 $BRIDGE
command -v "$SKOPEO" >/dev/null || { apt-get update -qq; apt-get install -y -qq --no-install-recommends skopeo >/dev/null; }
ip link add $BRIDGE type bridge; ip link set $BRIDGE up
machine 0; machine 1
EVICT="nodefs.available<1%,nodefs.inodesFree<1%"
openssl ecparam -name prime256v1 -genkey -noout -out "$S/cosign.key"; openssl ec -in "$S/cosign.key" -pubout -out "$S/cosign.pub" 2>/dev/null
cat >"$S/registries.yaml" <<YAML
configs: {"$R": {tls: {ca_file: "$S/0/pki/ca.crt"}}}
policy: [{images: $R/team/signed, keys: ["$S/cosign.pub"]}]
YAML
COMMON=(--eviction-hard "$EVICT" --registries "$S/registries.yaml" --image-peers 1Gi)
setsid nsenter --net=/run/netns/klr0 "$KEELSON" server --data-dir "$S/0" --kubeconfig "$S/admin" --node-name klr0 --node-ip $NET.10 "${COMMON[@]}" >>"$S/0.log" 2>&1 </dev/null & echo $! >"$S/0.pid"; disown
in0 "$KEELSON" wait --kubeconfig "$S/admin" --timeout 60s; ok "a server"
TOKEN=$(in0 "$KEELSON" token create --kubeconfig "$S/admin")
setsid nsenter --net=/run/netns/klr1 "$KEELSON" agent --data-dir "$S/1" --node-name klr1 --network-interface eth0 --server https://$NET.10:6443 --token "$TOKEN" "${COMMON[@]}" >>"$S/1.log" 2>&1 </dev/null & echo $! >"$S/1.pid"; disown
ready() { [ "$(k get node klr1 -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
within 30 "the second node is Ready" ready

# Who asks for the registry, who pushes and who pulls: accounts of the cluster, and rights in the namespace that repositories begin with.
k create namespace team >/dev/null
for account in registry pusher puller; do k create serviceaccount $account -n team >/dev/null; done
k create clusterrolebinding registry --clusterrole system:auth-delegator --serviceaccount team:registry >/dev/null
k create rolebinding registry -n kube-system --role extension-apiserver-authentication-reader --serviceaccount team:registry >/dev/null
k create role registry -n kube-system --verb get,list,watch --resource configmaps --resource-name keelson-revocations >/dev/null
k create rolebinding registry-revocations -n kube-system --role registry --serviceaccount team:registry >/dev/null
k apply -f - >/dev/null <<YAML
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: push, namespace: team}
rules: [{apiGroups: [registry.keelson.dev], resources: [repositories], verbs: [get, update]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pull, namespace: team}
rules: [{apiGroups: [registry.keelson.dev], resources: [repositories], verbs: [get]}]
YAML
k create rolebinding push -n team --role push --serviceaccount team:pusher >/dev/null
k create rolebinding pull -n team --role pull --serviceaccount team:puller >/dev/null
PUSHER=$(k create token pusher -n team) PULLER=$(k create token puller -n team)
cp "$S/admin" "$S/delegator"; in0 "$KUBECTL" --kubeconfig "$S/delegator" config set-credentials registry --token "$(k create token registry -n team)" >/dev/null
in0 "$KUBECTL" --kubeconfig "$S/delegator" config set-context --current --user registry >/dev/null
registry() {
  setsid nsenter --net=/run/netns/klr0 "$KEELSON" registry --dir "$S/registry" --listen $R --kubeconfig "$S/delegator" --data-dir "$S/0" --tls-name $NET.10 \
    --metrics-bind-address $NET.10:5001 >>"$S/registry.log" 2>&1 </dev/null & echo $! >"$S/registry.pid"; disown
}
answers() { [ "$(in0 curl -s -o /dev/null -w '%{http_code}' --cacert "$S/0/pki/ca.crt" https://$R/v2/)" = 401 ]; }
registry; within 10 "a registry with a certificate of the cluster's authority, which asks who is there" answers

mkdir "$S/certs" "$S/images"; cp "$S/0/pki/ca.crt" "$S/certs/ca.crt"; examples/image.sh "$S/images" >/dev/null
push() { in0 "$SKOPEO" --insecure-policy copy -q --dest-cert-dir "$S/certs" "$@" docker-archive:"$S/images/web.tar" docker://$R/team/${NAME:-web}:1; }
push --dest-creds any:$PUSHER || fail "skopeo pushes"; ok "skopeo pushes with a service account's token as password"
! push --dest-creds any:$PULLER 2>"$S/refused" || fail "who may pull only pushes"; grep -qi 'denied\|403' "$S/refused" || fail "$(cat "$S/refused")"
! push 2>/dev/null || fail "nobody pushes"
! in0 "$SKOPEO" inspect --cert-dir "$S/certs" --no-creds docker://$R/team/web:1 >/dev/null 2>&1 || fail "nobody reads"
! in0 "$SKOPEO" --insecure-policy copy -q --dest-cert-dir "$S/certs" --dest-creds any:$PUSHER docker-archive:"$S/images/web.tar" docker://$R/other/web:1 2>/dev/null || fail "rights of a namespace hold in another"
ok "who may only pull, nobody, and who has rights in another namespace don't push"

k create secret docker-registry puller -n team --docker-server=$R --docker-username=any --docker-password="$PULLER" >/dev/null
pod() { # name, node, pull secret or nothing, repository
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: team}
spec:
  nodeName: $2
  terminationGracePeriodSeconds: 0
  ${3:+imagePullSecrets: [{name: $3\}]}
  containers: [{name: web, image: "$R/team/${4:-web}:1", imagePullPolicy: Always}]
YAML
}
running() { [ "$(k get pod "$1" -n team -o jsonpath='{.status.phase}')" = Running ]; }
refused() { k get pod "$1" -n team -o jsonpath='{.status.containerStatuses[0].state.waiting}' | grep -q 'ErrImagePull\|ImagePullBackOff'; }
given() { in0 curl -s http://$NET.10:5001/metrics | sed -n 's/^keelson_registry_requests_total{code="200",kind="blob",method="GET"} //p'; }
pod without klr0; within 20 "a pod without the secret is refused" refused without
pod first klr0 puller; within 30 "a pod with the secret runs" running first
k get pod without -n team -o jsonpath='{.status.containerStatuses[0].state.waiting.message}' | grep -q '401\|unauthorized\|who is this\|takes a client' || fail "why it is refused: $(k get pod without -n team -o jsonpath='{.status.containerStatuses[0].state.waiting}')"
archives=$(find "$S/0/runtime/archives" -type f | wc -l); [ "$archives" = 2 ] || fail "the first node keeps $archives archives"
before=$(given); [ "${before:-0}" -ge 2 ] || fail "the registry gave ${before:-0} blobs"

# The registry has the manifest, and no blob any more: what it lets a node have comes from the other.
mkdir "$S/cut"; MANIFEST=$(cat "$S/registry/repositories/team+web/tags/1" | tr : -)
for mark in "$S"/registry/repositories/team+web/blobs/*; do [ "$(basename "$mark")" = "$MANIFEST" ] || mv "$mark" "$S/cut/"; done
pod second klr1 puller; within 30 "the second node runs it, with the registry's blobs cut" running second
grep 'pulled' "$S/1.log" | grep -q 'layers_from_nodes=1 .*layers_from_registry=0' || { grep pulled "$S/1.log"; fail "where the layer came from"; }
[ "$(given)" = "$before" ] || fail "the registry gave a blob"
ok "its layer came from the first node: $(grep -o 'layers_from_nodes=.*bytes_from_registry=[0-9]*' "$S/1.log" | tail -1); the registry gave no blob"
pod third klr1; within 20 "a pod without the secret is refused there, though the node has the image" refused third

# Who is no node gets nothing of a node's archives, and a node nothing of another repository.
LAYER=$(ls "$S/cut" | head -1 | tr - :)
ask() { # repository, curl's flags
  in1 curl -sk -o /dev/null -w '%{http_code}' "${@:2}" "https://$NET.10:10250/imageArchives?repository=$1&digest=$LAYER"
}
[ "$(ask $R/team/web)" = 401 ] && [ "$(ask $R/team/web -H "Authorization: Bearer $PUSHER")" = 403 ] || fail "who is no node is refused"
k config view --raw -o jsonpath='{.users[0].user.client-certificate-data}' | base64 -d >"$S/admin.crt"; k config view --raw -o jsonpath='{.users[0].user.client-key-data}' | base64 -d >"$S/admin.key"
[ "$(ask $R/team/web --cert "$S/admin.crt" --key "$S/admin.key")" = 403 ] || fail "the administrator is no node"
NODE=$(ls "$S"/1/pki/*client* | head -1)
[ "$(ask $R/team/web --cert "$NODE" --key "$NODE")" = 200 ] && [ "$(ask $R/other/web --cert "$NODE" --key "$NODE")" = 404 ] || fail "a node gets what it names by its repository: $(ask $R/team/web --cert "$NODE" --key "$NODE")"
ok "archives are for nodes, by repository and digest"

mv "$S"/cut/* "$S/registry/repositories/team+web/blobs/"
stop "$S/registry.pid" -KILL; registry; within 10 "the registry is back after kill -9" answers
in0 "$SKOPEO" --insecure-policy copy -q --src-cert-dir "$S/certs" --src-creds any:$PULLER docker://$R/team/web:1 dir:"$S/copy" || fail "skopeo pulls"; ok "skopeo pulls all of it again"

# What has to be signed isn't pulled before it is: a key made by openssl signs the payload that cosign signs, under the tag where cosign puts it.
NAME=signed push --dest-creds any:$PUSHER
state() { k get pod "$1" -n team -o jsonpath='{.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}'; }
unsigned() { state "$1" | grep -q 'SignatureValidationFailed.*has no signature'; }
pod unsigned klr1 puller signed; within 20 "an image that nobody signed isn't pulled where a policy wants a signature" unsigned unsigned
C=(in0 curl -sf --cacert "$S/0/pki/ca.crt" -u any:$PUSHER) V=https://$R/v2/team/signed
D=$("${C[@]}" -I -H 'Accept: application/vnd.docker.distribution.manifest.v2+json' $V/manifests/1 | tr -d '\r' | sed -n 's/^docker-content-digest: //Ip')
printf '{"critical":{"identity":{"docker-reference":"%s/team/signed"},"image":{"docker-manifest-digest":"%s"},"type":"cosign container image signature"},"optional":null}' $R $D >"$S/payload"
printf '{}' >"$S/config"
blob() { "${C[@]}" -o /dev/null -X POST --data-binary @"$1" -H 'Content-Type: application/octet-stream' "$V/blobs/uploads/?digest=sha256:$(sha256sum "$1" | cut -d' ' -f1)"; }
blob "$S/payload"; blob "$S/config"
sign() { # key
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":2},"layers":[{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","digest":"sha256:%s","size":%s,"annotations":{"dev.cosignproject.cosign/signature":"%s"}}]}' \
    $(sha256sum "$S/config" | cut -d' ' -f1) $(sha256sum "$S/payload" | cut -d' ' -f1) $(stat -c %s "$S/payload") "$(openssl dgst -sha256 -sign "$1" "$S/payload" | base64 -w0)" >"$S/signature"
  "${C[@]}" -o /dev/null -X PUT --data-binary @"$S/signature" -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' "$V/manifests/${D/:/-}.sig"
}
openssl ecparam -name prime256v1 -genkey -noout -out "$S/other.key"; sign "$S/other.key"
stranger() { state "$1" | grep -q 'SignatureValidationFailed.*no key of .*cosign.pub made this signature'; }
pod stranger klr1 puller signed; within 20 "nor one that somebody else signed" stranger stranger
sign "$S/cosign.key"; pod signed klr1 puller signed; within 30 "one that is signed runs" running signed

# An archive for machines without a registry.
cat >"$S/bundle.yaml" <<YAML
configs: {"$R": {tls: {ca_file: "$S/0/pki/ca.crt"}, auth: {username: any, password: "$PULLER"}}}
YAML
k get pods -n team -o yaml | in0 "$KEELSON" image bundle -f - -o "$S/bundle.tar" --registries "$S/bundle.yaml" >/dev/null
for name in first without second third unsigned stranger signed; do k delete pod $name -n team --now >/dev/null 2>&1; done
in1 "$KEELSON" image --data-dir "$S/1" rm $R/team/web:1; in1 "$KEELSON" image --data-dir "$S/1" rm $R/team/signed:1
in1 "$KEELSON" image --data-dir "$S/1" import "$S/bundle.tar" >/dev/null
[ "$(in1 "$KEELSON" image --data-dir "$S/1" ls | grep -c "$R/team/\(web\|signed\):1")" = 2 ] || fail "the archive's images are there: $(in1 "$KEELSON" image --data-dir "$S/1" ls)"
ok "the images that manifests name are bundled, and imported where there is no registry"
