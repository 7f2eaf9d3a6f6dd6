#!/bin/bash
# cluster.sh up|down|stop|start|kubectl …: a Keelson server in a network namespace of its own ($CLUSTER, $NODE_IP), for the suite;
# with NODES=2 an agent in another (${CLUSTER}b, the next address), joined by a cable.
# env: KEELSON=path of the program (default: target/release/keelson), EXTRA=more flags of `keelson server`, NOIMPORT=1, OWN=1 (nodes have
# processes, mounts and a /var/lib of their own: pods end with their node's process)
. "$(dirname "$0")/lib/env.sh"; set -e
KEELSON=${KEELSON:-$ROOT/target/release/keelson} NODES=${NODES:-1} SECOND=${CLUSTER}b SECOND_IP=${NODE_IP%.*}.$((${NODE_IP##*.} + 1))
EVICT="nodefs.available<1%,nodefs.inodesFree<1%"
machine() { # namespace, address
  local on="nsenter --net=/run/netns/$1"
  $on ip link set lo up; $on ip link set eth0 up
  $on ip addr replace $2/24 dev eth0
  $on ip route replace default via ${2%.*}.254   # nobody is there: it only gives service addresses a route
  $on sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
}
network() {
  [ -e /run/netns/$CLUSTER ] || ip netns add $CLUSTER
  if [ $NODES = 2 ]; then
    [ -e /run/netns/$SECOND ] || { ip netns add $SECOND; inns ip link add eth0 type veth peer name eth0 netns $SECOND; }
    machine $SECOND $SECOND_IP
  fi
  inns ip link show eth0 >/dev/null 2>&1 || { inns ip link add eth0 type veth peer name eth0-far; inns ip link set eth0-far up; }
  machine $CLUSTER $NODE_IP
  sysctl -qw fs.inotify.max_user_instances=8192 fs.inotify.max_user_watches=524288
}
launch() { # server or agent, namespace, command …
  local name=$1 own=(); [ -z "$OWN" ] || own=(unshare --mount --pid --fork --kill-child --mount-proc "$HERE/lib/machine.sh" "$STATE/$name-machine")
  setsid nsenter --net=/run/netns/$2 "${own[@]}" $KEELSON "${@:3}" >>$STATE/$name.log 2>&1 </dev/null & echo $! >$STATE/$name.pid
}
start() {
  ulimit -n "$(ulimit -Hn)"
  local images=(); [ -n "$NOIMPORT" ] || images=(--images $LAB/images)
  launch server $CLUSTER server --data-dir $STATE/data --kubeconfig $KUBECONFIG_FILE --node-name $CLUSTER --node-ip $NODE_IP \
    --registries $STATE/registries.yaml --eviction-hard "$EVICT" "${images[@]}" $EXTRA
  inns $KEELSON wait --kubeconfig $KUBECONFIG_FILE --timeout ${WAIT:-120s} || { tail -40 $STATE/server.log >&2; exit 1; }
  [ $NODES = 2 ] || return 0
  local token; token=$(inns $KEELSON token create --kubeconfig $KUBECONFIG_FILE)
  launch agent $SECOND agent --server https://$NODE_IP:6443 --token $token --data-dir $STATE/agent --node-name $SECOND --node-ip $SECOND_IP \
    --registries $STATE/registries.yaml --eviction-hard "$EVICT" "${images[@]}"
  for j in $(seq 300); do inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE get node $SECOND >/dev/null 2>&1 && break; sleep 0.1; done
  inns $KEELSON wait --kubeconfig $KUBECONFIG_FILE --timeout ${WAIT:-120s} || { tail -40 $STATE/agent.log >&2; exit 1; }
}
stop() { # signal
  local p name first
  for name in agent server; do
    p=$(cat $STATE/$name.pid 2>/dev/null) && grep -qzF -- "$STATE" /proc/$p/cmdline 2>/dev/null || continue   # another's, after a reboot
    [ "$(cat /proc/$p/comm 2>/dev/null)" = unshare ] && first=$(cat /proc/$p/task/$p/children) || first=$p
    kill -${1:-TERM} $first 2>/dev/null || true
    for j in $(seq 300); do kill -0 $p 2>/dev/null || break; sleep 0.1; done
    rm -f $STATE/$name.pid
  done
}
uninstall() { # namespace, data directory: what a killed run left goes, too, if its namespace doesn't stand any more
  [ -d $2 ] || return 0
  local in=(nsenter --net=/run/netns/$1); [ -e /run/netns/$1 ] || in=(unshare --net)
  "${in[@]}" $KEELSON uninstall --data-dir $2 --yes
}
case ${1:-} in
up)
  mkdir -p $STATE; network
  printf 'mirrors:\n  "*":\n    endpoint: ["http://%s:%s"]\n' $NODE_IP $REGISTRY_PORT >$STATE/registries.yaml
  [ -n "$NOREGISTRY" ] || { "$HERE/lib/registry.sh" down; "$HERE/lib/registry.sh" up; }
  start ;;
start) start ;;
stop) stop ${2:-TERM} ;;
down)
  stop; "$HERE/lib/registry.sh" down
  uninstall $SECOND $STATE/agent; uninstall $CLUSTER $STATE/data
  . "$HERE/../tools/machines.sh"; clear_away $SECOND $CLUSTER
  rm -rf "$STATE" ;;
kubectl) shift; inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE "$@" ;;
*) sed -n 2,3p "$0"; exit 2 ;;
esac
