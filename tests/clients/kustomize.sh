#!/bin/bash
# kustomize.sh: kustomize builds, the server takes: generators whose names carry hashes, overlays, patches, components, replacements, pruning by an ApplySet.
# needs: kustomize
. "$(dirname "$0")/lib.sh"
cluster --disable metrics
D=$WORK/shop; mkdir -p "$D/base" "$D/prod" "$D/loud"
cat >"$D/base/web.yaml" <<'Y'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {tier: web}}
  template:
    metadata: {labels: {tier: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: web, image: shop/web, envFrom: [{configMapRef: {name: settings}}, {secretRef: {name: keys}}], env: [{name: AT, value: later}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {tier: web}, ports: [{port: 80, targetPort: 8080}]}
Y
cat >"$D/base/kustomization.yaml" <<'Y'
resources: [web.yaml]
configMapGenerator: [{name: settings, literals: [COLOUR=red]}]
secretGenerator: [{name: keys, literals: [KEY=opensesame]}]
images: [{name: shop/web, newName: example.local/web, newTag: "1"}]
Y
cat >"$D/loud/kustomization.yaml" <<'Y'
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
patches:
- target: {kind: Deployment}
  patch: |
    - {op: add, path: /spec/template/metadata/annotations, value: {loud: "yes"}}
Y
cat >"$D/prod/kustomization.yaml" <<'Y'
namespace: prod
namePrefix: p-
labels: [{pairs: {env: prod}, includeSelectors: true, includeTemplates: true}]
resources: [../base, ns.yaml]
components: [../loud]
replicas: [{name: web, count: 2}]
configMapGenerator: [{name: settings, behavior: merge, literals: [SIZE=xl]}]
patches: [{patch: "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {spec: {containers: [{name: web, resources: {requests: {cpu: 10m}}}]}}}"}]
replacements: [{source: {kind: Service, name: web}, targets: [{select: {kind: Deployment, name: web}, fieldPaths: ["spec.template.spec.containers.[name=web].env.[name=AT].value"]}]}]
Y
printf 'apiVersion: v1\nkind: Namespace\nmetadata: {name: prod}\n' >"$D/prod/ns.yaml"
made() { c kustomize build "$D/prod"; }
check "an overlay is applied, server-side" eval 'made | k apply --server-side -f -'
check "and rolled out" k -n prod rollout status deploy/p-web --timeout=60s
check "with generated names, labels, patches and replacements" eval 'has "^COLOUR=red" k -n prod exec deploy/p-web -- env && has "^SIZE=xl" k -n prod exec deploy/p-web -- env && has "^KEY=opensesame" k -n prod exec deploy/p-web -- env && has "^AT=p-web" k -n prod exec deploy/p-web -- env && is "yes prod 10m" k -n prod get deploy p-web -o "jsonpath={.spec.template.metadata.annotations.loud} {.spec.selector.matchLabels.env} {.spec.template.spec.containers[0].resources.requests.cpu}"'
check "nothing differs afterwards" eval 'made | k diff --server-side -f -'
check "built by the program and by kubectl it is the same" eval 'made | grep "name: p-web" && diff <(made) <(k kustomize "$D/prod")'
check "another setting is another map, and a rollout" eval 'sed -i s/SIZE=xl/SIZE=s/ "$D/prod/kustomization.yaml" && made | k apply --server-side -f - && k -n prod rollout status deploy/p-web --timeout=60s && has "^SIZE=s" k -n prod exec deploy/p-web -- env'
check "an ApplySet prunes what is said no more" eval 'made | KUBECTL_APPLYSET=true k apply --server-side --force-conflicts --prune --applyset=shop -n prod -f - && sed -i "/configMapGenerator/d" "$D/prod/kustomization.yaml" && made | KUBECTL_APPLYSET=true k apply --server-side --prune --applyset=shop -n prod -f - && is 1 bash -c "nsenter --net=/run/netns/$CLUSTER $BIN/kubectl -n prod get cm -l applyset.kubernetes.io/part-of -o name | wc -l"'
check "what it built is deleted" eval 'made | k delete -f - --timeout=60s && is "" k get ns prod --ignore-not-found -o name'
