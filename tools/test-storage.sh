#!/bin/bash
# test-storage.sh: claims of the default class on the cluster of conformance/cluster.sh, as a chart's StatefulSet has them: bound, kept over the
# death of pod and server, enlarged, copied, snapped and restored, gone with the claim. Needs root and e2fsprogs. Removes what it made.
set -euo pipefail
cd "$(dirname "$0")/.."; . conformance/lib/env.sh
KEELSON=${KEELSON:-$PWD/target/release/keelson}
IMAGE=${IMAGE:-registry.k8s.io/e2e-test-images/busybox:1.37.0-2}
k() { inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE "$@"; }
fail() { echo "FAILED: $*" >&2; k -n storage get pods,pvc,pv,events 2>&1 | tail -40 >&2; exit 1; }
ok() { echo "ok  $*"; }
is() { local what=$1 want=$2 got; shift 2; for i in $(seq 300); do got=$("$@" 2>/dev/null || true); [ "$got" = "$want" ] && { ok "$what"; return; }; sleep 0.2; done; fail "$what: $got, not $want"; }
k create namespace storage >/dev/null
trap 'k delete namespace storage --wait=false >/dev/null 2>&1 || true' EXIT
k get storageclass local -o jsonpath='{.metadata.annotations}' | grep '"storageclass.kubernetes.io/is-default-class":"true"' >/dev/null && ok "a default class" || fail "a default class"
for i in $(seq 100); do k -n kube-system get csistoragecapacities -o name | grep . >/dev/null && break; sleep 0.2; done
k -n kube-system get csistoragecapacities -o name | grep . >/dev/null && ok "room is published" || fail "room is published"
began=$(date +%s%N)
k -n storage apply -f - >/dev/null <<Y
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {runAsUser: 1000, fsGroup: 2000}
      containers:
        - {name: db, image: $IMAGE, command: [sleep, "1000000"], volumeMounts: [{name: data, mountPath: /data}]}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
Y
k -n storage rollout status statefulset/db --timeout=120s >/dev/null || fail "a StatefulSet with claims becomes Ready"
ok "a StatefulSet with claims becomes Ready ($(( ($(date +%s%N) - began) / 1000000 )) ms for two pods, one after the other)"
k -n storage exec db-0 -- sh -c 'echo kept > /data/file && sync' && ok "an ordinary user writes" || fail "an ordinary user writes"
k -n storage exec db-0 -- sh -c 'dd if=/dev/zero of=/data/full bs=1M count=100 2>/dev/null; [ $(du -m /data/full | cut -f1) -lt 64 ] && rm /data/full' && ok "the size is enforced" || fail "the size is enforced"
k -n storage delete pod db-0 >/dev/null
k -n storage rollout status statefulset/db --timeout=120s >/dev/null
is "data outlives the pod" kept k -n storage exec db-0 -- cat /data/file
conformance/cluster.sh stop KILL; NOIMPORT=1 conformance/cluster.sh start
is "data and mount outlive the server" kept k -n storage exec db-0 -- cat /data/file
k -n storage patch pvc data-db-0 --type=merge -p '{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}' >/dev/null
is "the volume is enlarged" 128Mi k -n storage get pvc data-db-0 -o jsonpath='{.status.allocatedResources.storage}'
# Where the kernel doesn't let us enlarge what is mounted, it is done at the next mount: once no pod has the volume any more.
sleep 3; [ "$(k -n storage get pvc data-db-0 -o jsonpath='{.status.capacity.storage}')" = 128Mi ] || {
  echo "    (at the next mount)"; k -n storage scale statefulset/db --replicas=0 >/dev/null
  is "nobody has it" "" inns sh -c "grep -F $STATE/data /proc/mounts | grep -F local.keelson.dev | cut -c1-80"
  k -n storage scale statefulset/db --replicas=2 >/dev/null; k -n storage rollout status statefulset/db --timeout=120s >/dev/null; }
is "so is the claim" 128Mi k -n storage get pvc data-db-0 -o jsonpath='{.status.capacity.storage}'
k -n storage exec db-0 -- sh -c '[ $(df -m /data | tail -1 | awk "{print \$2}") -gt 80 ]' && ok "and the file system" || fail "and the file system"
k -n storage apply -f - >/dev/null <<Y
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: copy}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 128Mi}}, dataSource: {kind: PersistentVolumeClaim, name: data-db-0}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: c, image: $IMAGE, command: [sleep, "1000000"], volumeMounts: [{name: d, mountPath: /data}], volumeDevices: [{name: r, devicePath: /dev/raw}]}
  volumes:
    - {name: d, persistentVolumeClaim: {claimName: copy}}
    - {name: r, persistentVolumeClaim: {claimName: raw}}
Y
k -n storage wait --for=condition=Ready pod/reader --timeout=120s >/dev/null && ok "a copy and a device for one pod" || fail "a copy and a device for one pod"
is "the copy has the data" kept k -n storage exec reader -- cat /data/file
is "the device has its size" 16777216 k -n storage exec reader -- sh -c 'wc -c < /dev/raw'
k get volumesnapshotclass local -o jsonpath='{.metadata.annotations}' | grep '"snapshot.storage.kubernetes.io/is-default-class":"true"' >/dev/null && ok "a default class of snapshots" || fail "a default class of snapshots"
k -n storage apply -f - >/dev/null <<Y
{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshot, metadata: {name: before}, spec: {source: {persistentVolumeClaimName: data-db-0}}}
Y
is "a snapshot is ready" true k -n storage get volumesnapshot before -o jsonpath='{.status.readyToUse}'
k -n storage exec db-0 -- sh -c 'echo later > /data/file && sync'
k -n storage apply -f - >/dev/null <<Y
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: restored}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 128Mi}}, dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: before}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: small}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}, dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: before}}
---
apiVersion: v1
kind: Pod
metadata: {name: restorer}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: $IMAGE, command: [sleep, "1000000"], volumeMounts: [{name: d, mountPath: /data}]}]
  volumes: [{name: d, persistentVolumeClaim: {claimName: restored}}]
---
apiVersion: v1
kind: Pod
metadata: {name: squeezer}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: $IMAGE, command: [sleep, "1000000"], volumeMounts: [{name: d, mountPath: /data}]}]
  volumes: [{name: d, persistentVolumeClaim: {claimName: small}}]
Y
k -n storage wait --for=condition=Ready pod/restorer --timeout=120s >/dev/null && ok "a claim is filled from it" || fail "a claim is filled from it"
is "with the data of its moment" kept k -n storage exec restorer -- cat /data/file
for i in $(seq 100); do k -n storage get events | grep 'is less than the size' >/dev/null && break; sleep 0.2; done
k -n storage get events | grep 'is less than the size' >/dev/null && ok "a claim that is too small is told why" || fail "a claim that is too small is told why"
k -n storage delete pod squeezer >/dev/null; k -n storage delete pvc small >/dev/null
k -n storage delete volumesnapshot before --timeout=60s >/dev/null && ok "the snapshot goes" || fail "the snapshot goes"
is "its content with it" "" k get volumesnapshotcontents -o name
is "and its file" "" ls "$STATE/data/volumes/snapshots"
k delete namespace storage --timeout=120s >/dev/null && ok "the namespace goes" || fail "the namespace goes"
is "the volumes go with their claims" "" k get pv -o name
is "and their files" "" ls "$STATE/data/volumes/volumes"
! losetup -a | grep -F "$STATE/data" && ok "and their devices" || fail "and their devices"
echo "storage: all as promised"
