#!/bin/bash
# argocd.sh: Argo CD: its application, repository and ApplicationSet controllers and its API server beside the cluster, as its own end-to-end tests run them, with miniredis in redis' place and a Git repository in a folder.
# Applications of plain files, kustomize and helm: synced, drift taken back, pruned; health, waves, hooks, projects, actions, logs, rollbacks, deletion.
# needs: argocd miniredis kustomize helm
. "$(dirname "$0")/lib.sh"
command -v git >/dev/null || { apt-get update -qq; apt-get install -y -qq git >/dev/null; }
FROM=$(source_of argocd)
cluster --disable metrics
k create ns argocd >/dev/null; k create ns shop >/dev/null
check "its definitions and settings are applied" eval 'k apply --server-side -k "$FROM/manifests/crds" && k apply -n argocd -f "$FROM/manifests/base/config/argocd-cm.yaml" -f "$FROM/manifests/base/config/argocd-secret.yaml" -f "$FROM/manifests/base/config/argocd-rbac-cm.yaml" -f "$FROM/manifests/base/config/argocd-gpg-keys-cm.yaml" -f "$FROM/manifests/base/config/argocd-ssh-known-hosts-cm.yaml" -f "$FROM/manifests/base/config/argocd-tls-certs-cm.yaml" && soon k wait --for=condition=Established --timeout=60s crd --all' || exit 1
k -n argocd patch cm argocd-cm --type=merge -p '{"data": {"timeout.reconciliation": "20s", "resource.customizations.health.shop.example_Till": "hs = {status = \"Progressing\", message = \"\"}\nif obj.status ~= nil and obj.status.open then hs.status = \"Healthy\" end\nreturn hs\n"}}' >/dev/null
k -n argocd patch secret argocd-secret -p '{"stringData": {"server.secretkey": "c2VjcmV0c2VjcmV0c2VjcmV0"}}' >/dev/null
k apply -f - >/dev/null <<'END'
{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: tills.shop.example}, spec: {group: shop.example, scope: Namespaced, names: {plural: tills, singular: till, kind: Till}, versions: [{name: v1, served: true, storage: true, subresources: {status: {}}, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}, status: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}}]}}
END
mkdir -p "$WORK"/{tls,ssh,gpg,home,tmp}; ln -sf "$CLIENTS/kustomize" "$CLIENTS/helm" "$WORK/"
argo() { back "$1" env PATH="$WORK:$PATH" HOME="$WORK/home" TMPDIR="$WORK/tmp" ARGOCD_FAKE_IN_CLUSTER=true ARGOCD_TLS_DATA_PATH="$WORK/tls" ARGOCD_SSH_DATA_PATH="$WORK/ssh" ARGOCD_GPG_DATA_PATH="$WORK/gpg" ARGOCD_GPG_ENABLED=false ARGOCD_BINARY_NAME="argocd-$1" HOSTNAME="argocd-$1-0" "$CLIENTS/argocd" --loglevel info "${@:2}"; }
back redis "$CLIENTS/miniredis" 127.0.0.1:6379
argo repo-server --redis 127.0.0.1:6379 --port 8081 --disable-tls
argo application-controller --redis 127.0.0.1:6379 --repo-server 127.0.0.1:8081 --repo-server-plaintext --namespace argocd --app-resync 20
argo applicationset-controller --argocd-repo-server 127.0.0.1:8081 --repo-server-plaintext --namespace argocd --metrics-addr 127.0.0.1:12345 --probe-addr 127.0.0.1:12346
argo server --redis 127.0.0.1:6379 --repo-server 127.0.0.1:8081 --repo-server-plaintext --namespace argocd --insecure --disable-auth --port 8080
until_ready http://127.0.0.1:8080/healthz || exit 1
cli() { inns env HOME="$WORK/home" ARGOCD_BINARY_NAME=argocd "$CLIENTS/argocd" --server 127.0.0.1:8080 --plaintext --auth-token none "$@"; }
# The repository: what lies in $G is committed and heard of.
G=$WORK/files; git init -q --bare -b main "$WORK/repo.git"; git init -q -b main "$G"; git -C "$G" config user.email t@example.com; git -C "$G" config user.name t; git -C "$G" remote add origin "$WORK/repo.git"
push() { git -C "$G" add -A; git -C "$G" commit -qm "$1"; git -C "$G" push -q origin main; }
heard() { k -n argocd annotate --overwrite app "$1" argocd.argoproj.io/refresh=hard >/dev/null; until_is "" k -n argocd get app "$1" -o 'jsonpath={.metadata.annotations.argocd\.argoproj\.io/refresh}'; }
app() { # name path [of spec: sync policy …] [of source]
  printf 'apiVersion: argoproj.io/v1alpha1\nkind: Application\nmetadata: {name: %s, namespace: argocd, finalizers: [resources-finalizer.argocd.argoproj.io]}\nspec: {project: default, source: {repoURL: "file://%s", targetRevision: main, path: %s%s}, destination: {server: https://kubernetes.default.svc, namespace: shop}%s}\n' "$1" "$WORK/repo.git" "$2" "${4:-}" "${3:-}" | k apply -f -
}
AUTO=', syncPolicy: {automated: {prune: true, selfHeal: true}, syncOptions: [CreateNamespace=true]}'
state() { k -n argocd get app "$1" -o 'jsonpath={.status.sync.status} {.status.health.status}'; }
web() { printf 'apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: %s%s}\nspec: {replicas: 1, selector: {matchLabels: {app: %s}}, template: {metadata: {labels: {app: %s}}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: "example.local/web:1"%s}]}}}\n' "$1" "${2:-}" "$1" "$1" "${3:-}"; }
map() { printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s%s}\ndata: {v: "%s"}\n' "$1" "${3:-}" "$2"; }
mkdir -p "$G"/{web,waves,hooks,broken,till,kustomize,chart/templates,quiet}
web front >"$G/web/deploy.yaml"; map settings 1 >"$G/web/settings.yaml"; map extra 1 >"$G/web/extra.yaml"
printf 'apiVersion: v1\nkind: Service\nmetadata: {name: front}\nspec: {selector: {app: front}, ports: [{port: 80, targetPort: 8080}]}\n' >"$G/web/service.yaml"
wave() { printf ', annotations: {argocd.argoproj.io/sync-wave: "%s"}' "$1"; }
map first 1 "$(wave -1)" >"$G/waves/a.yaml"; web slow "$(wave 0)" ', readinessProbe: {tcpSocket: {port: 8080}, initialDelaySeconds: 4, periodSeconds: 1}' >"$G/waves/b.yaml"; map last 1 "$(wave 1)" >"$G/waves/c.yaml"
hook() { printf 'apiVersion: batch/v1\nkind: Job\nmetadata: {name: %s, annotations: {argocd.argoproj.io/hook: %s, argocd.argoproj.io/hook-delete-policy: %s}}\nspec: {backoffLimit: 0, template: {spec: {restartPolicy: Never, containers: [{name: a, image: "example.local/web:1", command: [%s]}]}}}\n' "$@"; }
hook before PreSync BeforeHookCreation 'sleep, "2"' >"$G/hooks/a.yaml"; hook after PostSync HookSucceeded '"true"' >"$G/hooks/b.yaml"; map between 1 >"$G/hooks/c.yaml"
hook fails PreSync BeforeHookCreation '"false"' >"$G/broken/a.yaml"; map never 1 >"$G/broken/b.yaml"
printf 'apiVersion: shop.example/v1\nkind: Till\nmetadata: {name: one}\nspec: {}\n' >"$G/till/till.yaml"
printf 'resources: [deploy.yaml]\nnamePrefix: k-\nconfigMapGenerator: [{name: made, literals: [a=1]}]\nreplicas: [{name: kweb, count: 2}]\n' >"$G/kustomize/kustomization.yaml"; web kweb >"$G/kustomize/deploy.yaml"
printf 'apiVersion: v2\nname: chart\nversion: 1.0.0\n' >"$G/chart/Chart.yaml"; printf 'v: default\n' >"$G/chart/values.yaml"; printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}-charted, namespace: {{ .Release.Namespace }}}\ndata: {v: {{ .Values.v }}, has: "{{ .Capabilities.APIVersions.Has "shop.example/v1" }}", kube: "{{ .Capabilities.KubeVersion.Minor }}"}\n' >"$G/chart/templates/map.yaml"
map quiet 1 >"$G/quiet/map.yaml"; push first
v() { k -n shop get cm "$1" -o 'jsonpath={.data.v}' --ignore-not-found; }

check "what is committed runs: synced and healthy" eval 'app web web "$AUTO" && until_is "Synced Healthy" state web && k -n shop rollout status deploy/front --timeout=5s'
check "a commit is followed" eval 'map settings 2 >"$G/web/settings.yaml"; push second; heard web && until_is 2 v settings && until_is "$(git -C "$G" rev-parse main) Synced" k -n argocd get app web -o "jsonpath={.status.sync.revision} {.status.sync.status}"'
check "drift is taken back, of what it owns" eval 'k -n shop patch cm settings -p "{\"data\":{\"v\":\"drift\"}}" && until_is 2 v settings && k -n shop delete deploy front && soon k -n shop get deploy front && k -n shop scale deploy front --replicas=3 && until_is 1 k -n shop get deploy front -o "jsonpath={.spec.replicas}" && until_is "Synced Healthy" state web'
check "what is no longer there is pruned" eval 'rm "$G/web/extra.yaml"; push third; heard web && until_is "" v extra && until_is "Synced Healthy" state web'
check "without a policy it only tells what differs" eval 'app quiet quiet && until_is "OutOfSync Missing" state quiet && is "" v quiet'
check "a sync that is asked for, and a trial of one" eval 'cli app sync quiet --dry-run && is "" v quiet && cli app sync quiet --timeout 60 && is 1 v quiet && until_is "Synced Healthy" state quiet'
check "what differs is shown" eval 'k -n shop patch cm quiet -p "{\"data\":{\"v\":\"9\"}}" && until_is "OutOfSync Healthy" state quiet && has "< +v: .9|> +v: .1" cli app diff quiet --exit-code=false'
check "differences that are to be ignored are" eval 'app quiet quiet ", ignoreDifferences: [{group: \"\", kind: ConfigMap, jsonPointers: [/data/v]}]" && until_is "Synced Healthy" state quiet'
check "by server-side apply" eval 'app quiet quiet ", syncPolicy: {syncOptions: [ServerSideApply=true]}" && until_is "OutOfSync Healthy" state quiet && cli app sync quiet --timeout 60 && is 1 v quiet && has argocd-controller k -n shop get cm quiet --show-managed-fields -o "jsonpath={.metadata.managedFields[?(@.operation==\"Apply\")].manager}"'
check "an earlier state is gone back to" eval 'map quiet 5 >"$G/quiet/map.yaml"; push fifth; heard quiet && cli app sync quiet --timeout 60 && is 5 v quiet && cli app rollback quiet 0 --timeout 60 && until_is 1 v quiet'
waved() { local a b; a=$(date +%s -d "$(k -n shop get deploy slow -o 'jsonpath={.metadata.creationTimestamp}')"); b=$(date +%s -d "$(k -n shop get cm last -o 'jsonpath={.metadata.creationTimestamp}')"); [ $((b - a)) -ge 4 ] || { echo "after $((b - a)) s"; return 1; }; }
check "waves wait for what is before them to be healthy" eval 'app waves waves "$AUTO" && until_is "Synced Healthy" state waves && waved'
check "hooks run before and after, and go as they say" eval 'app hooks hooks "$AUTO" && until_is "Synced Healthy" state hooks && until_is Succeeded k -n argocd get app hooks -o "jsonpath={.status.operationState.phase}" && is "PreSync Succeeded, PostSync Succeeded, " k -n argocd get app hooks -o "jsonpath={range .status.operationState.syncResult.resources[?(@.kind==\"Job\")]}{.hookType} {.hookPhase}, {end}" && k -n shop get job before && until_is "" k -n shop get job after --ignore-not-found -o name && is 1 v between'
check "a hook that fails ends a sync, and nothing after it is made" eval 'app broken broken && until_is "OutOfSync Missing" state broken && refused "synchronization tasks completed unsuccessfully" cli app sync broken --timeout 60 && is Failed k -n argocd get app broken -o "jsonpath={.status.operationState.phase}" && is "" v never'
check "health by a script of the settings" eval 'app till till "$AUTO" && until_is "Synced Progressing" state till && k -n shop patch till one --subresource=status --type=merge -p "{\"status\":{\"open\":true}}" && until_is "Synced Healthy" state till'
check "what doesn't come up is degraded" eval 'web front "" ", command: [\"false\"]" | sed "s/replicas: 1/progressDeadlineSeconds: 6, replicas: 1/" >"$G/web/deploy.yaml"; push bad; heard web && until_is "Synced Degraded" state web && web front >"$G/web/deploy.yaml"; push good; heard web && until_is "Synced Healthy" state web'
check "by kustomize" eval 'app kust kustomize "$AUTO" && until_is "Synced Healthy" state kust && is 2 k -n shop get deploy k-kweb -o "jsonpath={.spec.replicas}" && has "configmap/k-made-" k -n shop get cm -o name'
check "by helm, whose charts see what the server has" eval 'app chart chart "$AUTO" ", helm: {parameters: [{name: v, value: given}]}" && until_is "Synced Healthy" state chart && is "given true 37" k -n shop get cm chart-charted -o "jsonpath={.data.v} {.data.has} {.data.kube}"'
tree() { cli app get web --output tree; }
check "the tree down to the pods, and what they say" eval 'soon has "Pod/front-.*Healthy" tree && has "ReplicaSet/front-" tree && k -n shop exec deploy/front -- wget -qO- http://127.0.0.1:8080/ && soon has "response:200" cli app logs web --kind Deployment --name front --tail 5'
check "actions: a restart" eval 'cli app actions run web restart --kind Deployment --resource-name front && soon has T k -n shop get deploy front -o "jsonpath={.spec.template.metadata.annotations.kubectl\.kubernetes\.io/restartedAt}" && until_is "Synced Healthy" state web'
project() { printf 'apiVersion: argoproj.io/v1alpha1\nkind: AppProject\nmetadata: {name: narrow, namespace: argocd}\nspec: {sourceRepos: ["*"], destinations: [{server: "*", namespace: shop}], namespaceResourceWhitelist: [{group: "", kind: ConfigMap}], clusterResourceWhitelist: []}\n' | k apply -f -; }
check "a project bounds what may be made" eval 'project && app bound web "" && k -n argocd patch app bound --type=merge -p "{\"spec\":{\"project\":\"narrow\"}}" && until_is "OutOfSync" k -n argocd get app bound -o "jsonpath={.status.sync.status}" && refused "is not permitted in project narrow" cli app sync bound --timeout 60 && k -n argocd patch app bound --type=merge -p "{\"spec\":{\"destination\":{\"namespace\":\"default\"}}}" && soon has InvalidSpecError k -n argocd get app bound -o "jsonpath={.status.conditions[*].type}" && k -n argocd patch app bound --type=json -p "[{\"op\":\"remove\",\"path\":\"/metadata/finalizers\"}]" && k -n argocd delete app bound'
set_of() { printf 'apiVersion: argoproj.io/v1alpha1\nkind: ApplicationSet\nmetadata: {name: set, namespace: argocd}\nspec: {goTemplate: true, generators: [{list: {elements: [%s]}}], template: {metadata: {name: "set-{{.tag}}"}, spec: {project: default, source: {repoURL: "file://%s", targetRevision: main, path: chart, helm: {releaseName: "set-{{.tag}}", parameters: [{name: v, value: "of-{{.tag}}"}]}}, destination: {server: https://kubernetes.default.svc, namespace: "set-{{.tag}}"}%s}}}\n' "$1" "$WORK/repo.git" "$AUTO" | k apply -f -; }
check "a set makes applications, with namespaces of their own, and takes them back" eval 'set_of "{tag: a}, {tag: b}" && until_is "Synced Healthy" state set-a && until_is "Synced Healthy" state set-b && is of-b k -n set-b get cm set-b-charted -o "jsonpath={.data.v}" && set_of "{tag: a}" && until_is "" k -n argocd get app set-b --ignore-not-found -o name && until_is "" k -n set-b get cm set-b-charted --ignore-not-found -o name && k -n argocd delete applicationset set --timeout=60s && until_is "" k -n argocd get app set-a --ignore-not-found -o name'
check "deleted, what they made goes with them" eval 'k -n argocd delete app --all --timeout=100s && until_is "" k -n shop get deploy,svc,job,till -o name && is "configmap/kube-root-ca.crt" k -n shop get cm -o name'
