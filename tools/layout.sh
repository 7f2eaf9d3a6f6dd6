#!/bin/bash
# layout.sh: writes layout/used.gz: the functions that a server with ten pods runs while nothing happens, then those that it runs before that, as pods come and go and
# a user looks. layout/clang, the linker, puts them side by side in the program. Takes a program with its symbols (KEELSON_SYMBOLS=1 make build), root and
# five minutes. To be done again when layout/clang says that many of the names are gone.
set -euo pipefail; export LC_ALL=C
cd "$(dirname "$0")/.."
export KEELSON=$(realpath "${KEELSON:-target/release/keelson}") CLUSTER=${CLUSTER:-klly0} NODE_IP=${NODE_IP:-10.79.92.1} NOREGISTRY=1
WORK=$(mktemp -d /tmp/keelson-layout.XXXXXX)
. conformance/lib/env.sh
k() { inns "$BIN/kubectl" --kubeconfig "$KUBECONFIG_FILE" "$@"; }
say() { printf '%s %s\n' "$(date +%T)" "$*"; }
trap 'conformance/cluster.sh down >/dev/null 2>&1 || true; rm -rf "$WORK"' EXIT
nm --defined-only "$KEELSON" 2>/dev/null | awk '$2 ~ /^[tTwW]$/ {print $1 "\t" $3}' | sort >"$WORK/symbols"
[ -s "$WORK/symbols" ] || { echo "layout: $KEELSON has no symbols: KEELSON_SYMBOLS=1 make build" >&2; exit 1; }
clang -O2 -o "$WORK/record" tools/layout/record.c
record() { "$WORK/record" "$PID" "$1" < <(cut -f1 "$WORK/symbols"); }
# By the names that the linker compares.
names() { sed 's/^/0000000000000000/; s/.*\(.\{16\}\)$/\1/' | sort | join -t$'\t' - "$WORK/symbols" | cut -f2 | c++filt --format=rust | sed 's/\[[0-9a-f]\{8,16\}\]//g' | sort -u; }
pods() { for i in $(seq 10); do printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%s-%s"},"spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"registry.k8s.io/pause:3.10.2"}]}}\n---\n' "$1" "$i"; done; }

say "a server"; conformance/build.sh quick; conformance/images.sh '^registry.k8s.io/pause' >/dev/null; conformance/cluster.sh up
PID=$(cat "$STATE/server.pid")
say "pods come and go"; record 75 >"$WORK/busy" & RECORD=$!; sleep 3
for round in first second; do
  pods $round | k apply -f - >/dev/null; k wait --for=condition=Ready pod --all --timeout=60s >/dev/null
  [ $round = second ] || k delete pod --all --timeout=60s >/dev/null
done
k create deployment web --image=registry.k8s.io/pause:3.10.2 --replicas=2 >/dev/null; k expose deployment web --port=80 >/dev/null
k rollout status deployment/web --timeout=60s >/dev/null
for kind in nodes pods services events; do k get $kind -A >/dev/null; k get $kind -A -o yaml >/dev/null; done
k delete deployment/web service/web >/dev/null; wait $RECORD
say "nothing happens"; record "${IDLE:-150}" >"$WORK/still"
names <"$WORK/still" >"$WORK/first"; names <"$WORK/busy" | comm -13 "$WORK/first" - >"$WORK/second"
cat "$WORK/first" "$WORK/second" | gzip -9n >tools/layout/used.gz
say "$(wc -l <"$WORK/first") functions when nothing happens, $(wc -l <"$WORK/second") more before"
