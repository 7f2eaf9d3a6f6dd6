#!/bin/bash
# test-upgrade.sh: a service with twelve pods is upgraded, under load, to a program that is well and to two that aren't, and goes back: by
# itself, by command, and at its start after the power went. No container is lost, no request fails. Two minutes.
# In namespaces of its own, with what of systemd it takes played by tools/upgrade/manager.py.
# env: KEELSON=program, NEXT=the newer one (a build with KEELSON_VERSION set; without it the same program with a byte behind its end)
set -euo pipefail
cd "$(dirname "$0")/.."
LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}
KEELSON=$(realpath "${KEELSON:-target/release/keelson}")
if [ -z "${INSIDE:-}" ]; then
  S=$(mktemp -d /tmp/keelson-upgrade.XXXXXX) PYTHON=$(python3 -c 'import sys; print(sys.executable)')
  mkdir -p "$S"/{bin,local/bin,made,images,manager}
  cp "$KEELSON" "$S/made/old"
  if [ -n "${NEXT:-}" ]; then cp "$NEXT" "$S/made/new"; else cp "$KEELSON" "$S/made/new"; echo >>"$S/made/new"; fi
  TOLD=$(printf '{"version":"99.0.0","kubernetes":"%s","store":"keelson-store-1"}' "$("$KEELSON" version | sed 's/.*v\(.*\))/\1/')")
  for manner in hangs ends; do MANNER=$manner TOLD=$TOLD rustc --edition 2024 -o "$S/made/$manner" tools/upgrade/ill.rs; done
  examples/image.sh "$S/images" >/dev/null
  . tools/machines.sh
  end() { clear_away klu0; rm -rf "$S"; }
  trap end EXIT; clear_away klu0
  ip netns add klu0
  # PID namespaces are not needed: what the test starts it ends by number.
  INSIDE=1 S=$S PYTHON=$PYTHON LAB=$LAB KEELSON=$KEELSON nsenter --net=/run/netns/klu0 unshare --mount --propagation private "$0" "$@"
  exit
fi

export PATH=$S/bin:$LAB/bin:/usr/sbin:/sbin:/usr/bin:/bin
K=/usr/local/bin/keelson UNIT=/etc/systemd/system/keelson.service
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
fail() { echo "FAIL $*"; exit 1; }
k() { kubectl --kubeconfig "$S/admin" "$@"; }
MANAGER=0 LOAD=0
end() {
  status=$?
  [ $status = 0 ] || { echo "=== failed; the service:"; tail -30 "$S/manager/log" || true; "$K" upgrade status || true; }
  touch "$S/stop"
  # The old program takes everything back, whichever is installed.
  [ $MANAGER = 0 ] || systemctl disable --now keelson.service || true
  "$S/made/old" uninstall --data-dir "$S/data" --yes >"$S/uninstall.log" 2>&1 || { cat "$S/uninstall.log"; status=1; }
  [ $MANAGER = 0 ] || kill "$MANAGER" || true
  [ $LOAD = 0 ] || kill "$LOAD" 2>/dev/null || true
  exit $status
}
ip link set lo up; ip link add eth0 type veth peer name beyond; ip link set beyond up; ip link set eth0 up; ip addr add 10.79.9.10/24 dev eth0; ip route add default via 10.79.9.254
sysctl -qw net.ipv4.ip_forward=1
# A machine of its own, as far as installing goes.
mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/system /run/lock
cp -a /etc "$S/etc"; mount --bind "$S/etc" /etc; rm -rf /etc/keelson
mount --bind "$S/local" /usr/local
printf '#!/bin/sh\nexec "%s" "%s" ctl "%s" "$@"\n' "$PYTHON" "$PWD/tools/upgrade/manager.py" "$S/manager" >"$S/bin/systemctl"
printf '#!/bin/sh\ntail -n 12 "%s/log"\n' "$S/manager" >"$S/bin/journalctl"; chmod 755 "$S/bin/"*
trap end EXIT
setsid "$PYTHON" tools/upgrade/manager.py run "$S/manager" $UNIT >>"$S/manager/log" 2>&1 </dev/null & MANAGER=$!
for _ in $(seq 100); do [ -S "$S/manager/control" ] && break; sleep 0.1; done

"$S/made/old" install --timeout 120s -- --data-dir "$S/data" --kubeconfig "$S/admin" --node-name klu0 --node-ip 10.79.9.10 --images "$S/images" \
  --kubelet-link none --cgroup-root /keelson-klu0 \
  --eviction-hard "nodefs.available<1%,nodefs.inodesFree<1%" >"$S/install.log" && ok "$(cat "$S/install.log")"
$K wait --kubeconfig "$S/admin" --timeout 120s && ok "the node is Ready"
cat >"$S/web.yaml" <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 12
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: "example.local/web:1", imagePullPolicy: Never}]}
YAML
k apply -f "$S/web.yaml" >/dev/null; k rollout status deployment/web --timeout=180s >/dev/null && ok "twelve pods"
containers() { k get pods -l app=web -o jsonpath='{range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount} {.status.startTime}{"\n"}{end}' | sort; }
processes() { for p in /proc/[0-9]*; do if grep -qs keelson-klu0 "$p/cgroup"; then case "$(tr '\0' ' ' 2>/dev/null <"$p/cmdline")" in "httpd -f -v -p 8080"*) echo "${p#/proc/}";; esac; fi; done | sort; }
BEFORE=$(containers); PROCESSES=$(processes)
[ "$(wc -l <<<"$BEFORE")" = 12 ] || fail "there are other pods: $BEFORE"
same() { [ "$BEFORE" = "$(containers)" ] || fail "$1: containers changed: $BEFORE / $(containers)"; [ "$PROCESSES" = "$(processes)" ] || fail "$1: processes changed"; ok "$1: the same containers, the same processes"; }
runs() { cmp -s $K "$S/made/$1" || fail "$2: another program than the $1 one is in place"; [ "$(readlink "/proc/$(systemctl show x | sed -n 's/MainPID=//p')/exe")" = $K ] || fail "$2: another program runs"; ok "$2: the $1 program runs"; }
k config view --raw -o json >"$S/admin.json"
load() { rm -f "$S/stop"; "$PYTHON" tools/upgrade/load.py "$S/admin.json" "$S/stop" >"$S/load" 2>&1 & LOAD=$!; sleep 3; }
unload() { # what, longest gap of the watch in seconds
  sleep 3; touch "$S/stop"; wait $LOAD || fail "$1: the load: $(cat "$S/load")"; LOAD=0; cat "$S/load"
  "$PYTHON" - "$S/load" "$2" <<'PY' || fail "$1: requests failed or events were missed"
import json, sys
told = json.load(open(sys.argv[1]))
sys.exit(bool(told["failed"] or told["missed by the watch"] or told["requests"] < 50 or told["longest gap of the watch"] > float(sys.argv[2])))
PY
  ok "$1: no request failed, no event was missed"
}
settled() { $K upgrade status | grep -F "$1" >/dev/null || fail "status: $($K upgrade status)"; ok "status says: $1"; }

echo "--- what is refused"
refused() { local out; out=$($K upgrade "${@:2}" 2>&1) && fail "$* was taken"; grep -F -e "$1" <<<"$out" >/dev/null || fail "refused otherwise: $out"; ok "refused: $1"; }
refused "there is no such file" 99.0.0
refused "it is no program" "$S/web.yaml"
refused "not the one that was given" "$S/made/new" --sha256 00
[ "$($K upgrade "$S/made/old")" = "nothing to do: that program runs already" ] && ok "the same program is no news"
$K upgrade "$S/made/new" --dry-run | grep "could follow" >/dev/null && runs old "a dry run"

echo "--- an upgrade"
load; $K upgrade "$S/made/new" --timeout 120s; unload "the upgrade" 30
runs new "after it"; same "after it"; settled confirmed

echo "--- back, by command"
load; $K rollback --timeout 120s; unload "the way back" 30
runs old "after it"; same "after it"; settled "taken back"

for manner in hangs ends; do
  echo "--- a program that $manner"
  load; $K upgrade "$S/made/$manner" --timeout 15s >"$S/out" 2>&1 && fail "an ill program was confirmed"
  grep "runs again" "$S/out" >/dev/null || fail "$(cat "$S/out")"; ok "$(grep -o "keelson .* runs again" "$S/out")"
  unload "a program that $manner" 60
  runs old "after it"; same "after it"; settled "taken back"
done

echo "--- the power goes while nobody has confirmed"
$K upgrade "$S/made/hangs" --timeout 300s >"$S/out" 2>&1 & UPGRADE=$!
# Until the ill program runs, which is a moment after it stands there.
for _ in $(seq 600); do cmp -s $K "$S/made/hangs" && [ "$(readlink "/proc/$(systemctl show x | sed -n 's/MainPID=//p')/exe")" = $K ] && break; sleep 0.1; done
kill -9 $UPGRADE; wait $UPGRADE 2>/dev/null || true
runs hangs "meanwhile"
kill -9 "$(systemctl show x | sed -n 's/MainPID=//p')"
$S/made/old wait --kubeconfig "$S/admin" --timeout 120s
runs old "the start after it"; same "after it"; settled "taken back"
[ ! -e $K.previous ] && [ ! -e $K.next ] && ok "nothing is left beside the program"
