#!/bin/bash
# test-token.sh: two servers over an etcd get another token by command, while both run: one is killed in between, goes on with the old one in its options,
# and a third machine is let in by the new one only. A minute.
# env: KEELSON=program, ETCD=etcd, NET=first three numbers of the machines' network
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/machines.sh
LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab} NET=${NET:-10.79.15} KEELSON=$(realpath "${KEELSON:-target/release/keelson}")
export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
ETCD=${ETCD:-$(command -v etcd)} S=$(mktemp -d /tmp/keelson-token.XXXXXX) BRIDGE=hut-bridge
on() { local n=$1; shift; nsenter --net=/run/netns/hut$n "$@"; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
within() { # seconds, what, command…
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "$*:"; (set -x; "$@") || true; fail "$what"; }; sleep 0.2; done; ok "$what"
}
end() { # pid file, signal
  [ -f "$1" ] || return 0
  kill "${2:--TERM}" "$(cat "$1")" 2>/dev/null || true
  for _ in $(seq 200); do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done; rm -f "$1"
}
cleanup() {
  status=$?
  [ $status = 0 ] || for n in 0 1 2; do echo "=== machine $n:"; tail -n 30 "$S/$n.log" || true; done
  for n in 2 1 0; do end "$S/$n.pid"; done; end "$S/etcd.pid"
  for n in 0 1 2; do [ ! -d "$S/$n" ] || on $n "$KEELSON" uninstall --data-dir "$S/$n" --yes >/dev/null 2>&1 || true; done
  clear_away hut0 hut1 hut2 $BRIDGE
  rm -rf "$S"; exit $status
}
trap cleanup EXIT; clear_away hut0 hut1 hut2 $BRIDGE
ip link add $BRIDGE type bridge; ip link set $BRIDGE up
for n in 0 1 2; do
  ip netns add hut$n; ip link add hut$n-port type veth peer name eth0 netns hut$n; ip link set hut$n-port master $BRIDGE up
  on $n bash -c "ip link set lo up; ip link set eth0 up; ip addr add $NET.1$n/24 dev eth0; ip route add default via $NET.254"
done
on 0 "$ETCD" --data-dir "$S/etcd" --listen-client-urls http://$NET.10:2379 --advertise-client-urls http://$NET.10:2379 --listen-peer-urls http://127.0.0.1:2380 \
  --unsafe-no-fsync >"$S/etcd.log" 2>&1 & echo $! >"$S/etcd.pid"
server() { # number, more flags
  local n=$1; shift
  setsid nsenter --net=/run/netns/hut$n "$KEELSON" server --data-dir "$S/$n" --kubeconfig "$S/$n.admin" --node-name hut$n --node-ip $NET.1$n \
    --disable agent,local-storage "$@" >>"$S/$n.log" 2>&1 </dev/null & echo $! >"$S/$n.pid"; disown
}
started() { [ "$(grep -c 'all components are started' "$S/$1.log")" -ge "$2" ]; }
token() { cat "$S/$1/pki/server-token"; }
rotate() { on 0 "$KEELSON" token rotate --kubeconfig "$S/0.admin" "$@"; }
shared() { on 0 env ETCDCTL_API=3 etcdctl --endpoints http://$NET.10:2379 get --prefix /registry/keelson/shared/ "$@"; }
server 0 --etcd-servers http://$NET.10:2379; within 60 "a server" started 0 1
OLD=$(token 0)
server 1 --etcd-servers http://$NET.10:2379 --token "$OLD"; within 60 "another" started 1 1
alike() { [ "$(token 0)" = "$(token 1)" ] && [ "$(token 0)" != "$1" ]; }

echo "--- all take it"
PIDS="$(cat "$S/0.pid") $(cat "$S/1.pid")"
shared >"$S/before"
rotate; alike "$OLD" || fail "they have another token"
# shellcheck disable=SC2086
kill -0 $PIDS || fail "a server was started anew"
ok "both have another token, and went on running"
NEW=$(token 0)
grep -q -e "${NEW:7:32}" "$S/0.log" "$S/1.log" && fail "a token stands in a log"
answer() { on 2 curl -sk -o /dev/null -w '%{http_code}' -H "Authorization: Bearer server.${1:7:32}" https://$NET.1$2:6443/keelson/server; }
for n in 0 1; do [ "$(answer "$OLD" $n)" = 401 ] && [ "$(answer "$NEW" $n)" = 200 ] || fail "server $n takes the old one"; done; ok "the old one is refused by both"
gone() { ! shared --keys-only | grep -q token && [ ! -e "$S/0/pki/server-token-former" ] && [ ! -e "$S/1/pki/server-token-former" ]; }
within 60 "nothing is left of the old one" gone

echo "--- a server is killed in between, and started by the old one"
rotate --wait 0s >"$S/said" 2>&1 || true
end "$S/1.pid" -KILL; server 1 --etcd-servers http://$NET.10:2379 --token "$OLD"; within 60 "started again" started 1 2
within 60 "both have the next one" alike "$NEW"
grep -q "isn't the servers' any more" "$S/1.log" || fail "the old one in its options is not told of"
within 90 "nothing is left of the one before" gone
LAST=$(token 0)

echo "--- a third machine"
on 2 timeout 60 "$KEELSON" server --data-dir "$S/refused" --node-name hut2 --node-ip $NET.12 --server https://$NET.10:6443 --token "$OLD" >"$S/said" 2>&1 && fail "let in by the old one"
grep -q "is not the one of that cluster's servers" "$S/said" || { cat "$S/said"; fail "refused otherwise"; }
ok "isn't let in by the old one"
rm -rf "$S/refused"
server 2 --server https://$NET.11:6443 --token "$LAST"; within 60 "is by the new one" started 2 1
