#!/bin/bash
# test-backup.sh: a cluster with a volume is backed up to a bucket (tools/backup/bucket.py, in its namespace), wiped, and restored from it: its pods
# run again with their data. Snapshots of the store go there too. Damage is named. In a network namespace of its own. Needs root and e2fsprogs.
set -euo pipefail
cd "$(dirname "$0")/.."
export CLUSTER=${BACKUP_CLUSTER:-klb0} NODE_IP=${BACKUP_IP:-10.79.7.1} NOREGISTRY=1 NODES=1
unset STATE; . conformance/lib/env.sh
export STATE KEELSON=${KEELSON:-$PWD/target/release/keelson}
k() { inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
now() { date +%s%N; }
ms() { echo "$(( ($(now) - $1) / 1000000 )) ms"; }
conformance/cluster.sh down >/dev/null 2>&1 || true
# One image of ours in place of the suite's.
export LAB=$STATE/lab; mkdir -p "$LAB/images"; examples/image.sh "$LAB/images" >/dev/null
S3=$STATE/s3 SERVER=0; mkdir -p "$S3/archive"
printf '[default]\naws_access_key_id = AKIDTEST\naws_secret_access_key = a/secret+key\n' >"$STATE/credentials"
printf 'a passphrase of the test\n' >"$STATE/passphrase"; chmod 600 "$STATE/credentials" "$STATE/passphrase"
export KEELSON_S3_ENDPOINT=http://127.0.0.1:9000 KEELSON_S3_CREDENTIALS_FILE=$STATE/credentials
keelson() { inns "$KEELSON" "$@"; }
backup() { keelson backup --repository s3://archive/cluster --passphrase-file "${PASSPHRASE:-$STATE/passphrase}" --data-dir "$STATE/data" "$@"; }
end() {
  status=$?
  [ $status = 0 ] || { echo "=== failed; the end of the server's log:"; tail -40 "$STATE/server.log" || true; }
  conformance/cluster.sh down >/dev/null 2>&1 || true
  [ $SERVER = 0 ] || kill $SERVER 2>/dev/null || true
  exit $status
}
trap end EXIT
EXTRA="--store-snapshot-dir s3://archive/snapshots --kubelet-link none --disable ingress,metrics" conformance/cluster.sh up
setsid nsenter --net=/run/netns/$CLUSTER python3 tools/backup/bucket.py 127.0.0.1:9000 "$S3" AKIDTEST a/secret+key </dev/null >"$STATE/s3.log" 2>&1 & SERVER=$!
ok "a cluster"
k create namespace shop >/dev/null
k -n shop create secret generic sealed --from-literal=is=sealed >/dev/null
k -n shop apply -f - >/dev/null <<'Y'
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 1
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: db, image: "example.local/web:1", imagePullPolicy: Never, command: [sleep, "1000000"], volumeMounts: [{name: data, mountPath: /data}]}]
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}}]
Y
k -n shop rollout status statefulset/db --timeout=120s >/dev/null && ok "a pod with a volume"
k -n shop exec db-0 -- sh -c 'echo kept > /data/file && sync'
uid=$(k -n shop get statefulset db -o jsonpath='{.metadata.uid}')

t=$(now); said=$(backup create --kubeconfig "$KUBECONFIG_FILE"); ok "a backup ($(ms $t)): $said"
[[ $said = *" 1 volumes"* && $said != *"without "* ]] || fail "the volume isn't in it: $said"
k -n shop exec db-0 -- sh -c 'echo later > /data/file && sync'
t=$(now); said=$(backup create --kubeconfig "$KUBECONFIG_FILE"); ok "another one ($(ms $t)): $said"
new=$(sed -n 's/.*; \([0-9]*\) new pieces.*/\1/p' <<<"$said"); [ "$new" -lt 10 ] || fail "what was there was sent again: $new pieces"
! grep -ra -e "kept" -e "BEGIN.*PRIVATE" "$S3/archive/cluster" >/dev/null && ok "nothing of it can be read in the bucket" || fail "the bucket is readable"
first=$(backup ls | sed -n 2p | cut -d' ' -f1); [ "$(backup ls | grep -c manual)" = 2 ] || fail "ls: $(backup ls)"
backup verify | tail -1 | grep "2 backups, .* 0 faults" >/dev/null && ok "both are whole" || fail "verify: $(backup verify)"
piece=$(find "$S3/archive/cluster/chunks" -type f -print -quit); cp "$piece" "$STATE/piece"
printf xxxxxxxx | dd of="$piece" bs=1 seek=40 conv=notrunc 2>/dev/null
said=$(backup verify) && fail "damage isn't seen" || true
[[ $said = *"${piece##*/} isn't what was written"* ]] && ok "a piece that was changed is named" || fail "verify: $said"
rm "$piece"; said=$(backup verify) && fail "a loss isn't seen" || true
[[ $said = *"${piece##*/} is missing"* ]] && ok "one that is lost, too" || fail "verify: $said"
cp "$STATE/piece" "$piece"

keelson store --data-dir "$STATE/data" snapshot save --kubeconfig "$KUBECONFIG_FILE" | grep "s3://archive/snapshots" >/dev/null && ok "a snapshot of the store is sent" || fail "a snapshot is sent"
touch "$S3/away"
said=$(keelson store --data-dir "$STATE/data" snapshot save --kubeconfig "$KUBECONFIG_FILE" 2>&1) && fail "nobody said that it wasn't sent" || true
[[ $said = *"on this machine only"*SlowDown* ]] && ok "one that can't be sent stays here, and that is said" || fail "$said"
rm "$S3/away"
file=$(keelson store --data-dir "$STATE/data" snapshot ls --store-snapshot-dir s3://archive/snapshots | sed -n 's/.* \(s3:.*\)/\1/p' | head -1)
keelson store --data-dir "$STATE/data" snapshot check "$file" | grep "keys at revision" >/dev/null && ok "what is in the bucket is whole" || fail "check $file"

conformance/cluster.sh stop
inns "$KEELSON" uninstall --data-dir "$STATE/data" --yes >/dev/null
[ ! -e "$STATE/data" ] && ok "the machine is wiped" || fail "something is left of it"
said=$(PASSPHRASE=$STATE/credentials backup restore 2>&1) && fail "another passphrase opens it" || true
[[ $said = *"isn't the repository's passphrase"* && ! -e $STATE/data/pki ]] && ok "another passphrase restores nothing" || fail "$said"
t=$(now); backup restore "$first" >/dev/null; ok "restored ($(ms $t))"
said=$(backup restore "$first" 2>&1) && fail "a cluster is written over" || true
[[ $said = *"has a cluster already"* ]] && ok "a cluster that is there isn't written over" || fail "$said"
EXTRA="--kubelet-link none --disable ingress,metrics" conformance/cluster.sh start
for _ in $(seq 300); do [ "$(k -n shop exec db-0 -- cat /data/file 2>/dev/null)" = kept ] && break; sleep 0.2; done
[ "$(k -n shop exec db-0 -- cat /data/file)" = kept ] && ok "the pod runs again with its data ($(ms $t) after the restore began)" || fail "the data is not there"
[ "$(k -n shop get secret sealed -o jsonpath='{.data.is}' | base64 -d)" = sealed ] && ok "secrets are opened" || fail "secrets are opened"
[ "$(k -n shop get statefulset db -o jsonpath='{.metadata.uid}')" = "$uid" ] && ok "objects are the same" || fail "objects are the same"

k -n shop exec db-0 -- sh -c 'echo spoilt > /data/file && sync'
k delete namespace shop --timeout=60s >/dev/null
backup restore "$first" --kubeconfig "$KUBECONFIG_FILE" -n shop --dry-run | grep "^create *statefulsets.apps/db" >/dev/null && ok "a dry run says what would come back" || fail "a dry run"
[ "$(k get namespace shop --ignore-not-found)" = "" ] || fail "a dry run made something"
t=$(now); said=$(backup restore "$first" --kubeconfig "$KUBECONFIG_FILE" -n shop --node-name $CLUSTER) || fail "the namespace: $said"
[[ $said = *"with its data"* ]] && ok "a namespace comes back ($(ms $t))" || fail "the claim has no data: $said"
for _ in $(seq 300); do [ "$(k -n shop exec db-0 -- cat /data/file 2>/dev/null)" = kept ] && break; sleep 0.2; done
[ "$(k -n shop exec db-0 -- cat /data/file)" = kept ] && ok "its pod runs with the data of then ($(ms $t))" || fail "the data: $(k -n shop get pods,pvc,pv)"
[ "$(k -n shop get statefulset db -o jsonpath='{.metadata.uid}')" != "$uid" ] && ok "as a new object" || fail "a uid was taken over"
k -n shop scale statefulset db --replicas=0 >/dev/null
said=$(backup restore "$first" --kubeconfig "$KUBECONFIG_FILE" -n shop --object sts/db --dry-run); [[ $said = kept*"spec.replicas: 0 -> 1"* ]] && ok "what differs is told" || fail "$said"
backup restore "$first" --kubeconfig "$KUBECONFIG_FILE" -n shop --object sts/db --update >/dev/null; [ "$(k -n shop get statefulset db -o jsonpath='{.spec.replicas}')" = 1 ] && ok "and mended when that is asked" || fail "not updated"

k delete namespace shop --timeout=60s >/dev/null
none() { [ -z "$(k get pv -o name)" ] && [ -z "$(find "$STATE/data/volumes/volumes" "$STATE/data/volumes/new" -mindepth 1)" ]; }
for _ in $(seq 150); do none && break; sleep 0.2; done
none || fail "volumes are left: $(k get pv)"
k create namespace shop >/dev/null; k -n shop create quota small --hard=requests.storage=1Mi >/dev/null
said=$(backup restore "$first" --kubeconfig "$KUBECONFIG_FILE" -n shop --node-name $CLUSTER 2>&1) && fail "more than the quota came back: $said" || true
[[ $said = *"failed "*"persistentvolumeclaims/data-db-0"* ]] && none && ok "a claim that is refused leaves no volume" || fail "$said; $(k get pv)"
echo "backup: all as promised"
