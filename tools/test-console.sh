#!/bin/bash
# test-console.sh: the console in headless Chromium, on a cluster of one machine in a network namespace of its own: every view in light and dark, by axe and by
# keyboard; hostile objects; editing, rollouts, logs, a shell; an API that goes and comes back; a user with few rights; 5,000 pods. Pictures and figures go to
# target/console. Needs root, npm and a Chromium (on Debian it installs one). Six minutes. Arguments: parts to run, all without.
# env: KEELSON=program, PODS=5000, PAGES=directory of pages in place of those in the program
set -euo pipefail
cd "$(dirname "$0")/.."
export CLUSTER=${CONSOLE_CLUSTER:-klcon1} NODE_IP=${CONSOLE_IP:-10.79.62.1} NOREGISTRY=1 NODES=1
unset STATE; . conformance/lib/env.sh
export STATE KEELSON=${KEELSON:-$PWD/target/release/keelson}
OUT=$PWD/target/console; mkdir -p "$OUT"
k() { inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
command -v chromium >/dev/null || { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu >/dev/null; }
[ -d "$OUT/node_modules/axe-core" ] || npm install --prefix "$OUT" --no-save --no-package-lock --no-audit --no-fund --silent playwright-core@1.65.1 axe-core@4.14.1
conformance/cluster.sh down >/dev/null 2>&1 || true
PROFILE=$(mktemp -d /tmp/keelson-console.XXXXXX)
end() {
  status=$?
  for name in admin bob far; do p=$(cat "$PROFILE/$name.pid" 2>/dev/null) && kill "$p" 2>/dev/null || true; done
  [ $status = 0 ] || { echo "=== failed; the end of the server's log:"; grep -v "readyz check\|never pulled\|INFO keelson_kubelet" "$STATE/server.log" | tail -12 || true; cat "$PROFILE"/*.err 2>/dev/null || true; }
  conformance/cluster.sh down >/dev/null 2>&1 || true
  rm -rf "$PROFILE"
  exit $status
}
trap end EXIT
export LAB=$STATE/lab; mkdir -p "$LAB/images"; examples/image.sh "$LAB/images" >/dev/null
export EXTRA="--kubelet-link none --disable ingress"
conformance/cluster.sh up
ok "a cluster"
k apply -f tools/console/objects.yaml >/dev/null
inns "$KEELSON" user add bob --role view -n shop -o "$PROFILE/bob.kubeconfig" --kubeconfig "$KUBECONFIG_FILE" >/dev/null
console() { # name, port, kubeconfig
  setsid nsenter --net=/run/netns/$CLUSTER "$KEELSON" console --listen ${AT:-127.0.0.1}:$2 ${MORE:-} ${PAGES:+--pages "$PAGES"} --kubeconfig "$3" >"$PROFILE/$1.url" 2>"$PROFILE/$1.err" </dev/null & echo $! >"$PROFILE/$1.pid"
  for _ in $(seq 100); do [ -s "$PROFILE/$1.url" ] && return 0; sleep 0.1; done
  fail "the console doesn't start: $(cat "$PROFILE/$1.err")"
}
console admin 8090 "$KUBECONFIG_FILE"
console bob 8091 "$PROFILE/bob.kubeconfig"
[ "$(inns curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8090/)" = 401 ] && ok "without the token nobody is let in" || fail "no token"
[ "$(inns curl -s -o /dev/null -w '%{http_code}' -H 'Host: evil.example:8090' "$(cat "$PROFILE/admin.url")")" = 421 ] && ok "nor by another name" || fail "another name"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=console.test -addext subjectAltName=DNS:console.test -keyout "$PROFILE/key.pem" -out "$PROFILE/cert.pem" 2>/dev/null
inns "$KEELSON" console --listen "$NODE_IP:8092" --kubeconfig "$KUBECONFIG_FILE" >/dev/null 2>&1 && fail "it listens beyond the machine without TLS" || true
MORE="--host console.test --tls-cert $PROFILE/cert.pem --tls-key $PROFILE/key.pem" AT=$NODE_IP console far 8092 "$KUBECONFIG_FILE"
said=$(inns curl -s -i --cacert "$PROFILE/cert.pem" --resolve "console.test:8092:$NODE_IP" "$(cat "$PROFILE/far.url")") || fail "by TLS: $said"
grep -i '^set-cookie: .*; HttpOnly; SameSite=Strict; Secure' <<<"$said" >/dev/null && ok "beyond the machine by TLS only" || fail "by TLS: $said"
k -n shop rollout status deployment/web --timeout=120s >/dev/null
inns "$KEELSON" wait --kubeconfig "$KUBECONFIG_FILE" --timeout 60s >/dev/null
(cd "$OUT" && NODE_PATH="$OUT/node_modules" ADMIN=$(cat "$PROFILE/admin.url") BOB=$(cat "$PROFILE/bob.url") BROWSER=$(command -v chromium) BROWSER_DATA="$PROFILE/chromium" \
  OUT="$OUT" ROOT="$ROOT" PODS=${PODS:-5000} timeout 900 nsenter --net=/run/netns/$CLUSTER node "$ROOT/tools/console/suite.mjs" "$@")
echo "console: all as promised; pictures and figures in target/console"
