#!/bin/bash
# test-cluster.sh: the store over a real etcd; two machines that become a cluster, of both families too; three servers that fail; then a real cluster in a network namespace: the new user's path with
# kubectl, kill -9 under load, the quick conformance list, snapshots, storage, and a removal that leaves no trace. Ends only what it started. About 10 minutes once all is built.
set -euo pipefail
cd "$(dirname "$0")/.."; PROFILE=${PROFILE:-release}
export KEELSON=/tmp/keelson-m
export CLUSTER=${CLUSTER:-klt0} NODE_IP=${NODE_IP:-10.79.0.1}
. conformance/lib/env.sh
step() { printf '\n=== %s %s\n' "$(date +%T)" "$*"; }
step "building the suite"; conformance/build.sh quick; conformance/images.sh >/dev/null
step "the store over etcd, and the same answers from ours"; tools/test-etcd.sh
step "our store in the place of etcd"; tools/test-etcd-api.sh
step "two machines"; tools/test-nodes.sh
step "another authority"; tools/test-authorities.sh
step "requests from outside"; tools/test-ingress.sh
step "a developer's cluster"; tools/test-dev.sh
step "a change tried on a copy"; tools/test-fork.sh
step "an upgrade"; tools/test-upgrade.sh
step "an upgrade of all machines"; tools/test-upgrade-nodes.sh
step "a backup in a bucket"; tools/test-backup.sh
step "history"; tools/test-history.sh
step "traces"; tools/test-traces.sh
step "add-ons"; tools/test-addons.sh
step "a registry, and images from node to node"; KUBECTL=$BIN/kubectl tools/test-registry.sh
step "a client of others: the Python client"; CLUSTER=klcl0 NODE_IP=10.79.71.1 tests/clients/run.sh python
step "both families"; FAMILIES=64 tools/test-families.sh
step "another token of the servers"; tools/test-token.sh
step "three servers"; FAILURES=link:1 tools/test-servers.sh
step "starting a cluster"
conformance/cluster.sh down >/dev/null 2>&1 || true
trap 'status=$?; [ $status = 0 ] || { echo "=== failed; the end of the server log:"; tail -60 $STATE/server.log; conformance/cluster.sh kubectl get pods,events -A 2>/dev/null | tail -60; }; conformance/cluster.sh down >/dev/null 2>&1 || true; exit $status' EXIT
conformance/cluster.sh up
step "the new user's path"; tools/test-user-path.sh
step "a component alone"; tools/test-alone.sh
step "on the node, without the API"; tools/test-on-node.sh
step "the quick conformance list"
PROCS=${PROCS:-4} conformance/run.sh conformance/lists/quick.txt "$STATE/quick" || { cat "$STATE/quick/failures.txt" 2>/dev/null | head -100; exit 1; }
step "snapshots of the store"; tools/test-snapshots.sh
step "claims of the default class"; tools/test-storage.sh
step "removal"
conformance/cluster.sh stop
inns "$KEELSON" uninstall --data-dir "$STATE/data" --yes
left=$(inns nft list tables 2>/dev/null | grep keelson || true; inns ip -o link | grep kls || true; grep -F "$STATE" /proc/mounts || true; ls -d "$STATE/data" 2>/dev/null || true)
[ -z "$left" ] || { echo "left behind: $left"; exit 1; }
echo "nothing left behind"
