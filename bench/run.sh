#!/bin/bash
# run.sh [REPETITIONS=3]: Keelson beside upstream Kubernetes v1.37.2 (etcd, containerd, runc, kubelet, kube-proxy, CoreDNS) on this
# machine, in turn, in one run. Writes the table of docs/benchmarks.md to bench/out/PROGRAM/figures.md, raw lines to raw.tsv beside it; what
# was measured with this very program is not measured again (remove the directory to start over). Both run in network namespaces. What requests cost is
# requests.sh's matter.
set -euo pipefail
cd "$(dirname "$0")"; REPS=${1:-3}
export KEELSON=${KEELSON:-$PWD/../target/release/keelson} CLUSTER=klb0 NODE_IP=10.80.0.1
OUT=$PWD/out/$(sha256sum "$KEELSON" | cut -c1-12); mkdir -p "$OUT"; RAW=$OUT/raw.tsv; touch "$RAW"
. ../conformance/lib/env.sh
K8S=$PWD/peer; IDLE=${IDLE:-30}
say() { printf '%s %s\n' "$(date +%T)" "$*"; }
have() { [ "$(awk -F'\t' -v w="$1" -v f="$2" '$1==w && $2==f' "$RAW" | wc -l)" -ge "$3" ]; }
note() { printf '%s\t%s\t%s\n' "$1" "$2" "$3" | tee -a "$RAW"; }
seconds() { awk -v a="$(date +%s.%N)" -v b="$1" 'BEGIN{printf "%.2f", a-b}'; }
pods() { # count
  for i in $(seq "$1"); do printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"idle-%s"},"spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"registry.k8s.io/pause:3.10.2"}]}}\n---\n' "$i"; done; }

../conformance/build.sh quick; "$K8S/build.sh" >"$OUT/peer-build.log"; ../conformance/images.sh '^registry.k8s.io/pause|coredns' >/dev/null
kl() { inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE "$@"; }
pe() { nsenter --net=/run/netns/pn0 $BIN/kubectl --kubeconfig "$LAB/state/admin.kubeconfig" "$@"; }
idle() { # who tool selector: memory and CPU with 10 pods that do nothing
  have "$1" cpu "$REPS" && return
  pods 10 | "$2" apply -f - >/dev/null; "$2" wait --for=condition=Ready pod --all --timeout=60s >/dev/null; sleep 20
  for r in $(seq "$REPS"); do note "$1" mem "$(./procs.py mem 0 "$3")"; note "$1" cpu "$(./procs.py cpu "$IDLE" "$3")"; done
}
apibench() { # who namespace kubeconfig: how soon pods run
  nsenter --net=/run/netns/$2 "$BIN/apibench" -kubeconfig "$3" -reps "$REPS" pod-latency deploy-50 | tee "$OUT/$1-apibench.part"
  mv "$OUT/$1-apibench.part" "$OUT/$1-apibench.txt"
}

say "Keelson: start"
for r in $(seq "$REPS"); do
  have keelson start "$r" && continue
  ../conformance/cluster.sh down >/dev/null 2>&1 || true
  NOIMPORT=1 NOREGISTRY=1 ../conformance/cluster.sh up; ../conformance/cluster.sh stop; sleep 1   # makes the namespace
  ( . ../conformance/lib/env.sh; inns $KEELSON uninstall --data-dir $STATE/data --yes >/dev/null ); rm -f $KUBECONFIG_FILE
  t=$(date +%s.%N); NOIMPORT=1 ../conformance/cluster.sh start; note keelson start "$(seconds "$t")"
done
../conformance/cluster.sh down >/dev/null 2>&1 || true
NOREGISTRY=1 ../conformance/cluster.sh up
kl wait --for=create serviceaccount/default --timeout=30s >/dev/null
idle keelson kl exe:$KEELSON
kl delete pod --all --wait=true >/dev/null 2>&1 || true
[ -s "$OUT/keelson-apibench.txt" ] || apibench keelson $CLUSTER $KUBECONFIG_FILE
../conformance/cluster.sh down

say "upstream: start"
for r in $(seq "$REPS"); do
  have upstream start "$r" && continue
  "$K8S/down.sh" --images >/dev/null 2>&1 || true
  t=$(date +%s.%N); IMG='*pause*' NOADDONS=1 "$K8S/up.sh" 1 >"$OUT/peer-up.log"; note upstream start "$(awk '/node-ready/{print $2}' "$OUT/peer-up.log")"
done
"$K8S/down.sh" >/dev/null 2>&1 || true; IMG='*' "$K8S/up.sh" 1 >"$OUT/peer-up.log"
pe wait --for=create serviceaccount/default --timeout=30s >/dev/null
idle upstream pe tree:$LAB/state/run
pe delete pod --all --wait=true >/dev/null 2>&1 || true
[ -s "$OUT/upstream-apibench.txt" ] || apibench upstream pn0 "$LAB/state/admin.kubeconfig"
"$K8S/down.sh" >/dev/null 2>&1 || true
have keelson size 1 || note keelson size "$(awk -v b="$(stat -c %s "$KEELSON")" 'BEGIN{printf "%.1f", b/1048576}')"
python3 figures.py "$RAW" "$OUT/keelson-apibench.txt" "$OUT/upstream-apibench.txt" | tee "$OUT/figures.md"
