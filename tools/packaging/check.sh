#!/bin/bash
# check.sh PROGRAM IMAGE: tries what is to be handed out. The program tells nothing of the machine that built it; in a root directory with nothing in it
# but the program and what it is linked to, it is a cluster that runs a pod of its own image (an archive). A program of another architecture runs
# in emulation, as a server without a node. As root, in namespaces of its own. env: ANY_PATH=1, for a program that isn't handed out
set -euo pipefail
fail() { echo "$PROGRAM: $*" >&2; exit 1; }
within() { [ "${INSIDE:-}" = 1 ]; }

if ! within; then
  PROGRAM=$(realpath "$1") IMAGE=$(realpath "$2")
  [ "$(id -u)" = 0 ] || fail "trying it takes root"
  [ -n "${ANY_PATH:-}" ] || for path in "${CARGO_HOME:-$HOME/.cargo}" "$PWD"; do ! grep -qaF "$path/" "$PROGRAM" || fail "it has a path of this machine in it: $path"; done
  ROOT=$(mktemp -d); trap 'rm -rf --one-file-system "$ROOT"' EXIT
  export PROGRAM IMAGE ROOT INSIDE=1
  unshare --net --mount --pid --fork --kill-child "$0"
  exit 0
fi

mount --bind "$ROOT" "$ROOT"   # as a machine's: a root directory that isn't a mount can't be left
mkdir -p "$ROOT"/{bin,proc,sys,dev,tmp,images,data/addons}
cp "$PROGRAM" "$ROOT/bin/keelson"; cp "$IMAGE" "$ROOT/images/keelson.tar"
. "$(dirname "$0")/formats.sh"; libraries "$ROOT"
mount -t proc proc "$ROOT/proc"; mount -t sysfs sysfs "$ROOT/sys"; mount --rbind /dev "$ROOT/dev"; mount --rbind /sys/fs/cgroup "$ROOT/sys/fs/cgroup"
mount -t proc proc /proc
ip link set lo up; ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up
ip addr add 10.79.70.1/24 dev eth0; ip route add default via 10.79.70.254
machine() { readelf -h "$1" | sed -n 's/ *Machine: *//p'; }
emulator=(); [ "$(machine "$PROGRAM")" = "$(machine "$(command -v bash)")" ] || { cp "$(command -v qemu-aarch64-static)" "$ROOT/bin/emulator"; emulator=(/bin/emulator); }
chroot=$(command -v chroot)
run() { env -i PATH=/bin "$chroot" "$ROOT" "${emulator[@]}" /bin/keelson "$@"; }
run version

cat >"$ROOT/data/addons/tried.yaml" <<TXT
{apiVersion: v1, kind: Pod, metadata: {name: tried, namespace: default}, spec: {restartPolicy: Never, containers: [
  {name: tried, image: "keelson.local/keelson:$(sed -n 's/.*keelson.local\/keelson:\([^"]*\)".*/\1/p' <(tar -xOf "$IMAGE" index.json))", imagePullPolicy: Never, args: [version]}]}}
TXT
node=(--images /images); [ ${#emulator[@]} = 0 ] || node=(--disable agent)
run server --data-dir /data --kubeconfig /data/admin.kubeconfig --node-name tried --node-ip 10.79.70.1 --kubelet-link none "${node[@]}" >"$ROOT/log" 2>&1 &
server=$!
end() { status=$?; [ $status = 0 ] || tail -30 "$ROOT/log" >&2; kill $server 2>/dev/null || true; wait $server || true; run uninstall --data-dir /data --yes >/dev/null 2>&1 || true; exit $status; }
trap end EXIT
begun=$(date +%s)
soon() { # what is waited for, command …
  local what=$1; shift
  until "$@"; do [ $(($(date +%s) - begun)) -lt 120 ] && kill -0 $server || fail "$what: not after $(($(date +%s) - begun)) s"; sleep 0.2; done
  echo "$(basename "$PROGRAM"): $what"
}
answers() { [ "$(curl -sk https://10.79.70.1:6443/readyz)" = ok ]; }
ran() { run ps -a -n default --data-dir /data 2>/dev/null | grep -q 'tried.*Exited'; }
soon "an API server answers" answers
[ ${#emulator[@]} = 0 ] || exit 0
run wait --kubeconfig /data/admin.kubeconfig --timeout 60s
soon "a pod of its own image has run" ran
