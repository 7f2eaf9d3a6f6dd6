#!/bin/bash
# test-servers.sh: three machines (network namespaces joined by a bridge) become one cluster of servers by nothing but a token: an etcd that they run,
# secrets shared, an agent over all of them; servers are killed, the leader among them, members of etcd too, while a client writes and counts. Four minutes.
# env: KEELSON=program, ETCD=its etcd, NET=first three numbers of the machines' network, KUBECTL=kubectl, ROUNDS=how many failures at random (3), SEED;
#      FAILURES="link:1 machine:2 member:0 server:0": these in place of random ones
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}
export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") NET=${NET:-10.79.9} ETCD=${ETCD:-$(command -v etcd)} KUBECTL=${KUBECTL:-kubectl}
ROUNDS=${ROUNDS:-3} FAILURES=${FAILURES:-} SEED=${SEED:-$RANDOM} S=$(mktemp -d /tmp/keelson-servers.XXXXXX) BRIDGE=klm-bridge
RANDOM=$SEED; echo "seed $SEED"
on() { local n=$1; shift; nsenter --net=/run/netns/klm$n "$@"; }
k() { # of the first server that answers
  local at
  for at in 0 1 2; do on 3 "$KUBECTL" --kubeconfig "$S/config" --server https://$NET.1$at:6443 --request-timeout=5s "$@" && return; done
  return 1
}
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # seconds, what, command…
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "$*:"; (set -x; "$@") || true; fail "$what"; }; sleep 0.2; done; ok "$what"
}
machine() {
  ip netns add klm$1
  ip link add klm$1-port type veth peer name eth0 netns klm$1
  ip link set klm$1-port master $BRIDGE up
  on "$1" bash -c "ip link set lo up; ip link set eth0 up; ip addr add $NET.1$1/24 dev eth0; ip route add default via $NET.254; sysctl -qw net.ipv4.ip_forward=1"
}
end() { # pid file, signal
  [ -f "$1" ] || return 0
  kill "${2:--TERM}" "$(cat "$1")" 2>/dev/null || true
  for _ in $(seq 300); do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done
  [ "${3:-}" = keep ] || rm -f "$1"
}
cleanup() {
  status=$?
  [ $status = 0 ] || {
    echo "=== the client was told:"; cat "$S/said" 2>/dev/null || true
    for n in 0 1 2 3; do echo "=== machine $n:"; tail -n 40 "$S/$n.log" "$S/$n/etcd.log" 2>/dev/null || true; done
  }
  [ -z "${WRITER:-}" ] || kill "$WRITER" 2>/dev/null || true
  for n in 3 2 1 0; do end "$S/$n.pid"; end "$S/$n/etcd.pid"; done
  for n in 0 1 2 3; do [ ! -d "$S/$n" ] || on $n "$KEELSON" uninstall --data-dir "$S/$n" --yes >/dev/null 2>&1 || true; done
  clear_away klm0 klm1 klm2 klm3 $BRIDGE
  rm -rf "$S"; exit $status
}
trap cleanup EXIT; clear_away klm0 klm1 klm2 klm3 $BRIDGE
ip link add $BRIDGE type bridge; ip link set $BRIDGE up
for n in 0 1 2 3; do machine $n; done
# Only what a server must have: no other component but the controllers and the scheduler counts here.
server() { # number, more flags
  local n=$1; shift
  setsid nsenter --net=/run/netns/klm$n "$KEELSON" server --data-dir "$S/$n" --kubeconfig "$S/$n.admin" --node-name klm$n --node-ip $NET.1$n \
    --etcd-program "$ETCD" --disable agent,local-storage "$@" >>"$S/$n.log" 2>&1 </dev/null & echo $! >"$S/$n.pid"; disown
}
started() { grep -q 'all components are started' "$S/$1.log"; }
addresses() { k get endpoints kubernetes -o jsonpath='{.subsets[*].addresses[*].ip}'; }
says() { [ "$("${@:2}")" = "$1" ]; }

server 0 --cluster-init
within 60 "the first server, with an etcd beside it" started 0
cp "$S/0.admin" "$S/config"
TOKEN=$(cat "$S/0/pki/server-token")
AGENT=$(on 0 "$KEELSON" token create --kubeconfig "$S/0.admin")
on 1 "$KEELSON" server --data-dir "$S/1" --node-name klm1 --node-ip $NET.11 --server https://$NET.10:6443 --token "$AGENT" >"$S/refused" 2>&1 && fail "a server joins by an agent's token"
grep -q 'for agents' "$S/refused" || { cat "$S/refused"; fail "why an agent's token makes no server"; }
ok "an agent's token makes no server"
on 1 "$KEELSON" server --data-dir "$S/1" --node-name klm1 --node-ip $NET.11 --etcd-program "$ETCD" --server https://$NET.10:6443 --token "${TOKEN%????}0000" >"$S/refused" 2>&1 && fail "a server joins another cluster"
grep -q 'this is not the server of the token' "$S/refused" || { cat "$S/refused"; fail "why another cluster's token makes no server"; }
ok "nor does a token of another cluster"
for n in 1 2; do
  began=$(date +%s%N); server $n --server https://$NET.10:6443 --token "$TOKEN"
  within 90 "server $n joins" started $n
  echo "         $((($(date +%s%N) - began) / 1000000)) ms"
done
for n in 1 2; do for f in ca.key sa.key front-proxy-ca.key etcd/ca.key; do cmp "$S/0/pki/$f" "$S/$n/pki/$f" || fail "$f is shared"; done; done
ok "authorities and keys are the same everywhere"
shared=$(on 0 "$LAB/bin/etcdctl" --endpoints https://$NET.10:2379 --cacert "$S/0/pki/etcd/ca.crt" --cert "$S/0/pki/etcd/client.crt" --key "$S/0/pki/etcd/client.key" \
  get --prefix /registry/keelson/shared/)
[[ $shared = *keelson/shared/ca* && $shared != *PRIVATE* ]] || fail "keys stand plainly in etcd, or not at all"
ok "and sealed in etcd"
within 30 "the service leads to all three" says "$NET.10 $NET.11 $NET.12" addresses
members() { on "$1" "$KEELSON" etcd status --data-dir "$S/$1"; }
vote() { [ "$(members 0 | grep -c -e leader -e follower)" = 3 ]; }
within 30 "three members that vote" vote
members 0

setsid nsenter --net=/run/netns/klm3 "$KEELSON" agent --data-dir "$S/3" --node-name klm3 --node-ip $NET.13 --server https://$NET.10:6443 --token "$AGENT" \
  --eviction-hard "nodefs.available<1%,nodefs.inodesFree<1%" >>"$S/3.log" 2>&1 </dev/null & echo $! >"$S/3.pid"; disown
ready() { [ "$(k get node klm3 -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
within 60 "an agent is Ready" ready

# A client that goes on at the next server. What was acknowledged it writes down, with how long nothing was.
: >"$S/acknowledged"
writer() {
  local n=0 at=0 last now
  last=$(date +%s%3N)
  while [ ! -e "$S/enough" ]; do
    if on 3 timeout 5 "$KUBECTL" --kubeconfig "$S/config" --server https://$NET.1$at:6443 --request-timeout=3s create configmap "w$n" --from-literal=n=$n >/dev/null 2>"$S/said" || grep -q 'already exists' "$S/said"; then
      echo $n >>"$S/acknowledged"; n=$((n + 1)); now=$(date +%s%3N); echo $((now - last)) >>"$S/gaps"; last=$now
    else at=$(((at + 1) % 3)); fi
  done
}
writer & WRITER=$!
count() { wc -l <"$S/acknowledged"; }
more() { local before=$1; [ "$(count)" -gt $((before + 3)) ]; }
lead() { k get lease -n kube-system kube-controller-manager -o jsonpath='{.spec.holderIdentity}' | cut -d_ -f1; }
lose() { # what, machine
  local before; before=$(count)
  case $1 in
    server) end "$S/$2.pid" -KILL ;;
    member) kill -KILL "$(cat "$S/$2/etcd.pid")" ;;
    machine) end "$S/$2.pid" -KILL; kill -KILL "$(cat "$S/$2/etcd.pid")" ;;
    link) ip link set klm$2-port down ;;
    stop) end "$S/$2.pid" ;;
  esac
  within 30 "lost: $1 $2; writes go on" more "$before"
}
back() {
  ip link set klm$1-port up
  if [ ! -f "$S/$1.pid" ]; then : >"$S/$1.log"; server $1; within 60 "server $1 is back" started $1; fi
}
settled() { [ "$(addresses)" = "$NET.10 $NET.11 $NET.12" ] && vote; }
n=$(lead); n=${n#klm}
lose stop "$n"
other() { local now; now=$(lead); [ -n "$now" ] && [ "$now" != "klm$n" ]; }
within 10 "a planned stop: another leads" other
back "$n"; within 60 "all are back" settled
n=$(lead); n=${n#klm}
lose server "$n"; within 25 "the leader was killed: another leads" other
back "$n"; within 60 "all are back" settled
KINDS=(server member machine link)
[ -n "$FAILURES" ] || for _ in $(seq "$ROUNDS"); do FAILURES+=" ${KINDS[RANDOM % 4]}:$((RANDOM % 3))"; done
for failure in $FAILURES; do
  kind=${failure%:*} n=${failure#*:}; echo "$kind $n, of$FAILURES"
  lose "$kind" "$n"; back "$n"; within 90 "all are back" settled
done
# All authorities are followed by others, that of etcd too, while the client writes: it goes by a kubeconfig of the new one in time.
rotate() { on 0 "$KEELSON" certificate rotate --data-dir "$S/0" --kubeconfig "$S/0.admin" --authorities "$@"; }
rotate --step announce && rotate --step sign --wait=180s; cp "$S/0.admin" "$S/config"
within 20 "writes go on by the next authority" more "$(count)"
rotate --step retire --wait=180s
same() { local n f; for n in 1 2; do for f in ca.key ca.crt front-proxy-ca.crt etcd/ca.crt etcd/ca.key; do cmp "$S/0/pki/$f" "$S/$n/pki/$f" || return; done; done; }
within 20 "all servers have the same authorities" same
for f in ca.crt etcd/ca.crt; do [ "$(grep -c BEGIN "$S/0/pki/$f")" = 1 ] || fail "$f: the one before is still trusted"; done
alone() { local n; for n in 0 1 2; do [ "$(grep -c . "$S/$n/etcd.trusts")" = 1 ] || return; done; }
within 90 "members of etcd are started again and trust the new one only" alone
within 20 "writes go on without the one before" more "$(count)"
within 60 "three members that vote by another authority" vote
within 20 "the agent is Ready by another authority" ready
touch "$S/enough"; wait "$WRITER" || true; WRITER=
k get configmaps -o name | sed -n 's/^configmap\/w//p' | sort -n >"$S/there"
missing=$(comm -23 <(sort "$S/acknowledged") <(sort "$S/there") | wc -l)
[ "$missing" = 0 ] || fail "$missing of $(count) acknowledged writes are lost"
ok "all $(count) acknowledged writes are there; longest without one: $(sort -n "$S/gaps" | tail -1) ms"
within 20 "the agent is Ready" ready
end "$S/2.pid"
on 2 "$KEELSON" etcd leave --data-dir "$S/2"
two() { [ "$(members 0 | grep -c -e leader -e follower)" = 2 ]; }
within 10 "a server leaves, two members stay" two
