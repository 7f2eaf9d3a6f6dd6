#!/bin/bash
# test-upgrade-nodes.sh: one command upgrades two servers over an etcd and an agent, while their pods go on: it refuses what can't be, is killed in
# between and goes on, stops at a program that isn't well, and obeys nobody but administrators. Two minutes.
# Machines are namespaces of network and mounts, with what of systemd they take played by tools/upgrade/manager.py.
# env: KEELSON=program, ETCD=etcd, NEXT=the newer one (without it the same program with a byte behind its end), NET=first three numbers of the network
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab} NET=${NET:-10.79.14} KEELSON=$(realpath "${KEELSON:-target/release/keelson}")
export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
ETCD=${ETCD:-$(command -v etcd)}
S=$(mktemp -d /tmp/keelson-upgrade-nodes.XXXXXX) PYTHON=$(python3 -c 'import sys; print(sys.executable)') K=/usr/local/bin/keelson ALL="0 1 2"
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
on() { local n=$1; shift; nsenter --target "$(cat "$S/$n/manager.pid")" --mount --net env PATH=/usr/local/bin:$PATH "$@"; }
k() { nsenter --net=/run/netns/hu0 kubectl --kubeconfig "${CONFIG:-$S/admin}" --request-timeout=10s "$@"; }
within() { # seconds, what, command…
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "$*:"; (set -x; "$@") || true; fail "$what"; }; sleep 0.2; done; ok "$what"
}
role() { if [ "$1" != 2 ]; then echo server; else echo agent; fi; }
unit() { if [ "$1" != 2 ]; then echo keelson.service; else echo keelson-agent.service; fi; }
machine() {
  local n=$1 m=$S/$1; mkdir -p "$m"/{local/bin,manager,run}
  ip netns add hu$n; ip link add hu$n-port type veth peer name eth0 netns hu$n; ip link set hu$n-port master hu-bridge up
  nsenter --net=/run/netns/hu$n bash -c "ip link set lo up; ip link set eth0 up; ip addr add $NET.1$n/24 dev eth0; ip route add default via $NET.254; sysctl -qw net.ipv4.ip_forward=1"
  printf '#!/bin/sh\nexec "%s" "%s" ctl "%s" "$@"\n' "$PYTHON" "$PWD/tools/upgrade/manager.py" "$m/manager" >"$m/local/bin/systemctl"
  printf '#!/bin/sh\ntail -n 12 "%s/log"\n' "$m/manager" >"$m/local/bin/journalctl"; chmod 755 "$m"/local/bin/*
  cp -a /etc "$m/etc"; rm -rf "$m/etc/keelson"
  cat >"$m/begin" <<SH
set -e
mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/system /run/lock
mount --bind $m/etc /etc; mount --bind $m/local /usr/local
exec $PYTHON $PWD/tools/upgrade/manager.py run $m/manager /etc/systemd/system/$(unit "$n")
SH
  setsid nsenter --net=/run/netns/hu$n unshare --mount --propagation private bash "$m/begin" >>"$m/manager/log" 2>&1 </dev/null & echo $! >"$m/manager.pid"; disown
  within 10 "machine hu$n" test -S "$m/manager/control"
}
cleanup() {
  status=$?
  [ $status = 0 ] || for n in $ALL; do echo "=== machine $n:"; tail -n 25 "$S/$n/manager/log" || true; cat "$S/$n/data/upgrade/asked.log" || true; on $n $K upgrade status || true; done
  for n in 2 1 0; do
    [ -f "$S/$n/manager.pid" ] || continue
    on $n systemctl disable --now "$(unit $n)" || true
    [ ! -f "$S/$n/hand" ] || kill "$(cat "$S/$n/hand")" 2>/dev/null || true
    on $n "$S/made/old" uninstall --data-dir "$S/$n/data" --yes >"$S/$n/uninstall" 2>&1 || { cat "$S/$n/uninstall"; status=1; }
    kill "$(cat "$S/$n/manager.pid")" 2>/dev/null || true
  done
  [ ! -f "$S/etcd.pid" ] || kill "$(cat "$S/etcd.pid")" 2>/dev/null || true
  clear_away hu0 hu1 hu2 hu-bridge
  rm -rf "$S"; exit $status
}
mkdir -p "$S"/{made,images}
trap cleanup EXIT; clear_away hu0 hu1 hu2 hu-bridge
cp "$KEELSON" "$S/made/old"
# What only debuggers read would be copied many times.
[ -n "${NEXT:-}" ] || strip "$S/made/old" 2>/dev/null || true
if [ -n "${NEXT:-}" ]; then cp "$NEXT" "$S/made/new"; else cp "$S/made/old" "$S/made/new"; echo >>"$S/made/new"; fi
KUBERNETES=$("$S/made/old" version | sed 's/.*v\(.*\))/\1/')
told() { printf '{"version":"%s","kubernetes":"%s","store":"keelson-store-1"}' "$1" "$KUBERNETES"; }
MANNER=ends TOLD=$(told 99.0.0) rustc --edition 2024 -o "$S/made/ends" tools/upgrade/ill.rs
MANNER=ends TOLD=$(told 0.0.1) rustc --edition 2024 -o "$S/made/older" tools/upgrade/ill.rs
examples/image.sh "$S/images" >/dev/null
ip link add hu-bridge type bridge; ip link set hu-bridge up
for n in $ALL; do machine $n; done

flags() { echo "--data-dir $S/$1/data --node-name hu$1 --node-ip $NET.1$1 --images $S/images --kubelet-link none --cgroup-root /keelson-hu$1 --eviction-hard nodefs.available<1%,nodefs.inodesFree<1%"; }
# shellcheck disable=SC2046
install() { local n=$1; shift; on $n env "$@" "$S/made/old" install "$(role $n)" --timeout 120s -- $(flags $n) $(joins $n) >"$S/$n/install"; ok "$(head -1 "$S/$n/install")"; }
joins() { # A server's kubeconfig, and where it meets the other; an agent's server.
  if [ "$1" = 2 ]; then echo "--server https://$NET.10:6443"; else echo "--kubeconfig $S/admin$1 --etcd-servers http://$NET.10:2379"; fi
}
nsenter --net=/run/netns/hu0 "$ETCD" --data-dir "$S/etcd" --listen-client-urls http://$NET.10:2379 --advertise-client-urls http://$NET.10:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync >"$S/etcd.log" 2>&1 & echo $! >"$S/etcd.pid"
install 0; ln -s admin0 "$S/admin"
install 1 KEELSON_TOKEN="$(cat "$S/0/data/pki/server-token")"
TOKEN=$(on 0 $K token create --kubeconfig "$S/admin")
# The third is no service at first.
# shellcheck disable=SC2016,SC2046
KEELSON_TOKEN=$TOKEN on 2 setsid sh -c 'echo $$ >"$0"; exec "$@"' "$S/2/hand" "$S/made/old" agent $(flags 2) --server https://$NET.10:6443 >>"$S/2/manager/log" 2>&1 </dev/null & disown
ready() { [ "$(k get nodes -o jsonpath='{.items[*].status.conditions[?(@.type=="Ready")].status}')" = "True True True" ]; }
within 120 "three machines Ready" ready
for n in $ALL; do cat <<YAML
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web$n}
spec:
  replicas: 3
  selector: {matchLabels: {app: web$n}}
  template:
    metadata: {labels: {app: web$n}}
    spec: {nodeName: hu$n, terminationGracePeriodSeconds: 0, containers: [{name: web, image: "example.local/web:1", imagePullPolicy: Never}]}
YAML
done | k apply -f - >/dev/null
for n in $ALL; do k rollout status deployment/web$n --timeout=180s >/dev/null; done; ok "nine pods"
containers() { k get pods -o jsonpath='{range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort; }
same() { [ "$BEFORE" = "$(containers)" ] || fail "$1: containers changed: $BEFORE / $(containers)"; ok "$1: the same containers"; }
run() { local what=$1 n; shift; for n in "$@"; do cmp -s "$S/$n/local/bin/keelson" "$S/made/$what" || fail "hu$n: another program than the $what one is in place"; done; ok "on $*: the $what program"; }
upgrade() { nsenter --net=/run/netns/hu0 "$S/made/old" upgrade --all-nodes --kubeconfig "${CONFIG:-$S/admin}" "$@"; }
refused() { local why=$1; shift; upgrade "$@" >"$S/out" 2>&1 && fail "$* was taken"; grep -F -e "$why" "$S/out" >/dev/null || { cat "$S/out"; fail "refused otherwise than: $why"; }; ok "refused: $why"; }

echo "--- who isn't a service is named before anything begins"
tells() { for n in $ALL; do k get node hu$n -o jsonpath='{.metadata.annotations.keelson\.dev/program}' | grep -q role || return 1; done; }
within 20 "each machine says what it runs" tells
refused "hu2: no service of Keelson is installed on this machine" "$S/made/new"
[ "$(k get --raw /keelson/upgrade/order)" = '{"order":null,"revision":0}' ] || fail "an order was given"
kill "$(cat "$S/2/hand")"; for _ in $(seq 100); do kill -0 "$(cat "$S/2/hand")" 2>/dev/null || break; sleep 0.1; done; rm "$S/2/hand"
install 2 KEELSON_TOKEN="$TOKEN"
within 60 "three machines Ready" ready
says() { k get node "$1" -o jsonpath='{.metadata.annotations.keelson\.dev/program}' | grep -q '"sha256":"'; }
within 30 "it is one now" says hu2
BEFORE=$(containers)

echo "--- nobody but administrators"
on 0 $K user add ana --role cluster-admin --kubeconfig "$S/admin" -o "$S/ana"
for words in "get --raw /keelson/upgrade/order" "delete --raw /keelson/upgrade/programs"; do
  # shellcheck disable=SC2086
  CONFIG=$S/ana k $words >"$S/out" 2>&1 && fail "ana may $words"; grep -q "only the group system:masters" "$S/out" || { cat "$S/out"; fail "ana is refused otherwise"; }
done
CONFIG=$S/ana refused "only the group system:masters" "$S/made/new"
asnode() { k --as system:node:hu1 --as-group system:nodes "$@"; }
asnode get --raw /keelson/upgrade/order >/dev/null || fail "a node can't read what it is asked"
echo '{"sha256":"x","size":1,"timeoutSeconds":1}' >"$S/order"
for words in "replace --raw /keelson/upgrade/order?revision=0 -f $S/order" "delete --raw /keelson/upgrade/programs"; do
  # shellcheck disable=SC2086
  asnode $words >"$S/out" 2>&1 && fail "a node may $words"; grep -qi "forbidden\|only the group" "$S/out" || { cat "$S/out"; fail "a node is refused otherwise"; }
done
ok "a user with all rights, and a node, give no orders"

echo "--- what is refused, and judged"
refused "it is no program" "$S/order"
refused "is older than what runs" "$S/made/older"
upgrade "$S/made/new" --dry-run | tee "$S/out"; grep -F "1. hu0" "$S/out" >/dev/null && [ "$(grep -c 'containers would go on running' "$S/out")" = 3 ] || fail "the plan"
run old $ALL; same "judging"

echo "--- a program that isn't well"
refused "hu0: keelson 99.0.0 wasn't well" "$S/made/ends" --timeout 20s
run old $ALL; same "after it"
within 60 "three machines Ready" ready
[ "$(k get nodes -o jsonpath='{.items[*].metadata.annotations.keelson\.dev/upgrade}' | grep -o '"state":"ill"' | wc -l)" = 1 ] || fail "more than one machine was asked"

echo "--- an upgrade, whose command is killed in between"
# Not by a function: its process is the one to end.
nsenter --net=/run/netns/hu0 "$S/made/old" upgrade "$S/made/new" --all-nodes --kubeconfig "$S/admin" --timeout 120s >"$S/out" 2>&1 & UPGRADE=$!
within 180 "the second server takes it" grep -F "hu1: takes it" "$S/out"
kill -9 $UPGRADE; wait $UPGRADE 2>/dev/null || true
run new 0; run old 2
upgrade "$S/made/new" --timeout 120s | tee "$S/out"
grep -F "hu0: runs that program already" "$S/out" >/dev/null || fail "it began anew"
run new $ALL; same "the upgrade"
for n in $ALL; do on $n $K upgrade status | grep -F confirmed >/dev/null || fail "hu$n: $(on $n $K upgrade status)"; done; ok "each is confirmed"
upgrade "$S/made/new" | grep -F "nothing to do" >/dev/null; ok "again: nothing to do"
within 10 "no program is left" sh -c "[ -z \"\$(find $S/*/data/upgrade/programs -type f)\" ]"

echo "--- an order of before isn't obeyed"
k get --raw /keelson/upgrade/order >"$S/kept"
"$PYTHON" - "$S/kept" "$S/order" <<'PY'
import json, sys
kept = json.load(open(sys.argv[1]))
order = kept["order"]
order["asks"]["hu1"] = {"id": "again", "verb": "take", "until": "2020-01-01T00:00:00Z"}
json.dump(order, open(sys.argv[2], "w"))
print(kept["revision"])
PY
k replace --raw "/keelson/upgrade/order?revision=$("$PYTHON" -c 'import json,sys; print(json.load(open(sys.argv[1]))["revision"])' "$S/kept")" -f "$S/order" >/dev/null
k annotate node hu1 --overwrite keelson.dev/upgrade-asked=again >/dev/null; sleep 3
k get node hu1 -o jsonpath='{.metadata.annotations.keelson\.dev/upgrade}' | grep -q again && fail "an order that is over was obeyed"
ok "what is over isn't begun"
