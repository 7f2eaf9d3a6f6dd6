#!/bin/bash
# test-docs.sh [PAGE …]: what README.md and docs/*.md tell a user to type is typed on a new machine (namespaces of network, mounts and processes; its
# own /var/lib, /etc, /run and home) on which somebody has just started `keelson server`: tools/docs/run.py, which also says how pages mark
# what can't run there. Shows what failed; SHOW=1 all that was said. Needs root. Removes what it made.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${MACHINE:-}" ]; then
  export CLUSTER=${CLUSTER:-kldoc0} NODE_IP=${NODE_IP:-10.79.82.1}; . conformance/lib/env.sh; . tools/machines.sh
  KEELSON=$(realpath "${KEELSON:-$PWD/target/release/keelson}"); export STATE KEELSON
  finish() { clear_away "$CLUSTER"; rm -rf "$STATE"; }
  finish; trap finish EXIT
  mkdir -p "$STATE"/{lib,etc,etc-work,local,home,pages,images,manifests}; ip netns add "$CLUSTER"
  inns ip link set lo up; inns ip link add eth0 type veth peer name eth0-far; inns ip link set eth0-far up; inns ip link set eth0 up
  inns ip addr add "$NODE_IP/24" dev eth0; inns ip route add default via "${NODE_IP%.*}.254"; inns sysctl -qw net.ipv4.ip_forward=1
  cp "$KEELSON" "$STATE/local/keelson"; cp "$BIN/kubectl" "$STATE/local/kubectl"; printf '#!/bin/sh\nexec "$@"\n' >"$STATE/local/sudo"; chmod 755 "$STATE"/local/*
  examples/image.sh "$STATE/images" >/dev/null
  MACHINE=1 inns unshare --mount --pid --fork --kill-child --mount-proc tools/test-docs.sh "$@"; exit
fi
# On the machine.
mount --make-rprivate /
mkdir -p /etc/keelson
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$STATE/etc,workdir=$STATE/etc-work" /etc
mount --bind "$STATE/lib" /var/lib; mount --bind "$STATE/local" /usr/local/bin; mount -t tmpfs tmpfs /run; mount --make-rshared /
export HOME=$STATE/home WORK=$STATE PATH=/usr/local/bin:$PATH; unset KUBECONFIG
ulimit -n "$(ulimit -Hn)"
# server start|stop: as the reader's service manager would. It is in remarks of pages.
cat >/usr/local/bin/server <<SH
#!/bin/bash
[ "\$1" = start ] || { kill "\$(cat /run/server.pid)"; while kill -0 "\$(cat /run/server.pid)" 2>/dev/null; do sleep 0.1; done; exit 0; }
setsid keelson server --eviction-hard 'nodefs.available<1%,nodefs.inodesFree<1%' --node-ip $NODE_IP --images $STATE/images "\${@:2}" >>$STATE/server.log 2>&1 </dev/null & echo \$! >/run/server.pid
keelson wait --timeout 90s
SH
chmod 755 /usr/local/bin/server
trap 'status=$?; server stop; keelson uninstall --yes >/dev/null || status=1; exit $status' EXIT
server start || { tail -20 "$STATE/server.log" >&2; exit 1; }
keelson kubeconfig --merge >/dev/null
for page in docs/*.md; do [ "$page" = docs/SUMMARY.md ] || grep -F "($(basename "$page"))" docs/SUMMARY.md >/dev/null || { echo "docs/SUMMARY.md doesn't list $page" >&2; exit 1; }; done
pages=("$@"); [ $# -gt 0 ] || pages=(README.md docs/*.md)
python3 tools/docs/run.py "${pages[@]}"
