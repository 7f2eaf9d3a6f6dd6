#!/bin/bash
# up.sh: starts a cluster on this machine with the data directory $DATA, and deploys the example.
set -euo pipefail
cd "$(dirname "$0")/.."
KEELSON=${KEELSON:-$PWD/target/up/keelson}; DATA=${DATA:-$PWD/.keelson}; KUBECONFIG=$DATA/admin.kubeconfig
mkdir -p "$DATA/images"
say() { printf '\033[1m%s\033[0m\n' "$*"; }
[ -f "$DATA/images/web.tar" ] || examples/image.sh "$DATA/images" >/dev/null
if [ -f "$DATA/server.pid" ] && kill -0 "$(cat "$DATA/server.pid")" 2>/dev/null; then
  say "the server runs already (process $(cat "$DATA/server.pid"))"
else
  say "starting keelson server (log: $DATA/server.log)"
  echo "$KEELSON" >"$DATA/program"
  ulimit -n "$(ulimit -Hn)"
  setsid "$KEELSON" server --data-dir "$DATA" --kubeconfig "$KUBECONFIG" --images "$DATA/images" ${EXTRA:-} >>"$DATA/server.log" 2>&1 </dev/null &
fi
"$KEELSON" wait --kubeconfig "$KUBECONFIG" --timeout 120s --progress || { tail -20 "$DATA/server.log" >&2; exit 1; }
say "the node is Ready"
KUBECTL=$(command -v kubectl || true)
[ -n "$KUBECTL" ] || { [ -x "${LAB:-$HOME/.cache/keelson-lab}/bin/kubectl" ] && KUBECTL=${LAB:-$HOME/.cache/keelson-lab}/bin/kubectl; } || true
if [ -z "$KUBECTL" ] && ! command -v go >/dev/null; then
  say "installing Debian's kubectl (an old one; with Go on this machine the current one is built)"
  apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends kubernetes-client >/dev/null
  KUBECTL=$(command -v kubectl)
elif [ -z "$KUBECTL" ]; then
  say "building kubectl (once, some minutes)"
  conformance/build.sh kubectl; KUBECTL=${LAB:-$HOME/.cache/keelson-lab}/bin/kubectl
fi
export KUBECONFIG
say "deploying examples/web.yaml"
"$KUBECTL" apply -f examples/web.yaml
"$KUBECTL" -n web rollout status deployment/web --timeout=120s
"$KUBECTL" -n web wait --for=condition=complete job/check --timeout=120s
cat <<TXT

It works. Try:
  export KUBECONFIG=$KUBECONFIG PATH=\$PATH:$(dirname "$KUBECTL")
  kubectl get nodes,pods -A
  curl http://$("$KUBECTL" get node -o jsonpath='{.items[0].status.addresses[0].address}'):30080/
  kubectl -n web logs -f deployment/web
  kubectl -n web exec -it deployment/web -- sh
  make down        # removes everything
TXT
