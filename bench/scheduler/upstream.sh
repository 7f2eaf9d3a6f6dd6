#!/bin/bash
# upstream.sh PACKAGE CASE/SIZE: upstream's own scheduler_perf on this machine, for figures beside ours: `upstream.sh misc '^SchedulingBasic$/^500Nodes$'`.
# PACKAGE is a directory of test/integration/scheduler_perf (misc, affinity, topology_spreading, default_preemption, volumes). Built from published Go
# modules into $LAB/scheduler_perf; it starts an etcd and a kube-apiserver of its own in a network namespace that ends with it. At most ten minutes.
. "$(dirname "$0")/../../conformance/lib/env.sh"; set -euo pipefail
PACKAGE=${1:?which package?} RUN=${2:?which case and size?} K=v1.37.2 M=v0.37.2
"$(dirname "$0")/../../conformance/build.sh" etcd
DIR=$LAB/scheduler_perf SRC=$(go mod download -json k8s.io/kubernetes@$K | jq -r .Dir) P=k8s.io/kubernetes/test/integration/scheduler_perf
mkdir -p "$DIR/out" "$DIR/tmp"; cd "$DIR"
# k8s.io/kubernetes replaces its staging modules by folders; a consumer has to name their published versions.
[ -f go.mod ] || { printf 'module suite\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire k8s.io/kubernetes %s\n\nreplace (\n' $K
  sed -n '/^replace (/,/^)/p' "$SRC/go.mod" | awk -v m=$M '/=>/{print "\t"$1" => "$1" "m}'; echo ')'; } >go.mod
[ -x "$PACKAGE.test" ] || { go get -t $P/$PACKAGE@$K 2>/dev/null; CGO_ENABLED=0 go test -mod=mod -c -ldflags '-s -w' -o "$PACKAGE.test" $P/$PACKAGE; }
rm -f out/*; cd "$SRC/test/integration/scheduler_perf/$PACKAGE"
PATH=$PATH:$BIN TMPDIR=$DIR/tmp unshare --net bash -c "ip link set lo up; exec timeout 590 '$DIR/$PACKAGE.test' -test.run NONE -test.benchtime 1ns \
  -perf-scheduling-label-filter= -test.bench 'BenchmarkPerfScheduling/$RUN' -data-items-dir '$DIR/out'" >"$DIR/log" 2>&1 ||
  { grep -E '^ +|FAIL' "$DIR/log" | tail -5 >&2; exit 1; }
# Pods a second as it measures them: seconds, but the first in which a pod was bound. Where all were bound sooner there is no figure.
jq -r '.dataItems[] | select(.labels.Metric == "SchedulingThroughput" or (.labels.Metric == "scheduler_scheduling_attempt_duration_seconds" and .labels.result == "scheduled"))
  | [.labels.Name, .labels.Metric, "average", (.data.Average | round), "p50", (.data.Perc50 | round), "p99", (.data.Perc99 | round)] | @tsv' "$DIR"/out/*benchmark*.json
