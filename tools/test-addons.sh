#!/bin/bash
# test-addons.sh: files of a server's directory as objects, under a server that runs: applied, changed, pruned, broken, in order, put back, over kill -9; a directory
# that is unmounted takes nothing away; a HelmChart's job, with an image that plays helm. In a network namespace of its own. Needs root and busybox-static.
set -euo pipefail
cd "$(dirname "$0")/.."
export CLUSTER=${ADDONS_CLUSTER:-klad0} NODE_IP=${ADDONS_IP:-10.79.27.1} NOREGISTRY=1 NODES=1
unset STATE; . conformance/lib/env.sh
export STATE KEELSON=${KEELSON:-$PWD/target/release/keelson}
k() { inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE "$@"; }
ours() { inns "$KEELSON" addons "$@" --kubeconfig "$KUBECONFIG_FILE"; }
fail() { echo "FAILED: $*" >&2; ours ls >&2 || true; exit 1; }
ok() { printf '%s ok   %s\n' "$(date +%T)" "$*"; }
until_is() { local want=$1; shift; for _ in $(seq 150); do [ "$("$@" 2>/dev/null)" = "$want" ] && return 0; sleep 0.2; done; echo "is: $("$@" 2>&1)" >&2; return 1; }
is_gone() { for _ in $(seq 150); do k "$@" --ignore-not-found -o name | grep -q . || return 0; sleep 0.2; done; return 1; }
conformance/cluster.sh down >/dev/null 2>&1 || true
export LAB=$STATE/lab; mkdir -p "$LAB/images"; examples/image.sh "$LAB/images" >/dev/null
FILES=$STATE/data/addons MORE=$STATE/more
# The same busybox with kubectl in it, which notes releases as helm does.
helm_image() {
  local w; w=$(mktemp -d); mkdir "$w/root" "$w/in" "$w/image"
  tar -C "$w/in" -xf "$LAB/images/web.tar"; tar -C "$w/root" -xf "$w"/in/*.tar; rm -rf "$w/in"
  cp "$(readlink -f "$BIN/kubectl")" "$w/root/bin/kubectl"
  cat >"$w/root/bin/entry" <<'S'
#!/bin/sh
set -e
export HOME=/tmp
k() { kubectl -n "$TARGET_NAMESPACE" "$@"; }
echo "$* failure=$FAILURE_POLICY expected=$EXPECTED_RELEASE_REVISION values=$(cat /config/*.yaml 2>/dev/null | tr '\n' ' ')" >/dev/termination-log
case $1 in
install)
  v=$((EXPECTED_RELEASE_REVISION + 1)) s=sh.helm.release.v1.$NAME.v$v
  k create secret generic $s --type=helm.sh/release.v1
  k label secret $s owner=helm name=$NAME version=$v status=deployed helmcharts.helm.cattle.io/configHash=$CONFIG_HASH
  k create configmap from-$NAME --from-literal=version="$VERSION" --dry-run=client -o yaml | k apply -f - ;;
delete) k delete configmap from-$NAME; k delete secret -l owner=helm,name=$NAME ;;
esac
S
  chmod 755 "$w/root/bin/entry"
  tar -C "$w/root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$w/layer.tar" .
  local l c; l=$(sha256sum "$w/layer.tar" | cut -d' ' -f1); mv "$w/layer.tar" "$w/image/$l.tar"
  printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"User":"1000","Entrypoint":["/bin/entry"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$l" >"$w/config.json"
  c=$(sha256sum "$w/config.json" | cut -d' ' -f1); mv "$w/config.json" "$w/image/$c.json"
  printf '[{"Config":"%s.json","RepoTags":["example.local/helm:1"],"Layers":["%s.tar"]}]' "$c" "$l" >"$w/image/manifest.json"
  tar -C "$w/image" -cf "$LAB/images/helm.tar" .
  rm -rf "$w"
}
helm_image
end() {
  status=$?
  [ $status = 0 ] || { echo "=== failed; the end of the server's log:"; tail -40 "$STATE/server.log" || true; }
  umount "$MORE" 2>/dev/null || true
  conformance/cluster.sh down >/dev/null 2>&1 || true
  exit $status
}
trap end EXIT
mkdir -p "$MORE"; mount -t tmpfs -o size=1m none "$MORE"
export EXTRA="--kubelet-link none --disable ingress,metrics --addons $MORE --helm-job-image example.local/helm:1"
conformance/cluster.sh up
[ "$(stat -c %a "$FILES")" = 700 ] || fail "the directory is for all to read"
told() { { ours ls || true; } | grep "$1" >/dev/null; }
told "no add-ons" || fail "add-ons from nowhere"
! k get crd -o name | grep -E 'addons|helm' >/dev/null && ok "a cluster, and nothing that nobody asked for" || fail "$(k get crd)"

map() { printf -- '---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: shop}\ndata: {v: "%s"}\n' "$1" "$2"; }
value() { k -n shop get cm "$1" -o 'jsonpath={.data.v}'; }
{ map a 1; map b 1; cat <<'Y'
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: web, image: "example.local/web:1", imagePullPolicy: Never, command: [sleep, "1000000"]}]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
Y
} >"$FILES/shop.yaml"
until_is "yes yes" bash -c "nsenter --net=/run/netns/$CLUSTER $KEELSON addons ls --kubeconfig $KUBECONFIG_FILE | awk '\$1==\"shop\" {print \$2, \$3}'" || fail "shop isn't ready"
ours show shop | grep -E "Deployment +shop +web +Current" >/dev/null && ours ls >/dev/null && ok "a file's objects are there and ready, their namespace first" || fail "$(ours show shop)"
{ map a 2; printf -- '---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n'; } >"$FILES/shop.yaml"
until_is 2 value a && is_gone -n shop get cm b && is_gone -n shop get deploy web && ok "what it says no more is gone" || fail "$(ours show shop)"
k -n shop patch cm a -p '{"data":{"v":"by hand","own":"kept"}}' >/dev/null
until_is 2 value a && [ "$(k -n shop get cm a -o 'jsonpath={.data.own}')" = kept ] && ok "our fields go back, others stay" || fail "$(k -n shop get cm a -o yaml)"
echo "kind: [" >"$FILES/broken.yaml"; map c 1 >"$FILES/c.yaml"
until_is 1 value c || fail "a broken file holds up another"
ours ls >/dev/null && fail "a broken file is well" || [ $? = 1 ] || fail "not by exit status 1"
{ ours ls -o json || [ $? = 1 ]; } | python3 -c 'import json,sys; a={x["metadata"]["name"]: x for x in json.load(sys.stdin)}; assert any(c["reason"]=="Invalid" for c in a["broken"]["status"]["conditions"]), a' && ok "a broken file is told, and holds up nothing" || fail "json"
rm "$FILES/broken.yaml"; is_gone get addon broken || fail "a broken file's add-on stays"
mkdir "$FILES/k"; echo "resources: []" >"$FILES/k/kustomization.yaml"; map never 1 >"$FILES/k/never.yaml"
for _ in $(seq 100); do told "kubectl kustomize" && break; sleep 0.2; done
told "kubectl kustomize" && ! value never >/dev/null 2>&1 && ok "a kustomization is refused, with what to do" || fail "$(ours ls)"
rm -r "$FILES/k"

map more 1 >"$MORE/more.yaml"
until_is 1 value more || fail "a further directory isn't looked at"
umount "$MORE"; sleep 4
[ "$(value more)" = 1 ] && ok "a disk that is gone takes nothing away" || fail "pruned by an unmounted directory"
mount -t tmpfs -o size=1m none "$MORE"; map more 2 >"$MORE/more.yaml"
until_is 2 value more && ok "and is found when it is there again" || fail "$(ours ls)"

conformance/cluster.sh stop KILL; rm "$FILES/c.yaml"; map d 1 >"$FILES/d.yaml"; conformance/cluster.sh start
is_gone -n shop get cm c && until_is 1 value d && ok "what changed while it was dead is made up for" || fail "$(ours ls)"

! k get crd -o name | grep helm >/dev/null || fail "kinds of charts that nobody asked for"
chart() { printf 'apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: web, namespace: kube-system}\nspec: {chart: stable/web, version: "%s", targetNamespace: shop, valuesContent: "a: b"}\n' "$1"; }
chart 1.0 >"$FILES/chart.yaml"
until_is 1.0 k -n shop get cm from-web -o 'jsonpath={.data.version}' || fail "the chart isn't installed: $(k -n kube-system get helmchart,job,pod -o wide; k -n kube-system describe pod)"
said=$(k -n kube-system get pod -l helmcharts.helm.cattle.io/chart=web -o 'jsonpath={.items[0].status.containerStatuses[0].state.terminated.message}')
[[ $said = "install --namespace shop --version 1.0 failure=reinstall expected=0 values=a: b"* ]] && ok "a chart is installed by a job: $said" || fail "$said"
until_is "True False" k -n kube-system get helmchart web -o 'jsonpath={.status.conditions[*].status}' || fail "$(k -n kube-system get helmchart web -o yaml)"
chart 2.0 >"$FILES/chart.yaml"
until_is 2.0 k -n shop get cm from-web -o 'jsonpath={.data.version}' && ok "and upgraded" || fail "$(k -n kube-system get helmchart,job,pod)"
rm "$FILES/chart.yaml"
is_gone -n kube-system get helmchart web && is_gone -n shop get cm from-web && is_gone get clusterrolebinding helm-kube-system-web && ok "and uninstalled when its file goes" || fail "$(k -n kube-system get helmchart,job,pod)"

rm "$FILES"/*.yaml
is_gone get ns shop || fail "the namespace stays"
[ "$({ ours ls || true; } | tail -n +2 | awk '{print $1}')" = more ] && ok "with its files all is gone" || fail "$(ours ls)"
! ours forget nobody 2>/dev/null || fail "a server that said nothing is forgotten"
echo "add-ons: all as promised"
