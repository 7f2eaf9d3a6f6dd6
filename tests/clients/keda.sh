#!/bin/bash
# keda.sh: KEDA's operator and metrics adapter by its own manifests, in pods: an extension server for external.metrics.k8s.io whose authority the operator makes and puts in, HPAs that scale by what it tells, down to none
# and back; jobs by what waits. Its webhooks are left out.
# needs: keda keda-adapter kustomize
. "$(dirname "$0")/lib.sh"
FROM=$(source_of keda)/config
image ghcr.io/kedacore/keda:main '["/keda"]' "$CLIENTS/keda=/keda"
image ghcr.io/kedacore/keda-metrics-apiserver:main '["/keda-adapter"]' "$CLIENTS/keda-adapter=/keda-adapter"
cluster
mkdir -p "$WORK/keda"; cp -r --no-preserve=mode "$FROM" "$WORK/keda/config"
cat >"$WORK/keda/kustomization.yaml" <<'Y'
resources: [config/crd, config/general, config/rbac, config/manager, config/metrics-server, config/service_account]
patches: [{target: {kind: Deployment}, patch: '[{"op": "replace", "path": "/spec/template/spec/containers/0/imagePullPolicy", "value": "IfNotPresent"}]'}]   # there is no registry here
Y
for i in 1 2; do printf 'apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: work%s, namespace: shop}\nspec: {replicas: 1, selector: {matchLabels: {app: work%s}}, template: {metadata: {labels: {app: work%s}}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: "example.local/web:1"}]}}}\n---\n' $i $i $i; done >"$WORK/work.yaml"
# What waits to be done, told as JSON by a pod.
cat >"$WORK/queue.yaml" <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: queue, namespace: shop, labels: {app: queue}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: "example.local/web:1", command: [sh, -c, "echo '{\"waiting\": 0}' >/www/now; exec httpd -f -p 8080 -h /www"], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: queue, namespace: shop}
spec: {selector: {app: queue}, ports: [{port: 80, targetPort: 8080}]}
Y
waiting() { k -n shop exec queue -- sh -c "echo '{\"waiting\": $1}' >/www/now"; }
scaled() { printf 'apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {name: %s, namespace: shop}\nspec: {scaleTargetRef: {name: %s}, pollingInterval: 1, cooldownPeriod: 2, minReplicaCount: %s, maxReplicaCount: 4, advanced: {horizontalPodAutoscalerConfig: {behavior: {scaleDown: {stabilizationWindowSeconds: 0}}}}, triggers: [%s]}\n' "$@" | k apply -f -; }
by_queue='{type: metrics-api, metadata: {url: "http://queue.shop.svc/now", valueLocation: waiting, targetValue: "2"}}'
replicas() { k -n shop get deploy "$1" -o 'jsonpath={.spec.replicas}'; }
check "its manifests are applied" eval 'c kustomize build "$WORK/keda" | k apply --server-side -f - && k wait --for=condition=Established --timeout=30s crd --all' || exit 1
check "the operator gets ready, and holds its lease" eval 'k -n keda rollout status deploy/keda-operator --timeout=100s && has operator.keda.sh k -n keda get lease -o name'
check "which makes an authority for all of it" until_is 3 bash -c "nsenter --net=/run/netns/$CLUSTER $BIN/kubectl -n keda get secret kedaorg-certs -o json | jq '.data | with_entries(select(.key == (\"ca.crt\", \"tls.crt\", \"tls.key\"))) | length'"
check "the adapter gets ready with it" k -n keda rollout status deploy/keda-metrics-apiserver --timeout=100s
check "its group is served, verified by that authority" eval 'k wait --for=condition=Available --timeout=60s apiservice/v1beta1.external.metrics.k8s.io && until_is true bash -c "nsenter --net=/run/netns/$CLUSTER $BIN/kubectl get apiservice v1beta1.external.metrics.k8s.io -o json | jq \".spec.caBundle != null and .spec.insecureSkipTLSVerify != true\"" && soon k get --raw /apis/external.metrics.k8s.io/v1beta1'
k create ns shop >/dev/null; k apply -f "$WORK/work.yaml" -f "$WORK/queue.yaml" >/dev/null; k -n shop wait --for=condition=Ready --timeout=60s pod/queue >/dev/null
check "by the clock" eval 'scaled clock work1 1 "{type: cron, metadata: {timezone: Etc/UTC, start: \"0 0 * * *\", end: \"59 23 * * *\", desiredReplicas: \"3\"}}" && until_is 3 replicas work1 && k -n shop rollout status deploy/work1 --timeout=60s'
check "its HPA is the object's, and tells what it saw" eval 'is "ScaledObject 3" k -n shop get hpa keda-hpa-clock -o "jsonpath={.metadata.ownerReferences[0].kind} {.status.desiredReplicas}" && until_is True k -n shop get hpa keda-hpa-clock -o "jsonpath={.status.conditions[?(@.type==\"ScalingActive\")].status}"'
check "nothing waits: none is left" eval 'scaled queue work2 0 "$by_queue" && until_is 0 replicas work2'
check "something waits: the first is started" eval 'waiting 1 && until_is 1 replicas work2'
check "much waits: the HPA adds others, as many as it may" eval 'waiting 5 && until_is 3 replicas work2 && waiting 50 && until_is 4 replicas work2'
check "the figure is told by the API" eval 'n=$(k -n shop get scaledobject queue -o "jsonpath={.status.externalMetricNames[0]}") && is 50 bash -c "nsenter --net=/run/netns/$CLUSTER $BIN/kubectl get --raw \"/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/$n?labelSelector=scaledobject.keda.sh%2Fname%3Dqueue\" | jq -r \".items[0].value\""'
check "and refused to who has no right to it" eval 'n=$(k -n shop get scaledobject queue -o "jsonpath={.status.externalMetricNames[0]}"); refused Forbidden k get --as=system:serviceaccount:shop:default --raw "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/$n"'
check "held at a number by an annotation" eval 'k -n shop annotate scaledobject queue autoscaling.keda.sh/paused-replicas=2 && until_is 2 replicas work2 && until_is True k -n shop get scaledobject queue -o "jsonpath={.status.conditions[?(@.type==\"Paused\")].status}" && k -n shop annotate scaledobject queue autoscaling.keda.sh/paused-replicas- && until_is 4 replicas work2'
check "all done: back to none" eval 'waiting 0 && WITHIN=100 until_is 0 replicas work2'
job='{apiVersion: keda.sh/v1alpha1, kind: ScaledJob, metadata: {name: jobs, namespace: shop}, spec: {pollingInterval: 1, maxReplicaCount: 2, jobTargetRef: {template: {spec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, containers: [{name: a, image: "example.local/web:1", command: [sleep, "30"]}]}}}, triggers: ['"$by_queue"']}}'
check "jobs by what waits, as many as may be at once" eval 'k apply -f - <<<"$job" && waiting 9 && until_is 2 bash -c "nsenter --net=/run/netns/$CLUSTER $BIN/kubectl -n shop get job -l scaledjob.keda.sh/name=jobs -o name | wc -l" && waiting 0 && k -n shop delete scaledjob jobs --timeout=60s && until_is "" k -n shop get job -o name'
check "its object deleted, the HPA goes and the replicas stay" eval 'k -n shop delete scaledobject clock --timeout=60s && until_is "" k -n shop get hpa keda-hpa-clock --ignore-not-found -o name && is 3 replicas work1'
check "events tell of it" has KEDAScaleTargetActivated k -n shop get events -o 'jsonpath={.items[*].reason}'
check "without its adapter the group is unavailable, and all else goes on" eval 'k -n keda scale deploy/keda-metrics-apiserver --replicas=0 && until_is False k get apiservice v1beta1.external.metrics.k8s.io -o "jsonpath={.status.conditions[?(@.type==\"Available\")].status}" && k -n shop create cm later && k delete ns shop --timeout=100s'
