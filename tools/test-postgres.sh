#!/bin/bash
# test-postgres.sh: PostgreSQL on a claim of the default class, in a cluster of its own (a network namespace), while everything below it is killed:
# server, shim, database, pod, in an order that is drawn and told; the claim grows, is snapped and restored under load. At the end pg_amcheck
# finds nothing, every row whose commit was acknowledged is there, and nothing of it is left. Needs root, apt and e2fsprogs. Removes what it made.
# env: ROUNDS (200) and SEED of them; FROM=n begins with that round of the seed; KINDS="…" draws among those only; MINUTES (90) at most;
# KEEP=1 leaves a cluster that failed: run again with it, the rounds go on there.
set -euo pipefail   # no `grep -q` in pipes: it ends at the first match, and who still writes then fails the pipe
cd "$(dirname "$0")/.."; export CLUSTER=${CLUSTER:-klpg0} NODE_IP=${NODE_IP:-10.79.81.1} NOIMPORT=1 NOREGISTRY=1
. conformance/lib/env.sh
export KEELSON=${KEELSON:-$PWD/target/release/keelson}
ROUNDS=${ROUNDS:-200} W=$STATE/postgres PG=$LAB/postgres WRITERS=3
KINDS=${KINDS:-server server-shim orderly machine shim database backend pod pod-force pod-server}
UNTIL=$((SECONDS + ${MINUTES:-90} * 60))
k() { inns "$BIN/kubectl" --kubeconfig "$KUBECONFIG_FILE" -n postgres "$@"; }
ok() { echo "ok  $*"; }
fail() { echo "FAILED: $* (SEED=$SEED FROM=${round:-1})" >&2; k get pods,pvc,pv,volumesnapshots,events 2>&1 | tail -40 | cut -c1-240 >&2; k logs db-0 --tail=20 >&2 || true; exit 1; }
# within SECONDS WHAT COMMAND…: until it holds.
within() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || fail "$what"; sleep 0.1; done
}
is() { [ "$("${@:2}" 2>/dev/null)" = "$1" ]; }
address() { k get service "$1" -o jsonpath='{.spec.clusterIP}'; }
# A session over the service's address: who has gone without a word is given up after three seconds.
psql() { local host=$1; shift; inns chroot "$PG/root" psql "host=$host user=postgres dbname=postgres connect_timeout=3 tcp_user_timeout=3000 keepalives_idle=1 keepalives_interval=1 keepalives_count=3" -qAtX -F$'\t' -v ON_ERROR_STOP=1 "$@"; }
writer() { # number: rows one by one, and what was acknowledged of them: psql prints a row once its commit is answered
  local session n
  while [ ! -e "$W/stop" ]; do
    session=$(date +%s%3N); n=0
    while [ ! -e "$W/stop" ]; do n=$((n + 1))
      echo "WITH c AS (UPDATE counters SET n = n + 1 WHERE w = $1) INSERT INTO rows VALUES ($1, $session, $n, repeat(md5('$n'), 1 + $n % 5)) RETURNING w, s, n;"
    done 2>/dev/null | psql "$DB" >>"$W/acked.$1" 2>>"$W/writer.$1.log" || true
    sleep 0.1
  done
}
writers=()
storm() { rm -f "$W/stop"; for w in $(seq $WRITERS); do writer "$w" & writers+=($!); done; }
calm() { touch "$W/stop"; [ ${#writers[@]} = 0 ] || wait "${writers[@]}" || true; writers=(); }
acked() { cat "$W"/acked.* | wc -l; }
grows() { [ "$(acked)" -gt "$1" ]; }
# The database's first process, by its pod; the shim is the parent of it.
process() {
  local uid pid; uid=$(k get pod "$1" -o jsonpath='{.metadata.uid}') || return 1
  for pid in $(pgrep -x postgres); do
    [ "$(awk '/^NSpid:/ {print $NF}' "/proc/$pid/status" 2>/dev/null)" = 1 ] && grep -F "$uid" "/proc/$pid/cgroup" >/dev/null && { echo "$pid"; return; }
  done 2>/dev/null
  return 1
}
parent() { awk '/^PPid:/ {print $2}' "/proc/$1/status"; }
another() { local now; now=$(process db-0) && [ "$now" != "$1" ]; }
ready() { is True k get pod "$1" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}'; }
begin() { conformance/cluster.sh start; }
dead() { local p; p=$(cat "$STATE/server.pid"); kill -9 "$p"; while kill -0 "$p" 2>/dev/null; do sleep 0.02; done; }
# strike KIND: what is done in a round. Whatever it is, another process of the database has to come, or the same one has to stay.
strike() {
  local was shim; was=$(process db-0) || fail "there is no database before the round"
  shim=$(parent "$was"); grep -az '^shim$' "/proc/$shim/cmdline" >/dev/null || fail "process $shim is no shim: $(tr '\0' ' ' <"/proc/$shim/cmdline")"
  case $1 in
    server) dead; begin; [ "$(process db-0)" = "$was" ] || fail "the database is another one after the server's death" ;;
    server-shim) dead; kill -9 "$shim"; begin; within 60 "another database" another "$was" ;;
    orderly) conformance/cluster.sh stop; begin; [ "$(process db-0)" = "$was" ] || fail "the database is another one after a restart of the program" ;;
    machine) # its power: processes, mounts and devices are gone, what is on the disk is there
      dead; kill -9 "$shim" "$was"; within 10 "its processes are gone" bash -c "! kill -0 $was"
      awk -v at="$STATE/data/" 'index($2, at) == 1 {print $2}' /proc/mounts | tac | xargs -r -n 1 umount -l
      begin; within 60 "another database" another "$was" ;;
    shim) kill -9 "$shim"; within 60 "another database" another "$was" ;;
    database) kill -9 "$was"; within 60 "another database" another "$was" ;;
    backend) kill -9 "$(pgrep -P "$was" | shuf -n 1 --random-source=<(yes "$round"))" ;;   # it starts anew by itself
    pod) k delete pod db-0 --timeout=60s >/dev/null; within 60 "another database" another "$was" ;;
    pod-force) k delete pod db-0 --force --grace-period=0 >/dev/null 2>&1; within 60 "another database" another "$was" ;;
    pod-server) k delete pod db-0 --wait=false >/dev/null; sleep 0.$((RANDOM % 10)); dead; begin; within 60 "another database" another "$was" ;;
    *) fail "no kind of round: $1" ;;
  esac
}
database() { # name, further lines of the claim's spec, its size
  k apply -f - >/dev/null <<Y
apiVersion: v1
kind: Service
metadata: {name: $1}
spec: {selector: {app: $1}, ports: [{port: 5432}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: $1}
spec:
  serviceName: $1
  selector: {matchLabels: {app: $1}}
  template:
    metadata: {labels: {app: $1}}
    spec:
      securityContext: {runAsUser: 999, runAsGroup: 999, fsGroup: 999}
      containers:
        - name: postgres
          image: example.local/postgres:15
          imagePullPolicy: Never
          volumeMounts: [{name: data, mountPath: /data}]
          readinessProbe: {exec: {command: [pg_isready, -q, -h, localhost]}, periodSeconds: 1}
          livenessProbe: {exec: {command: [pg_isready, -q, -h, localhost]}, periodSeconds: 10, failureThreshold: 6}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: $2}}$3}
Y
}
# check WHO FILE: what was acknowledged (FILE) is there, each commit is there whole, and the files are sound.
check() {
  local host lost torn; host=$(address "$1")
  within 60 "$1 answers" psql "$host" -c 'SELECT 1'
  lost=$(psql "$host" -c 'CREATE TEMP TABLE acked (w int, s bigint, n int)' -c '\copy acked from pstdin' -c 'SELECT count(*) FROM acked LEFT JOIN rows USING (w, s, n) WHERE body IS NULL' <"$2") || fail "$1: the rows can't be compared"
  [ "$lost" = 0 ] || fail "$1: $lost of $(wc -l <"$2") acknowledged rows are lost"
  torn=$(psql "$host" -c "SELECT (SELECT sum(n) FROM counters) - (SELECT count(*) FROM rows), (SELECT count(*) FROM rows WHERE body <> repeat(md5(n::text), 1 + n % 5))")
  [ "$torn" = "0"$'\t'"0" ] || fail "$1: counters less rows, and rows that are damaged: $torn"
  inns chroot "$PG/root" pg_amcheck -h "$host" -U postgres --all --install-missing --heapallindexed --parent-check >"$W/amcheck" 2>&1 || { cat "$W/amcheck" >&2; fail "$1: pg_amcheck"; }
  ok "$1: $(wc -l <"$2") acknowledged rows are there, $(psql "$host" -c 'SELECT count(*) FROM rows') in all; pg_amcheck --all finds nothing"
}
expand() {
  k patch pvc data-db-0 --type=merge -p '{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}' >/dev/null
  within 60 "the volume is enlarged" is 2Gi k get pvc data-db-0 -o jsonpath='{.status.allocatedResources.storage}'
  ok "the volume is enlarged under load"
}
enlarged() { # where the kernel doesn't let us enlarge what is mounted, the file system follows at the next mount: once no pod has had it
  is 2Gi k get pvc data-db-0 -o jsonpath='{.status.capacity.storage}' || { k scale statefulset/db --replicas=0 >/dev/null; within 60 "nobody has it" bash -c "! grep -F '$STATE/data' /proc/mounts | grep -F local.keelson.dev/"; k scale statefulset/db --replicas=1 >/dev/null; }
  within 120 "the claim has its size" is 2Gi k get pvc data-db-0 -o jsonpath='{.status.capacity.storage}'
  within 60 "the database is back" ready db-0
  [ "$(k exec db-0 -- df -m /data | awk 'END {print $2}')" -gt 1800 ] || fail "the file system hasn't grown: $(k exec db-0 -- df -m /data)"
  ok "claim and file system have their new size"
}
snap() { # name: a picture under load; what was acknowledged before it is in what is restored of it
  cat "$W"/acked.* >"$W/before"
  k apply -f - >/dev/null <<<"{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshot, metadata: {name: $1}, spec: {source: {persistentVolumeClaimName: data-db-0}}}"
  [ "${2:-}" != server ] || { sleep 0.1; dead; begin; }
  within 120 "the snapshot is ready" is true k get volumesnapshot "$1" -o jsonpath='{.status.readyToUse}'
  local size; size=$(k get volumesnapshot "$1" -o jsonpath='{.status.restoreSize}')
  database "$1" "$size" ", dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: $1}"
  within 180 "a database of the snapshot is Ready" ready "$1-0"
  ok "$1: restored from a snapshot under load ($size${2:+, the $2 killed meanwhile})"; check "$1" "$W/before"
  k delete service,statefulset "$1" >/dev/null; k delete pvc "data-$1-0" --timeout=60s >/dev/null; k delete volumesnapshot "$1" --timeout=60s >/dev/null || fail "the snapshot goes"
}
finish() {
  status=$?; calm
  [ $status = 0 ] || { grep -v back-off "$STATE/server.log" | tail -20 | cut -c1-400 >&2; [ -z "${KEEP:-}" ] || { echo "the cluster stays: KEEP=1 goes on with round $round" >&2; exit $status; }; }
  conformance/cluster.sh down >/dev/null 2>&1 || true; exit $status
}
tools/postgres/image.sh "$PG"
OTHERS=$([ -e "$W/round" ] || pgrep -x postgres | sort) || true   # this machine's own; who goes on has the drill's there, too
SEED=${SEED:-$(cat "$W/seed" 2>/dev/null || echo $RANDOM)}; round=${FROM:-1}
trap finish EXIT
if [ -n "${KEEP:-}" ] && [ -e "$W/round" ]; then
  round=$(cat "$W/round"); begin; DB=$(address db); echo "=== going on with round $round of $ROUNDS, SEED=$SEED"
else
  conformance/cluster.sh down >/dev/null 2>&1 || true; mkdir -p "$W"; echo "$SEED" >"$W/seed"
  # A database that is killed each second waits as long as each other that crashes; here it needn't.
  printf 'apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncrashLoopBackOff: {maxContainerRestartPeriod: 1s}\n' >"$W/kubelet.yaml"
  export EXTRA="--kubelet-config $W/kubelet.yaml"
  conformance/cluster.sh up; inns "$KEELSON" image --data-dir "$STATE/data" import "$PG/postgres.tar" >/dev/null
  k create namespace postgres >/dev/null; database db 1Gi ""
  within 120 "the database is Ready" ready db-0; DB=$(address db)
  psql "$DB" -c 'CREATE TABLE rows (w int, s bigint, n int, body text NOT NULL, PRIMARY KEY (w, s, n))' -c 'CREATE TABLE counters (w int PRIMARY KEY, n bigint NOT NULL)' -c "INSERT INTO counters SELECT w, 0 FROM generate_series(1, $WRITERS) w" || fail "a table is made"
  echo "=== $ROUNDS rounds, SEED=$SEED"
fi
export EXTRA="--kubelet-config $W/kubelet.yaml"
touch "$W/acked.1"; storm
kinds=($KINDS)
for ((; round <= ROUNDS; round++)); do
  echo "$round" >"$W/round"; [ $SECONDS -lt $UNTIL ] || fail "${MINUTES:-90} minutes are over before round $round"
  RANDOM=$((SEED * 211 + round)); : $RANDOM; kind=${kinds[RANDOM % ${#kinds[@]}]}
  began=$(date +%s%N); strike "$kind"
  sleep 0.2; now=$(acked); within 60 "rows are written again after $kind" grows "$now"; within 60 "the pod is Ready again after $kind" ready db-0
  printf '%s round %d %-12s %5d ms, %d rows acknowledged\n' "$(date +%T)" "$round" "$kind" $((($(date +%s%N) - began) / 1000000)) "$(acked)"
  [ "$round" != $((ROUNDS / 4)) ] || snap early
  [ "$round" != $((ROUNDS / 3)) ] || expand
  [ "$round" != $((ROUNDS * 3 / 4)) ] || snap late server
done
enlarged; calm
cat "$W"/acked.* >"$W/all"; check db "$W/all"
k delete namespace postgres --timeout=120s >/dev/null 2>&1 || fail "the namespace goes"
within 60 "the volumes go with their claims" is "" k get pv -o name
[ -z "$(ls "$STATE/data/volumes/volumes" "$STATE/data/volumes/snapshots" 2>/dev/null | grep -v : | grep .)" ] || fail "files of volumes are left: $(ls "$STATE"/data/volumes/*)"
round=$((ROUNDS + 1)); conformance/cluster.sh stop; inns "$KEELSON" uninstall --data-dir "$STATE/data" --yes >/dev/null
left=$(grep -F "$STATE" /proc/mounts; losetup -a | grep -F "$STATE"; pgrep -af "$STATE"; comm -13 <(echo "$OTHERS") <(pgrep -x postgres | sort); inns ip -o link | grep kls; inns nft list tables 2>/dev/null | grep keelson; ls -d "$STATE/data" 2>/dev/null) || true
[ -z "$left" ] || fail "left behind: $left"
ok "nothing is left behind"
