#!/bin/bash
# test-authorities.sh: a server and an agent (network namespaces joined by a bridge) get another authority by command, while both and their pods go on:
# each step, a server killed between two, who is shut out named before, old kubeconfigs refused afterwards and new ones good. A minute.
# env: KEELSON=program, NET=first three numbers of the machines' network, KUBECTL=kubectl, IMAGES=archives of images (example.local/web:1)
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NET=${NET:-10.79.12} LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}
export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
KUBECTL=${KUBECTL:-kubectl} S=$(mktemp -d /tmp/keelson-authorities.XXXXXX) BRIDGE=kla-bridge
on() { local n=$1; shift; nsenter --net=/run/netns/kla$n "$@"; }
k() { on 0 "$KUBECTL" --kubeconfig "${CONFIG:-$S/0/admin.kubeconfig}" --request-timeout=10s "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # seconds, what, command…
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "$*:"; (set -x; "$@") || true; fail "$what"; }; sleep 0.2; done; ok "$what"
}
machine() {
  ip netns add kla$1
  ip link add kla$1-port type veth peer name eth0 netns kla$1
  ip link set kla$1-port master $BRIDGE up
  on "$1" bash -c "ip link set lo up; ip link set eth0 up; ip addr add $NET.1$1/24 dev eth0; ip route add default via $NET.254; sysctl -qw net.ipv4.ip_forward=1"
}
end() { # pid file, signal
  [ -f "$1" ] || return 0
  kill "${2:--TERM}" "$(cat "$1")" 2>/dev/null || true
  for _ in $(seq 200); do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done; rm -f "$1"
}
cleanup() {
  status=$?
  [ $status = 0 ] || for n in 0 1; do echo "=== machine $n:"; tail -n 40 "$S/$n.log" || true; done
  end "$S/1.pid"; end "$S/0.pid"
  for n in 0 1; do [ ! -d "$S/$n" ] || on $n "$KEELSON" uninstall --data-dir "$S/$n" --yes >/dev/null 2>&1 || true; done
  clear_away kla0 kla1 $BRIDGE
  rm -rf "$S"; exit $status
}
trap cleanup EXIT; clear_away kla0 kla1 $BRIDGE
ip link add $BRIDGE type bridge; ip link set $BRIDGE up
machine 0; machine 1
[ -n "${IMAGES:-}" ] || { mkdir "$S/images"; examples/image.sh "$S/images" >/dev/null; IMAGES=$S/images; }
node() { # number, command, more flags
  local n=$1; shift
  setsid nsenter --net=/run/netns/kla$n "$KEELSON" "$@" --data-dir "$S/$n" --node-name kla$n --node-ip $NET.1$n --cgroup-root /keelson-kla$n --kubelet-link none \
    --images "$IMAGES" --eviction-hard "nodefs.available<1%,nodefs.inodesFree<1%" >>"$S/$n.log" 2>&1 </dev/null & echo $! >"$S/$n.pid"; disown
}
server() { node 0 server --kubeconfig "$S/0/admin.kubeconfig"; }
ready() { [ "$(k get nodes -o jsonpath='{.items[*].status.conditions[?(@.type=="Ready")].status}')" = "True True" ]; }
rotate() { on 0 "$KEELSON" certificate rotate --data-dir "$S/0" --authorities "$@"; }
ls_() { on 0 "$KEELSON" certificate ls --data-dir "$S/0"; }
stage() { ls_ >"$S/ls"; grep -Eq "^$1 +$2 " "$S/ls"; }
trusts() { [ "$(k get node kla1 -o jsonpath='{.metadata.annotations.keelson\.dev/authorities}' | tr , '\n' | grep -c .)" = "$1" ]; }
containers() { k get pods -o jsonpath='{range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}'; }
reached() { for n in 0 1; do [ "$(k exec web$n -- echo here)" = here ] && k logs web$n >/dev/null; done; }

server; on 0 "$KEELSON" wait --kubeconfig "$S/0/admin.kubeconfig" --timeout 60s; ok "a server"
TOKEN=$(on 0 "$KEELSON" token create --kubeconfig "$S/0/admin.kubeconfig")
node 1 agent --server https://$NET.10:6443 --token "$TOKEN"
within 60 "an agent, both Ready" ready
for n in 0 1; do cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: web$n}
spec: {nodeName: kla$n, terminationGracePeriodSeconds: 0, containers: [{name: web, image: "example.local/web:1", imagePullPolicy: Never, command: [sleep, "100000"]}]}
YAML
done | k apply -f - >/dev/null
k wait --for=condition=Ready pod web0 web1 --timeout=60s >/dev/null; ok "a pod on each"
containers >"$S/before"
cp "$S/0/admin.kubeconfig" "$S/old"
on 0 "$KEELSON" user add ana --role view --kubeconfig "$S/old" -o "$S/ana"
CONFIG=$S/ana k get pods >/dev/null; ok "a user"
stage ca 'at rest' || { ls_; fail "at rest"; }

rotate ca; stage ca announced || { ls_; fail "announced"; }
within 20 "the agent knows the next one" trusts 2
# Killed between two steps, it goes on where it stopped.
end "$S/0.pid" -KILL; server; on 0 "$KEELSON" wait --kubeconfig "$S/0/admin.kubeconfig" --timeout 60s; stage ca announced || fail "a step is lost"
ok "killed in between: still announced"
PIDS="$(cat "$S/0.pid") $(cat "$S/1.pid")"
rotate ca --step sign --wait=30s; stage ca replaced || { ls_; fail "replaced"; }
cmp -s "$S/old" "$S/0/admin.kubeconfig" && fail "the administrator's kubeconfig is the old one"
within 20 "both Ready, pods reached" reached
CONFIG=$S/old k get nodes >/dev/null && CONFIG=$S/ana k get pods >/dev/null || fail "what the old one signed is refused too early"
ok "what the old one signed goes on"
rotate ca --step retire >"$S/said" 2>&1 && fail "withdrawn under a user's feet"
grep -q 'the user ana' "$S/said" && grep -q 'force' "$S/said" || { cat "$S/said"; fail "who is shut out is not named"; }
ls_ >"$S/ls"; grep -q 'ca: the user ana' "$S/ls" || { ls_; fail "ls doesn't say who depends on the old one"; }
ok "who would be shut out is named"
cp "$S/ana" "$S/ana.old"
on 0 "$KEELSON" user add ana --role view --kubeconfig "$S/0/admin.kubeconfig" -o "$S/ana"
CONFIG=$S/ana k get pods >/dev/null; k get nodes >/dev/null
rotate ca --wait=60s; stage ca 'at rest' || { ls_; fail "at rest again"; }
ok "withdrawn"
within 10 "the agent knows the new one only" trusts 1
for c in old ana.old; do CONFIG=$S/$c k get pods >"$S/said" 2>&1 && fail "$c is still let in"; grep -qi 'unauthorized\|logged in' "$S/said" || { cat "$S/said"; fail "$c is refused otherwise"; }; done
ok "old kubeconfigs are refused"
CONFIG=$S/ana k get pods >/dev/null && k get nodes >/dev/null; ok "new ones are good"
rotate front-proxy-ca --wait=30s; stage front-proxy-ca 'at rest'; k top nodes >/dev/null 2>&1 || true
within 20 "pods reached" reached
ready || fail "a node isn't Ready"
containers | cmp - "$S/before" || fail "containers were restarted"
for p in $PIDS; do kill -0 "$p" || fail "a program was restarted"; done
ok "all Ready, no container and no program restarted"
mkdir "$S/2"
timeout 20 nsenter --net=/run/netns/kla1 "$KEELSON" agent --data-dir "$S/2" --node-name kla2 --node-ip $NET.11 --cgroup-root /keelson-kla2 --kubelet-link none --server https://$NET.10:6443 --token "$TOKEN" >"$S/said" 2>&1 || true
grep -q 'the authority was replaced since' "$S/said" || { tail -5 "$S/said"; fail "a token of before isn't refused with why"; }
ok "a token of before is refused, with why"
end "$S/1.pid"; node 1 agent; sleep 1; within 40 "the agent starts again by what it has" ready
