#!/bin/bash
# helm.sh: a chart's life by helm 4: definitions, hooks, what is waited for, releases that fail and are taken back, server-side apply and its conflicts.
# needs: helm
. "$(dirname "$0")/lib.sh"
cluster
export HELM_CACHE_HOME=$WORK/cache HELM_CONFIG_HOME=$WORK/config HELM_DATA_HOME=$WORK/share
h() { c helm "$@"; }
CHART=$WORK/shop; mkdir -p "$CHART/templates/tests" "$CHART/crds"
cat >"$CHART/Chart.yaml" <<'Y'
apiVersion: v2
name: shop
version: 1.0.0
appVersion: "1"
Y
printf 'replicas: 1\ncolour: red\nimage: example.local/web:1\nbroken: false\nhookFails: false\n' >"$CHART/values.yaml"
cat >"$CHART/values.schema.json" <<'Y'
{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"replicas": {"type": "integer", "minimum": 0}}}
Y
cat >"$CHART/crds/signs.yaml" <<'Y'
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: signs.shop.example.com}
spec:
  group: shop.example.com
  names: {kind: Sign, plural: signs, singular: sign}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {text: {type: string}, lines: {type: array, items: {type: string}}}}}}}
Y
cat >"$CHART/templates/all.yaml" <<'Y'
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .Release.Name }}
  labels: {app: {{ .Release.Name }}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}, annotations: {colour: {{ .Values.colour | quote }}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: {{ .Values.image }}
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 8080, name: http}]
        readinessProbe: {httpGet: {path: {{ if .Values.broken }}/nowhere{{ else }}/{{ end }}, port: http}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: {{ .Release.Name }}}}]
---
apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}}
spec: {selector: {app: {{ .Release.Name }}}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-settings}
data: {colour: {{ .Values.colour | quote }}, kube: {{ .Capabilities.KubeVersion.Version | quote }}, api: {{ .Capabilities.APIVersions.Has "apps/v1" | quote }}}
---
apiVersion: shop.example.com/v1
kind: Sign
metadata: {name: {{ .Release.Name }}}
spec: {text: {{ .Values.colour | quote }}, lines: [a, b]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: {{ .Release.Name }}, annotations: {helm.sh/resource-policy: keep}}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
{{- $found := lookup "v1" "Namespace" "" "kube-system" }}
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-looked-up}
data: {phase: {{ if $found }}{{ $found.status.phase | quote }}{{ else }}""{{ end }}}
Y
hook() { cat <<Y
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-$1
  annotations: {helm.sh/hook: "$2", helm.sh/hook-weight: "$3", helm.sh/hook-delete-policy: before-hook-creation}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers: [{name: hook, image: {{ .Values.image }}, command: [sh, -c, "$4"]}]
Y
}
{ hook before "pre-install,pre-upgrade" -5 "{{ if .Values.hookFails }}echo no; exit 3{{ else }}echo before{{ end }}"; hook after "post-install,post-upgrade,post-rollback" 0 "echo after"; hook last pre-delete 0 "echo last"; } >"$CHART/templates/hooks.yaml"
cat >"$CHART/templates/tests/reach.yaml" <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: {{ .Release.Name }}-reach, annotations: {helm.sh/hook: test, helm.sh/hook-delete-policy: before-hook-creation}}
spec:
  restartPolicy: Never
  containers: [{name: reach, image: {{ .Values.image }}, command: [wget, -qO-, "http://{{ .Release.Name }}.{{ .Release.Namespace }}"]}]
Y
echo 'Shop {{ .Release.Name }} revision {{ .Release.Revision }}' >"$CHART/templates/NOTES.txt"
cm() { k -n shop get cm web-settings -o "jsonpath={.data.$1}"; }
at() { h -n shop history web -o json | jq -r 'map("\(.revision):\(.status)") | join(" ")'; }
check "lint and package" eval 'h lint "$CHART" && h package "$CHART" -d "$WORK"'
check "values that the chart's schema refuses" refused 'replicas|minimum' h install web "$CHART" -n shop --create-namespace --set replicas=-1
check "install --wait, with definitions, hooks and a claim" h install web "$CHART" -n shop --create-namespace --wait --timeout 100s
check "template against the server's versions" has 'kube: "?v1.37' h template web "$CHART" --dry-run=server
check "what it made is as it says" eval 'is red cm colour && is true cm api && is Active k -n shop get cm web-looked-up -o "jsonpath={.data.phase}" && is red k -n shop get sign web -o "jsonpath={.spec.text}" && is Bound k -n shop get pvc web -o "jsonpath={.status.phase}"'
check "hooks ran, and stand outside the release" eval 'is "1 1" k -n shop get job web-before web-after -o "jsonpath={.items[*].status.succeeded}" && ! h -n shop get manifest web | grep -x "kind: Job"'
check "test --logs" has 'hello from the image' h test web -n shop --logs --timeout 60s
check "status, list, get" eval 'has "STATUS: deployed" h -n shop status web && has "web.*deployed.*shop-1.0.0" h ls -A && has "kind: Deployment" h -n shop get manifest web && has "colour: red" h -n shop get values web -a --revision 1'
check "managed fields are helm's, by apply" is Apply k -n shop get cm web-settings --show-managed-fields -o 'jsonpath={.metadata.managedFields[?(@.manager=="helm")].operation}'
check "upgrade --wait" h upgrade web "$CHART" -n shop --set colour=blue,replicas=2 --wait --timeout 100s
check "upgrade changed what it should" eval 'is blue cm colour && is 2 k -n shop get deploy web -o "jsonpath={.status.readyReplicas}" && is blue k -n shop get sign web -o "jsonpath={.spec.text}"'
check "upgrade --dry-run=server changes nothing" eval 'h upgrade web "$CHART" -n shop --set colour=green --dry-run=server && is blue cm colour'
check "a release that doesn't get ready fails in its time" refused 'context deadline|timed out|not ready|failed' h upgrade web "$CHART" -n shop --set broken=true --wait --timeout 12s
check "a failed hook fails the upgrade" refused 'failed|BackoffLimit' h upgrade web "$CHART" -n shop --set hookFails=true --wait --timeout 60s
check "--rollback-on-failure goes back" eval '! h upgrade web "$CHART" -n shop --set colour=grey,broken=true,replicas=2 --rollback-on-failure --timeout 20s && until_is blue cm colour'
check "rollback --wait to the first revision" h rollback web 1 -n shop --wait --timeout 100s
check "rollback put back what was" eval 'is red cm colour && until_is 1 k -n shop get deploy web -o "jsonpath={.status.replicas}"'
check "history tells them all" has '1:superseded .*deployed$' at
k -n shop scale deploy web --replicas=3 >/dev/null
check "a conflict with who scaled is told" refused 'conflict with "kubectl" with subresource "scale"|conflict.*\.spec\.replicas' h upgrade web "$CHART" -n shop --set replicas=1,colour=x
check "--force-conflicts takes the field" eval 'h upgrade web "$CHART" -n shop --set replicas=1,colour=x --force-conflicts && is 1 k -n shop get deploy web -o "jsonpath={.spec.replicas}"'
check "client-side three-way merge" eval 'k -n shop label cm web-settings by=hand && h upgrade web "$CHART" -n shop --server-side=false --set colour=y && is y cm colour && is hand k -n shop get cm web-settings -o "jsonpath={.metadata.labels.by}"'
k -n shop create cm other-settings >/dev/null
check "an object of somebody else's is not taken over" refused 'cannot be imported|invalid ownership metadata' h install other "$CHART" -n shop --skip-crds
check "--take-ownership takes it over" h install other "$CHART" -n shop --skip-crds --take-ownership --wait --timeout 100s
check "install --replace and --wait-for-jobs of a third" h install third "$CHART" -n third --create-namespace --skip-crds --wait --wait-for-jobs --timeout 100s
check "uninstall --wait, and its hook" eval 'h uninstall other -n shop --wait --timeout 60s && is "" k -n shop get deploy other --ignore-not-found -o name && is 1 k -n shop get job other-last -o "jsonpath={.status.succeeded}"'
check "what is to be kept is kept" is persistentvolumeclaim/other k -n shop get pvc other -o name
check "uninstall --keep-history --cascade foreground, and back by rollback" eval 'h uninstall web -n shop --keep-history --cascade foreground --wait && has uninstalled at && h rollback web 1 -n shop --wait --timeout 100s && is red cm colour'
check "definitions stay after all releases" eval 'h uninstall web -n shop --wait && h uninstall third -n third && has signs.shop k get crd -o name'
check "nothing of a release is left in the store" is "" k -n shop get secret -l owner=helm -o name
