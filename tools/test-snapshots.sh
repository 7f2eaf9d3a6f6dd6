#!/bin/bash
# test-snapshots.sh: snapshots of the store on the cluster of conformance/cluster.sh: taken while it runs and without a server, listed, checked,
# read by etcdutl (conformance/build.sh etcd), refused when damaged; the cluster goes back to one while its pods go on. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."; . conformance/lib/env.sh
KEELSON=${KEELSON:-$PWD/target/release/keelson}
k() { inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE "$@"; }
store() { inns "$KEELSON" store --data-dir "$STATE/data" snapshot "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
ok() { echo "ok  $*"; }
k create namespace snapped >/dev/null
k -n snapped create configmap before --from-literal=is=there >/dev/null
k -n snapped create secret generic sealed --from-literal=is=sealed >/dev/null
FILE=$(store save --kubeconfig "$KUBECONFIG_FILE" | sed -n 's/^\(.*\.db\): .*/\1/p'); [ -f "$FILE" ] && ok "a snapshot of a server that runs" || fail "a snapshot of a server that runs"
[ "$(stat -c %a "$FILE")" = 600 ] && ok "it is its owner's" || fail "it is its owner's: $(stat -c %a "$FILE")"
store ls | grep -F "$FILE" >/dev/null && ok "it is listed" || fail "it is listed"
store check "$FILE" | grep -E '[0-9]+ keys at revision' >/dev/null && ok "it is whole" || fail "it is whole"
[ "$(grep -c 'k8s:enc:' "$FILE")" -gt 0 ] && ok "what was sealed is sealed" || fail "what was sealed is sealed"
etcdutl() { "$BIN/etcdutl" "$@"; }
[ -x "$BIN/etcdutl" ] || fail "there is no $BIN/etcdutl: conformance/build.sh etcd"
etcdutl snapshot status "$FILE" -w json | grep '"revision":' >/dev/null && ok "etcdutl reads it" || fail "etcdutl reads it"
rm -rf "$STATE/etcdutl"; etcdutl snapshot restore "$FILE" --data-dir "$STATE/etcdutl" >/dev/null 2>&1 && ok "etcdutl makes a member of it" || fail "etcdutl makes a member of it"
rm -rf "$STATE/etcdutl"
k -n snapped create configmap after --from-literal=is=later >/dev/null
k -n snapped delete configmap before >/dev/null
then=$(k -n snapped get configmap after -o jsonpath='{.metadata.resourceVersion}')
said=$(store restore "$FILE" 2>&1) && fail "a store that is in use is not restored" || true
[[ $said = *"in use by process"* ]] && ok "a store that is in use is not restored" || fail "a store in use: $said"
conformance/cluster.sh stop
head -c 30000 "$FILE" >"$STATE/half"
said=$(store restore "$STATE/half" 2>&1) && fail "half a file makes no store" || true
[[ $said = *"cut short"* ]] && ok "half a file makes no store" || fail "half a file: $said"
store save >/dev/null && ok "a snapshot without a server" || fail "a snapshot without a server"
store restore "$FILE" >/dev/null && ok "the store is restored" || fail "the store is restored"
NOIMPORT=1 conformance/cluster.sh start
[ "$(k -n snapped get configmap before -o jsonpath='{.data.is}')" = there ] && ok "what was there is there" || fail "what was there is there"
[ "$(k -n snapped get secret sealed -o jsonpath='{.data.is}' | base64 -d)" = sealed ] && ok "secrets are opened" || fail "secrets are opened"
[ "$(k -n snapped get configmap after --ignore-not-found)" = "" ] && ok "what came later isn't" || fail "what came later isn't"
k -n snapped create configmap next >/dev/null
[ "$(k -n snapped get configmap next -o jsonpath='{.metadata.resourceVersion}')" -gt $((then + 1000000)) ] && ok "and revisions go on beyond those that were seen" || fail "revisions"
gone=$(k get --raw "/api/v1/namespaces/snapped/configmaps?watch=1&resourceVersion=$then&timeoutSeconds=5" 2>&1 || true)
[[ $gone = *'"code":410'* || $gone = *"too old"* ]] && ok "who watched from before lists anew" || fail "a watch from before: $gone"
k delete namespace snapped --wait=false >/dev/null
rm -rf "$STATE/data/store.before-"*
