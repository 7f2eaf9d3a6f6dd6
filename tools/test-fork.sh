#!/bin/bash
# test-fork.sh: keelson fork on a control plane with simulated nodes, in a network namespace: a drain that a budget holds, an upgrade of a deployment, a claim,
# a custom resource and a secret are tried on copies, and the cluster stays as it was. A minute.
# env: KEELSON=program, KUBECTL, KEEP=1 keeps the logs
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NS=${NS:-klfork0} KUBECTL=${KUBECTL:-kubectl}
S=$(mktemp -d /tmp/keelson-fork-test.XXXXXX); mkdir "$S/tmp"
on() { nsenter --net=/run/netns/$NS "$@"; }
k() { on "$KUBECTL" --kubeconfig "$S/data/admin.kubeconfig" --request-timeout=20s "$@"; }
fork() { TMPDIR=$S/tmp timeout 150 nsenter --net=/run/netns/$NS "$KEELSON" fork --kubeconfig "$S/data/admin.kubeconfig" "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # seconds, what, command
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { (set -x; "$@") || true; fail "$what"; }; sleep 0.3; done; ok "$what"
}
says() { grep -qE -- "$2" "$S/$1.out" || { cat "$S/$1.out" "$S/$1.err"; fail "$1 says $2"; }; }
start() { local name=$1; shift; setsid nsenter --net=/run/netns/$NS "$@" >>"$S/$name.log" 2>&1 </dev/null & echo $! >"$S/$name.pid"; }
cleanup() {
  status=$?
  [ $status = 0 ] || for log in "$S"/*.log; do echo "=== ${log##*/}:"; tail -12 "$log"; done
  for name in simulate server; do p=$(cat "$S/$name.pid" 2>/dev/null) && kill "$p" 2>/dev/null || true; done
  for _ in $(seq 100); do [ -n "$(ip netns pids $NS 2>/dev/null)" ] || break; sleep 0.1; done
  clear_away $NS
  [ -n "${KEEP:-}" ] || rm -rf "$S"
  exit $status
}
trap cleanup EXIT; clear_away $NS
ip netns add $NS; on ip link set lo up
start server "$KEELSON" server --data-dir "$S/data" --disable agent,dns,ingress,local-storage,metrics,policy,proxy,snapshots,load-balancer --bind-address 127.0.0.1 --node-ip 127.0.0.1
within 60 "the server answers" k get --raw /readyz
start simulate "$KEELSON" simulate --nodes 2 --cpu 4 --memory 8Gi --name-prefix n --kubeconfig "$S/data/admin.kubeconfig"
within 60 "two nodes are Ready" k wait --for=condition=Ready node/n0 node/n1 --timeout=1s
k apply -f - >/dev/null <<'OBJECTS'
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: shop}
stringData: {password: s3cret-of-the-cluster}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: shelves.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Shelf, plural: shelves}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i:1, resources: {requests: {cpu: "1"}}}]}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: shop}
spec: {minAvailable: 4, selector: {matchLabels: {app: web}}}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: disk}
provisioner: disk.example.com
volumeBindingMode: WaitForFirstConsumer
OBJECTS
within 60 "four pods run" k -n shop rollout status deployment/web --timeout=1s
within 10 "a shelf" k apply -f - <<<'{"apiVersion": "example.com/v1", "kind": "Shelf", "metadata": {"name": "a", "namespace": "shop"}, "spec": {"boards": 3}}'
revision() { k get pods,deployments,nodes,pdb,shelves,secrets -A -o jsonpath='{range .items[*]}{.kind}/{.metadata.name} {.metadata.generation} {.spec.unschedulable}{"\n"}{end}' | sort; }
revision >"$S/before"

fork -- "$KUBECTL" drain n0 --ignore-daemonsets --timeout=5s >"$S/drain.out" 2>"$S/drain.err" && fail "a drain that is held fails"
says drain 'change   nodes n0'; says drain 'n0 +shop/web-.*held by the budget web \(4 healthy, 4 needed\)'
ok "a drain is held by a budget"
fork -- sh -c "$KUBECTL -n shop delete pdb web && $KUBECTL drain n0 --ignore-daemonsets --timeout=20s" >"$S/moves.out" 2>"$S/moves.err" || { cat "$S/moves.err"; fail "a drain"; }
says moves 'deployment shop/web: 2 go, 2 come'; says moves 'web-.* -> n1$'; says moves 'delete   poddisruptionbudgets.policy shop/web'
ok "without it pods move"
fork -- "$KUBECTL" -n shop scale deployment web --replicas=9 >"$S/large.out" 2>"$S/large.err"
says large 'spec.replicas: 4 -> 9'; says large 'waits: 0/2 nodes are available: 2 Insufficient cpu'
ok "what has no place waits"
cat >"$S/new.yaml" <<'OBJECTS'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: shop}
spec: {accessModes: [ReadWriteOnce], storageClassName: disk, resources: {requests: {storage: 1Gi}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: sum, namespace: shop}
spec: {template: {spec: {restartPolicy: Never, volumes: [{name: d, persistentVolumeClaim: {claimName: data}}, {name: s, configMap: {name: absent}}], containers: [{name: c, image: i}]}}}
OBJECTS
fork -- sh -c "$KUBECTL apply -f $S/new.yaml && $KUBECTL -n shop wait --for=condition=complete job/sum --timeout=20s && $KUBECTL -n shop patch shelf a --type=merge -p '{\"spec\": {\"boards\": 4}}' && $KUBECTL -n shop get secret key -o yaml" >"$S/new.out" 2>"$S/new.err" || { cat "$S/new.err"; fail "a job"; }
says new 'create   persistentvolumeclaims shop/data'; says new 'create   jobs.batch shop/sum'; says new 'spec.boards: 3 -> 4'; says new 'would not start without configmaps absent'
says new 'password: d2l0aGhlbGQ='
ok "a claim is bound, a job ends, a custom resource changes, a secret's value isn't there"
fork --secret-values -o json -- sh -c "$KUBECTL -n shop get secret key -o yaml; $KUBECTL -n shop logs deploy/web; true" >"$S/json.out" 2>"$S/json.err"
says json "password: $(printf s3cret-of-the-cluster | base64)"; grep -q 'asks nobody else' "$S/json.err" || fail "logs are answered"
sed -n '/^{/,$p' "$S/json.out" | python3 -c 'import json,sys; assert json.load(sys.stdin)["changes"] == []' || fail "the report is JSON"
ok "values of secrets come when they are asked for; the report in JSON"
revision | diff "$S/before" - || fail "the cluster is as it was"
[ -z "$(ls "$S/tmp")" ] || fail "something is left of the copies"
ok "the cluster is as it was, and nothing is left of the copies"
