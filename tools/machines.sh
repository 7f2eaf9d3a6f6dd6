# machines.sh: what scripts have in common whose machines are network namespaces. Sourced.
# clear_away NAME...: no namespace, cable (NAME-port) or bridge of that name is there any more, nor anything that ran in it. Said at the end,
# and before the beginning: a run that was killed has ended nothing.
clear_away() {
  local name pids
  for name in "$@"; do
    if [ -e "/run/netns/$name" ]; then
      pids=$(ip netns pids "$name" 2>/dev/null || true)
      # shellcheck disable=SC2086
      [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
      ip netns del "$name" 2>/dev/null || true
    fi
    # The cable by name: a namespace goes some time after its name.
    ip link del "$name-port" 2>/dev/null || true; ip link del "$name" 2>/dev/null || true
  done
}
