#!/bin/bash
# test-on-node.sh: what people do on a node by the program itself, on the cluster of conformance/cluster.sh: ps, logs, exec, stats and top by the
# runtime's socket, without a kubeconfig and with the API's port closed to everybody. Half a minute.
set -euo pipefail   # no `grep -q` in pipes: it ends at the first match, and who still writes then fails the pipe
cd "$(dirname "$0")/.."; . conformance/lib/env.sh
KEELSON=${KEELSON:-$PWD/target/release/keelson}
k() { inns "$BIN/kubectl" --kubeconfig "$KUBECONFIG_FILE" "$@"; }
# Whatever names a cluster or a runtime is taken away: what answers is the socket.
on() { local command=$1; shift; inns env -u KUBECONFIG -u CONTAINER_RUNTIME_ENDPOINT "$KEELSON" "$command" --data-dir "$STATE/data" "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
ok() { echo "ok  $*"; }
closed=
api() { # closed, open
  case $1 in
    closed) inns nft -f - <<<'table inet on_node { chain in { type filter hook input priority -200; tcp dport 6443 reject with tcp reset; }; }'; closed=1 ;;
    open) [ -z "$closed" ] || inns nft delete table inet on_node; closed= ;;
  esac
}
trap 'api open; k delete namespace on-node --ignore-not-found --wait=false >/dev/null 2>&1 || true' EXIT
mkdir -p "$STATE/images"; examples/image.sh "$STATE/images" >/dev/null
on image import "$STATE/images/web.tar" >/dev/null || fail "image import"
IMAGE=example.local/web:1
k create namespace on-node >/dev/null
k create -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: talker, namespace: on-node, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: $IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'n=0; while [ ! -e /tmp/end ]; do n=\$((n+1)); echo line \$n; sleep 0.2; done; echo last words']
  - {name: beside, image: $IMAGE, imagePullPolicy: Never, command: [sh, -c, 'while :; do :; done']}
YAML
k -n on-node wait --for=condition=Ready pod/talker --timeout=60s >/dev/null || fail "the pod isn't Ready"
api closed
inns curl -sk -m 3 "https://$NODE_IP:6443/healthz" >/dev/null && fail "the API still answers" || ok "nobody reaches the API"
[ "$(on ps --namespace on-node | wc -l)" = 3 ] && ok "ps" || fail "ps: $(on ps)"
on ps --label app=talker --name main | grep ' on-node  *talker  *main  *0  *Running ' >/dev/null && ok "ps by label and name" || fail "ps: $(on ps --namespace on-node)"
on ps --pods --namespace on-node | grep '2 of 2 run' >/dev/null && ok "ps --pods" || fail "ps --pods: $(on ps --pods)"
ID=$(on ps -q --namespace on-node --name main)
PID=$(on ps --namespace on-node --name main -o json | sed -n 's/^ *"pid": \([0-9]*\),\?$/\1/p')
[ -e "/proc/$PID/status" ] && ok "ps -o json tells the process" || fail "ps -o json: $(on ps --namespace on-node -o json)"
on logs on-node/talker/main --tail 1 | grep '^line ' >/dev/null && ok "logs" || fail "logs"
[ "$(on logs "${ID:0:12}" --timestamps | head -1 | cut -d' ' -f2-)" = "line 1" ] && ok "logs by ID, with times" || fail "logs by ID"
on logs talker >/dev/null 2>"$STATE/on-node.err" && fail "one of two containers was guessed"
grep 'on-node/talker/beside, on-node/talker/main' "$STATE/on-node.err" >/dev/null && ok "who could be meant is said" || fail "$(cat "$STATE/on-node.err")"
[ "$(on exec talker -c main -- sh -c 'echo out; echo err >&2' 2>/dev/null)" = out ] && ok "exec" || fail "exec"
[ "$(printf 'a\nb\n' | on exec -i on-node/talker/main -- wc -l | tr -d ' ')" = 2 ] && ok "exec takes input to its end" || fail "exec -i"
set +e; on exec on-node/talker/main -- sh -c 'exit 7' >/dev/null 2>&1; code=$?; set -e
[ $code = 7 ] && ok "exit code of exec" || fail "exit code of exec: $code"
set +e; shown=$(on exec on-node/talker/main -- no-such-program 2>&1); code=$?; set -e
[ $code != 0 ] && grep 'executable file not found' <<<"$shown" >/dev/null && ok "what can't be run is told" || fail "no-such-program: $code, $shown"
shown=$(script -qec "stty cols 91 rows 17; nsenter --net=/run/netns/$CLUSTER '$KEELSON' exec --data-dir '$STATE/data' -it on-node/talker/main -- sh -c 'for i in 1 2 3 4 5 6 7 8 9; do stty size; sleep 0.1; done'" /dev/null </dev/null || true)
grep '17 91' <<<"$shown" >/dev/null && ok "a terminal of its size" || fail "a terminal: $shown"
BUSY=$(on stats --namespace on-node --name beside -o json | sed -n 's/^ *"cpuMillicores": \([0-9]*\),\?$/\1/p')
[ "${BUSY:-0}" -gt 50 ] && ok "stats: who is busy uses $BUSY thousandths of a CPU" || fail "stats: $(on stats --namespace on-node)"
on stats --pods --namespace on-node | grep ' MiB\| KiB' >/dev/null && ok "stats --pods" || fail "stats --pods"
on top --namespace on-node | sed -n 2p | grep beside >/dev/null && ok "top, printed once" || fail "top: $(on top --namespace on-node)"
(timeout 60 nsenter --net=/run/netns/"$CLUSTER" "$KEELSON" logs --data-dir "$STATE/data" -f on-node/talker/main --tail 1 >"$STATE/on-node.log" 2>&1; echo "ended $?" >>"$STATE/on-node.log") & FOLLOW=$!
for _ in $(seq 100); do grep -c '^line ' "$STATE/on-node.log" >/dev/null && break; sleep 0.1; done
on exec on-node/talker/main -- touch /tmp/end
wait $FOLLOW
[ "$(tail -2 "$STATE/on-node.log")" = "$(printf 'last words\nended 0')" ] && ok "logs -f ends with the container, its last words read" || fail "logs -f: $(tail -5 "$STATE/on-node.log")"
for _ in $(seq 100); do [ "$(on ps -aq --namespace on-node --name main | wc -l)" -gt 1 ] && break; sleep 0.1; done
on logs -p on-node/talker/main --tail 1 | grep '^last words$' >/dev/null && ok "logs of the instance before" || fail "logs -p: $(on ps -a --namespace on-node)"
on ps --runtime-endpoint unix:///nowhere.sock >/dev/null 2>"$STATE/on-node.err" && fail "somebody answers nowhere"
grep 'no runtime listens at unix:///nowhere.sock: is keelson running' "$STATE/on-node.err" >/dev/null && ok "a socket that isn't there is told" || fail "$(cat "$STATE/on-node.err")"
