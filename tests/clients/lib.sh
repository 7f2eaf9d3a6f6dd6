# lib.sh: what clients' scripts have in common: a cluster each, the program in its network namespace, and checks that go on when one fails. Sourced by run.sh's scripts.
# Given by run.sh: KEELSON, CLUSTER, NODE_IP, RESULTS (a line "PASS|FAIL<tab>program: what" a check).
set -uo pipefail
export NOREGISTRY=1 NODES=1; unset STATE
. "$(dirname "${BASH_SOURCE[0]}")/../../conformance/lib/env.sh"
export STATE; WORK=$STATE/work; CLIENTS=$LAB/clients
NAME=$(basename "$0" .sh)
export KUBECONFIG=$KUBECONFIG_FILE
pids=() failed=0
k() { inns "$BIN/kubectl" "$@"; }
c() { inns "$CLIENTS/$@"; }
# A cluster whose images are a small web server's ($IMAGES: a directory to put more into, before this).
IMAGES=$STATE/lab/images; mkdir -p "$IMAGES" "$WORK"
cluster() { # further flags of `keelson server`
  "$ROOT/examples/image.sh" "$IMAGES" >/dev/null
  LAB=$STATE/lab EXTRA="--kubelet-link none --disable ingress $*" BIN=$BIN "$ROOT/conformance/cluster.sh" up >"$WORK/up.log" 2>&1 || { cat "$WORK/up.log"; exit 1; }
}
# check WHAT COMMAND…: one promise. The others are made when it fails, too. Who may wait has a bound of its own; run.sh's is for all.
check() {
  local what="$NAME: $1" said rc t; shift; t=$(date +%s%N)
  said=$("$@" 2>&1 </dev/null); rc=$?
  t=$((($(date +%s%N) - t) / 1000000))
  if [ $rc = 0 ]; then printf 'PASS\t%s\n' "$what" >>"$RESULTS"; printf '%s ok     %s (%s ms)\n' "$(date +%T)" "$what" $t
  else printf 'FAIL\t%s\n' "$what" >>"$RESULTS"; failed=1; printf '%s FAILED %s (%s ms)\n' "$(date +%T)" "$what" $t; tail -c 3000 <<<"$said" | sed 's/^/           /'; fi
  return $rc
}
# until_is WANT COMMAND…: its output becomes that, within a minute ($WITHIN).
until_is() {
  local want=$1 is; shift
  for _ in $(seq $((${WITHIN:-60} * 2))); do is=$("$@" 2>/dev/null); [ "$is" = "$want" ] && return 0; sleep 0.5; done
  echo "wanted: $want, is: $("$@" 2>&1)"; return 1
}
is() { local want=$1 is; shift; is=$("$@" 2>&1); [ "$is" = "$want" ] || { echo "wanted: $want, is: $is"; return 1; }; }
has() { local want=$1 is; shift; is=$("$@" 2>&1); grep -qE -- "$want" <<<"$is" || { echo "wanted: $want, is: $is"; return 1; }; }
refused() { local want=$1 is; shift; if is=$("$@" 2>&1); then echo "accepted: $is"; return 1; fi; grep -qE -- "$want" <<<"$is" || { echo "refused, but not by $want: $is"; return 1; }; }
# soon COMMAND…: it does well, within a minute ($WITHIN).
soon() { for _ in $(seq $((${WITHIN:-60} * 2))); do "$@" >/dev/null 2>&1 && return 0; sleep 0.5; done; "$@"; }
# back LOG COMMAND…: a daemon in the namespace, until the script's end.
back() { local log=$WORK/$1.log; shift; nsenter --net=/run/netns/$CLUSTER "$@" >"$log" 2>&1 </dev/null & pids+=($!); last=$!; }
until_ready() { # url
  for _ in $(seq 120); do inns curl -skf -o /dev/null --max-time 2 "$1" && return 0; sleep 0.5; done; echo "nothing answers at $1"; return 1
}
end() {
  [ $failed = 0 ] || { echo "--- what daemons and the server said last:"; tail -n 15 "$WORK"/*.log 2>/dev/null | cut -c1-600; grep -E " (WARN|ERROR) " "$STATE/server.log" | tail -n 15; }
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null; done
  for p in "${pids[@]}"; do wait "$p" 2>/dev/null; done
  [ -n "${KEEP:-}" ] || "$ROOT/conformance/cluster.sh" down >/dev/null 2>&1
  exit $failed
}
trap end EXIT
# image NAME ENTRYPOINT FILE[=PATH]…: an image of the web server's busybox with these programs in /bin, or where PATH says. Before `cluster`.
image() {
  local name=$1 entry=$2 w l c f; shift 2; w=$(mktemp -d -p "$WORK"); mkdir "$w/root" "$w/in" "$w/image"
  "$ROOT/examples/image.sh" "$IMAGES" >/dev/null; tar -C "$w/in" -xf "$IMAGES/web.tar"; tar -C "$w/root" -xf "$w"/in/*.tar
  for f in "$@"; do l=${f#*=}; [ "$l" != "$f" ] || l=/bin/$(basename "$f"); install -D -m 755 "${f%%=*}" "$w/root$l"; done
  tar -C "$w/root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$w/layer.tar" .
  l=$(sha256sum "$w/layer.tar" | cut -d' ' -f1); mv "$w/layer.tar" "$w/image/$l.tar"
  printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"User":"65534","Entrypoint":%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$entry" "$l" >"$w/config.json"
  c=$(sha256sum "$w/config.json" | cut -d' ' -f1); mv "$w/config.json" "$w/image/$c.json"
  printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["%s.tar"]}]' "$c" "$name" "$l" >"$w/image/manifest.json"
  (cd "$w/image" && tar -cf "$IMAGES/$(tr '/:' '__' <<<"$name").tar" -- *); rm -rf "$w"
}
# Of a program's module, where its own manifests are.
source_of() { local m v; IFS=$'\t' read -r _ m v _ < <(grep -P "^$1\t" "$ROOT/tests/clients/programs.tsv"); (cd /; go mod download -json "$m@$v" | jq -r .Dir); }
