#!/bin/bash
# flux.sh: Flux' kustomize-controller reconciles what a source says: applied, healthy, drift taken back, pruned, in order, gone with its object. The source is a GitRepository whose status this script
# writes as source-controller would, and a tarball that it serves in the namespace.
# needs: kustomize-controller
. "$(dirname "$0")/lib.sh"
FROM=$(source_of kustomize-controller); SOURCE=$(cd /; go mod download -json github.com/fluxcd/source-controller@v1.9.6 | jq -r .Dir)
cluster --disable metrics
mkdir -p "$WORK/www" "$WORK/repo/app"
check "its definitions are served" eval 'k apply --server-side -f "$SOURCE/config/crd/bases" -f "$FROM/config/crd/bases" && k wait --for=condition=Established --timeout=30s crd --all' || exit 1
k create ns flux-system >/dev/null; k create ns shop >/dev/null
back httpd busybox httpd -f -p "$NODE_IP:8089" -h "$WORK/www"
back controller env -C "$WORK" RUNTIME_NAMESPACE=flux-system TMPDIR="$WORK" HOME="$WORK" "$CLIENTS/kustomize-controller" --watch-all-namespaces=true --log-level=info --requeue-dependency=2s --health-addr=127.0.0.1:9440 --metrics-addr=127.0.0.1:8090
# push REVISION: what stands in repo/ is the source's newest.
push() {
  local tar=$WORK/www/$1.tar.gz sum; tar -C "$WORK/repo" -czf "$tar" .; sum=$(sha256sum "$tar" | cut -d' ' -f1)
  printf 'apiVersion: source.toolkit.fluxcd.io/v1\nkind: GitRepository\nmetadata: {name: shop, namespace: flux-system}\nspec: {interval: 1h, url: "https://example.com/shop.git"}\n' | k apply -f - &&
  k -n flux-system patch gitrepository shop --subresource=status --type=merge -p "{\"status\":{\"observedGeneration\":1,\"artifact\":{\"path\":\"$1.tar.gz\",\"url\":\"http://$NODE_IP:8089/$1.tar.gz\",\"revision\":\"main@sha1:$1\",\"digest\":\"sha256:$sum\",\"lastUpdateTime\":\"$(date -u +%FT%TZ)\",\"size\":$(stat -c %s "$tar")},\"conditions\":[{\"type\":\"Ready\",\"status\":\"True\",\"reason\":\"Succeeded\",\"message\":\"stored\",\"lastTransitionTime\":\"$(date -u +%FT%TZ)\",\"observedGeneration\":1}]}}"
}
kustomization() { printf 'apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nmetadata: {name: %s, namespace: flux-system}\nspec: {interval: 1h, path: "%s", prune: true, wait: true, timeout: 90s, targetNamespace: shop, sourceRef: {kind: GitRepository, name: shop}%s}\n' "$@" | k apply -f -; }
at() { k -n flux-system get kustomization "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.lastAppliedRevision}'; }
again() { k -n flux-system annotate --overwrite kustomization "$1" reconcile.fluxcd.io/requestedAt="$(date +%s%N)"; }
map() { printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {v: "%s"}\n' "$1" "$2"; }
cat >"$WORK/repo/app/web.yaml" <<'Y'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: "example.local/web:1", imagePullPolicy: IfNotPresent}]}
Y
map a 1 >"$WORK/repo/app/a.yaml"; map b 1 >"$WORK/repo/app/b.yaml"
check "it starts" until_ready http://127.0.0.1:9440/healthz || exit 1
check "a source's newest is applied, and waited for" eval 'push 1111 && kustomization shop ./app && until_is "True main@sha1:1111" at shop && is 1 k -n shop get deploy web -o "jsonpath={.status.readyReplicas}"'
check "by its own manager, server-side" is Apply k -n shop get cm a --show-managed-fields -o 'jsonpath={.metadata.managedFields[?(@.manager=="kustomize-controller")].operation}'
check "what others changed goes back, what they added stays" eval 'k -n shop patch cm a -p "{\"data\":{\"v\":\"9\",\"own\":\"kept\"}}" --field-manager=hand && again shop && until_is 1 k -n shop get cm a -o "jsonpath={.data.v}" && is kept k -n shop get cm a -o "jsonpath={.data.own}"'
check "another revision is applied, and what it says no more is pruned" eval 'rm "$WORK/repo/app/b.yaml"; map a 2 >"$WORK/repo/app/a.yaml"; push 2222 && until_is "True main@sha1:2222" at shop && is 2 k -n shop get cm a -o "jsonpath={.data.v}" && is "" k -n shop get cm b --ignore-not-found -o name'
check "what the API refuses is told, and nothing of it is applied" eval 'printf "apiVersion: v1\nkind: Service\nmetadata: {name: wrong}\nspec: {ports: [{port: 99999}]}\n" >"$WORK/repo/app/wrong.yaml"; map a 3 >"$WORK/repo/app/a.yaml"; push 3333 && until_is "False main@sha1:2222" at shop && has "spec.ports\[0\].port" k -n flux-system get kustomization shop -o "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}" && is 2 k -n shop get cm a -o "jsonpath={.data.v}"'
check "and comes good with the next one" eval 'rm "$WORK/repo/app/wrong.yaml"; push 4444 && until_is "True main@sha1:4444" at shop'
check "who depends on another waits for it" eval 'mkdir -p "$WORK/repo/late"; map late 1 >"$WORK/repo/late/late.yaml"; push 5555; kustomization late ./late ", dependsOn: [{name: first}]" && until_is False k -n flux-system get kustomization late -o "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}" && kustomization first ./late ", suspend: false" && until_is "True main@sha1:5555" at first && until_is "True main@sha1:5555" at late'
check "events tell of it" has 'ReconciliationSucceeded' k -n flux-system get events -o 'jsonpath={.items[*].reason}'
check "deleted, it takes its objects along" eval 'k -n flux-system delete kustomization shop --timeout=60s && is "" k -n shop get cm a --ignore-not-found -o name && until_is "" k -n shop get deploy web --ignore-not-found -o name'
