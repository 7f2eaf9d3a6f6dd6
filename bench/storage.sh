#!/bin/bash
# storage.sh: what volumes of the default class cost, on a cluster of its own (a network namespace): from a claim to its mount, a hundred pods with a
# volume each, and what a volume takes of its disk's speed, by fio and by pgbench (PostgreSQL of tools/postgres). Needs root, fio and apt.
# env: CLAIMS (50), PODS (100), TIMES (7) of each pair of runs, SECONDS_EACH (8). Removes what it made.
set -euo pipefail
cd "$(dirname "$0")/.."; export CLUSTER=${CLUSTER:-klbv0} NODE_IP=${NODE_IP:-10.79.83.1} NOIMPORT=1 NOREGISTRY=1
. conformance/lib/env.sh
export KEELSON=${KEELSON:-$PWD/target/release/keelson} PG=$LAB/postgres STATE KUBECONFIG_FILE
command -v fio >/dev/null || { echo "there is no fio: apt-get install fio" >&2; exit 1; }
tools/postgres/image.sh "$PG"
conformance/cluster.sh down >/dev/null 2>&1 || true
trap 'status=$?; conformance/cluster.sh down >/dev/null 2>&1 || true; exit $status' EXIT
conformance/cluster.sh up
mkdir -p "$STATE/images"; examples/image.sh "$STATE/images" >/dev/null
inns "$KEELSON" image --data-dir "$STATE/data" import "$STATE/images/web.tar" >/dev/null
inns python3 bench/storage.py
