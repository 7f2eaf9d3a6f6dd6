#!/bin/bash
# test-logind.sh: the kubelet and the lock of systemd's own logind, over a bus of their own in mounts of their own: nothing there could stop this machine. As root; needs
# dbus-daemon, busctl and systemd-logind. A minute.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" != inside ]; then
  ${CARGO:-cargo} test --locked --workspace --profile "${PROFILE:-dev}" --test pods --no-run
  exec unshare --mount --propagation private "$0" inside
fi
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/systemd/{system,seats,users,sessions,inhibit}
dbus-daemon --system --nofork --nopidfile & bus=$!
trap 'kill $bus ${logind:-}' EXIT
for _ in $(seq 100); do [ -S /run/dbus/system_bus_socket ] && break; sleep 0.1; done
/lib/systemd/systemd-logind & logind=$!
for _ in $(seq 100); do busctl status org.freedesktop.login1 >/dev/null 2>&1 && break; sleep 0.1; done
KEELSON_LOGIND=1 ${CARGO:-cargo} test --locked --workspace --profile "${PROFILE:-dev}" --test pods -- --exact --nocapture shutdown::bus::the_systems_own_logind_waits
