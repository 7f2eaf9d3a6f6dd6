#!/bin/bash
# test-history.sh: what objects were, on a cluster of one machine: changes and who made them, moments, differences, blame; a deleted object, a claim's volume
# that was retained, and a whole namespace come back; the log of a deleted pod; all that over kill -9. In a network namespace of its own. Needs root and e2fsprogs.
set -euo pipefail
cd "$(dirname "$0")/.."
export CLUSTER=${HISTORY_CLUSTER:-klh0} NODE_IP=${HISTORY_IP:-10.79.23.1} NOREGISTRY=1 NODES=1
unset STATE; . conformance/lib/env.sh
export STATE KEELSON=${KEELSON:-$PWD/target/release/keelson}
k() { inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE "$@"; }
as() { local who=$1 what=$2; shift 2; inns "$KEELSON" "$what" "$@" --kubeconfig "$who"; }
ours() { as "$KUBECONFIG_FILE" "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
now() { date +%s%N; }
ms() { echo "$(( ($(now) - $1) / 1000000 )) ms"; }
version() { k -n shop get "$1" -o jsonpath='{.metadata.resourceVersion}'; }
until_is() { local want=$1; shift; for _ in $(seq 300); do [ "$("$@" 2>/dev/null)" = "$want" ] && return 0; sleep 0.2; done; return 1; }
conformance/cluster.sh down >/dev/null 2>&1 || true
export LAB=$STATE/lab; mkdir -p "$LAB/images"; examples/image.sh "$LAB/images" >/dev/null
end() {
  status=$?
  [ $status = 0 ] || { echo "=== failed; the end of the server's log:"; tail -40 "$STATE/server.log" || true; }
  conformance/cluster.sh down >/dev/null 2>&1 || true
  exit $status
}
trap end EXIT
export EXTRA="--kubelet-link none --disable ingress,metrics"
conformance/cluster.sh up
ok "a cluster"
k create namespace shop >/dev/null
ours user add ana --role edit -n shop -o "$STATE/ana.kubeconfig" >/dev/null
ours user add bob --role view -n default -o "$STATE/bob.kubeconfig" >/dev/null
ana() { inns $BIN/kubectl --kubeconfig "$STATE/ana.kubeconfig" -n shop "$@"; }
k -n shop create secret generic sealed --from-literal=is=Hj4sRd8NcB2gFu >/dev/null
k -n shop create configmap settings --from-literal=colour=red --from-literal=mark=Qx7vKz9LmW3tYp >/dev/null
k -n shop apply -f - >/dev/null <<'Y'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: web, image: "example.local/web:1", imagePullPolicy: Never, command: [sh, -c, "echo my last words; sleep 1000000"], volumeMounts: [{name: data, mountPath: /data}]}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}
Y
k -n shop rollout status deployment/web --timeout=120s >/dev/null
k -n shop exec deploy/web -- sh -c 'echo kept > /data/file && sync'
pv=$(k -n shop get pvc data -o jsonpath='{.spec.volumeName}')
k patch pv "$pv" -p '{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}' >/dev/null
ok "a deployment with a volume"

red=$(version cm/settings)
ana patch cm settings -p '{"data":{"colour":"blue"}}' >/dev/null; blue=$(version cm/settings)
ana label cm settings reviewed=yes >/dev/null
t=$(now); said=$(ours history cm/settings -n shop); ok "history ($(ms $t))"
grep -E "^$blue +.* ana +kubectl.* patch +data.colour$" <<<"$said" >/dev/null && grep "metadata.labels.reviewed" <<<"$said" >/dev/null && grep "created" <<<"$said" >/dev/null || fail "history: $said"
ok "it says who changed which field: $(grep -E "^$blue" <<<"$said" | tr -s ' ')"
[ "$(ours get cm/settings -n shop --at "$red" -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)["data"]["colour"])')" = red ] && ok "get --at a revision" || fail "get --at"
ours get deploy -n shop --at 0s | grep -E '^web +1/1' >/dev/null && ok "as a table" || fail "get: $(ours get deploy -n shop --at 0s)"
ours get pods -A --at 0s -o wide | grep -E '^shop .*10\.244\.' >/dev/null && ok "in all namespaces, wide" || fail "get -A"
ours get cm -n shop --at "$red" -o name | grep -x configmap/settings >/dev/null || fail "get -o name"
said=$(ours diff cm/settings -n shop --at "$red") && fail "diff found nothing" || [ $? = 1 ]
[[ $said = *"-  colour: red"*"+  colour: blue"* ]] && ok "diff" || fail "diff: $said"
k -n shop patch secret sealed -p '{"stringData":{"is":"Vb6nMq1XzC5kTw"}}' >/dev/null
said=$(ours diff secret/sealed -n shop --at "$blue") || true
[[ $said = *"*** (before)"*"*** (after)"* && $said != *VmI2bk1x* ]] && ok "of a secret it says that it differs" || fail "diff of a secret: $said"
ours blame cm/settings -n shop data.colour | grep -E 'data.colour +kubectl-patch .* ana +kubectl$' >/dev/null && ok "blame" || fail "blame: $(ours blame cm/settings -n shop)"
said=$(as "$STATE/bob.kubeconfig" history cm/settings -n shop 2>&1) && fail "who may not read reads what was" || true
[[ $said = *forbidden* ]] && ok "who may not read the object may not read what it was" || fail "$said"
as "$STATE/ana.kubeconfig" history cm/settings -n shop >/dev/null && ok "who may, may" || fail "ana"

pod=$(k -n shop get pods -l app=web -o jsonpath='{.items[0].metadata.name}')
k -n shop delete pod "$pod" >/dev/null
until_is "my last words" ours logs --deleted "$pod" -n shop && ok "the log of a deleted pod" || fail "logs --deleted: $(ours logs --deleted "$pod" -n shop 2>&1)"
[ "$(as "$STATE/ana.kubeconfig" logs --deleted "$pod" -n shop --tail 1)" = "my last words" ] && ok "for who may read pods' logs" || fail "ana's logs"
as "$STATE/bob.kubeconfig" logs --deleted "$pod" -n shop >/dev/null 2>&1 && fail "bob reads logs" || true

k -n shop delete cm settings >/dev/null
ours history cm/settings -n shop | tail -1 | grep -E 'kubernetes-admin +kubectl +delete +deleted' >/dev/null && ok "a deletion is told" || fail "$(ours history cm/settings -n shop)"
ours undelete cm/settings -n shop --dry-run | grep -E '^create +configmaps/settings' >/dev/null && [ -z "$(k -n shop get cm settings --ignore-not-found)" ] && ok "undelete --dry-run does nothing" || fail "dry run"
as "$STATE/bob.kubeconfig" undelete cm/settings -n shop >/dev/null 2>&1 && fail "bob undeletes" || true
as "$STATE/ana.kubeconfig" undelete cm/settings -n shop >/dev/null && [ "$(k -n shop get cm settings -o jsonpath='{.data.colour} {.metadata.labels.reviewed}')" = "blue yes" ] && ok "undelete, as the one who asks" || fail "undelete"
ours undelete cm/settings -n shop >/dev/null 2>&1 && fail "what is there is undeleted" || true

kill -9 "$(cat "$STATE/server.pid")"; sleep 1; rm -f "$STATE/server.pid"
conformance/cluster.sh start
[ "$(ours get cm/settings -n shop --at "$red" -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)["data"]["colour"])')" = red ] && ok "after kill -9 it is known still" || fail "after kill -9: $(ours history cm/settings -n shop 2>&1)"
# A server that is ended while it starts is as one that is killed: nothing is written then.
until_is 2 grep -c "all components are started" "$STATE/server.log" || fail "it doesn't start"
conformance/cluster.sh stop
# Letters that nothing else has, so that they stand in the files as they are.
grep -ra -e Qx7vKz9LmW3tYp "$STATE/data/history" >/dev/null || fail "the test looks where nothing is"
! grep -raE -e 'Hj4sRd8NcB2gFu|SGo0c1JkOE5jQjJnRnU|Vb6nMq1XzC5kTw|VmI2bk1xMVh6QzVrVHc' "$STATE/data/history" >/dev/null && ok "no secret can be read on the disk" || fail "the history has a secret in clear"
conformance/cluster.sh start
k -n shop rollout status deployment/web --timeout=120s >/dev/null

uid=$(k -n shop get deploy web -o jsonpath='{.metadata.uid}')
k delete namespace shop --timeout=120s >/dev/null
until_is Released k get pv "$pv" -o jsonpath='{.status.phase}' || fail "the volume: $(k get pv)"
said=$(ours undelete namespace/shop --dry-run) && [[ $said = *"create    deployments.apps/web"* && -z $(k get namespace shop --ignore-not-found) ]] && ok "what was in a deleted namespace is known" || fail "$said"
t=$(now); said=$(ours undelete namespace/shop) || fail "undelete namespace: $said"
ok "a namespace comes back ($(ms $t))"
[[ $said = *"with its data, in the volume $pv"* ]] || fail "the volume: $said"
[[ $said = *"its controller makes it"* ]] || fail "pods: $said"
k -n shop rollout status deployment/web --timeout=120s >/dev/null
[ "$(k -n shop exec deploy/web -- cat /data/file)" = kept ] && ok "its pod runs with the data that was there ($(ms $t))" || fail "the data"
[ "$(k -n shop get deploy web -o jsonpath='{.metadata.uid}')" != "$uid" ] || fail "a uid was taken over"
[ "$(k -n shop get secret sealed -o jsonpath='{.data.is}' | base64 -d)" = Vb6nMq1XzC5kTw ] && ok "secrets as they were last" || fail "the secret"
[ "$(k -n shop get rolebindings -o name | wc -l)" -ge 1 ] && ana get cm settings >/dev/null && ok "and who may do what" || fail "rights"
du -sh "$STATE/data/history" | cut -f1 | sed 's/^/         history on disk: /'

[ -n "$(ls "$STATE/data/logs/deleted")" ] || fail "no logs of deleted pods are there"
conformance/cluster.sh stop
export EXTRA="$EXTRA --history-age 0 --history-log-age 0"
conformance/cluster.sh start
[ ! -e "$STATE/data/history" ] && until_is "" ls "$STATE/data/logs/deleted" && ok "a server that keeps no history removes what it kept" || fail "history stays: $(ls "$STATE/data/history" "$STATE/data/logs/deleted" 2>&1)"
said=$(ours history deploy/web -n shop 2>&1) && fail "history of a server that keeps none" || true
[[ $said = *"keeps no history"* ]] || fail "$said"
said=$(ours get deploy/web -n shop --at 0s 2>&1) && fail "a moment of a server that keeps none" || true
[[ $said = *"keeps no history"* ]] && ok "and says that it keeps none" || fail "$said"
echo "history: all as promised"
