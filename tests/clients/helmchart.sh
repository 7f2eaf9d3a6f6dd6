#!/bin/bash
# helmchart.sh: the objects HelmChart and HelmChartConfig, whose jobs run helm itself: the image is helm 4 and an entry script in the manner of k3s' own.
# needs: helm
. "$(dirname "$0")/lib.sh"
cat >"$WORK/entry" <<'E'
#!/bin/sh
# What k3s' image does with what the job is given: install or upgrade by what there is, a release that failed as FAILURE_POLICY says, the configuration's hash on it.
set -e
export HOME=/tmp HELM_CACHE_HOME=/tmp/c HELM_CONFIG_HOME=/tmp/g HELM_DATA_HOME=/tmp/d
verb=$1; shift
chart=$CHART; [ ! -e "/chart/$NAME.tgz.base64" ] || { base64 -d <"/chart/$NAME.tgz.base64" >"/tmp/$NAME.tgz"; chart=/tmp/$NAME.tgz; }
values=; for f in /config/*.yaml; do [ ! -e "$f" ] || values="$values --values $f"; done
state=$(helm status "$NAME" -n "$TARGET_NAMESPACE" -o json 2>/dev/null | sed 's/.*"status":"\([a-z-]*\)".*/\1/' || true)
case $verb in
delete) [ -z "$state" ] || helm uninstall "$NAME" -n "$TARGET_NAMESPACE" --wait ;;
install)
  case $state in failed|pending-*) [ "$FAILURE_POLICY" != reinstall ] || { helm uninstall "$NAME" -n "$TARGET_NAMESPACE" --wait; state=; } ;; esac
  # shellcheck disable=SC2086
  helm upgrade --install "$NAME" "$chart" "$@" $values ${TIMEOUT:+--timeout $TIMEOUT} --labels "helmcharts.helm.cattle.io/configHash=$CONFIG_HASH" >/tmp/said 2>&1 || rc=$?
  cat /tmp/said; tail -c 1000 /tmp/said >/dev/termination-log; exit ${rc:-0} ;;
esac
E
image example.local/helm:1 '["/bin/entry"]' "$CLIENTS/helm" "$WORK/entry"
cluster --disable metrics --helm-job-image example.local/helm:1 --helm-charts
mkdir -p "$WORK/shop/templates"
printf 'apiVersion: v2\nname: shop\nversion: 1.0.0\n' >"$WORK/shop/Chart.yaml"; printf 'colour: red\nsize: 1\n' >"$WORK/shop/values.yaml"
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {colour: {{ .Values.colour | quote }}, size: {{ .Values.size | quote }}}\n' >"$WORK/shop/templates/cm.yaml"
c helm package "$WORK/shop" -d "$WORK" >/dev/null
# chart NAME LINES-OF-SPEC: by its content, as there is no repository here.
chart() { printf 'apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: %s, namespace: kube-system}\nspec:\n  targetNamespace: shop\n  createNamespace: true\n  chartContent: %s\n%s\n' "$1" "$(base64 -w0 "$WORK/shop-1.0.0.tgz")" "$2" | k apply -f -; }
value() { k -n shop get cm "$1" -o "jsonpath={.data.$2}"; }
revisions() { c helm history "$1" -n shop -o json | jq -r 'map("\(.revision):\(.status)") | join(" ")'; }
check "a chart is installed by helm in its job" eval 'chart web "" && until_is red value web colour'
check "the release is helm's" until_is 1:deployed revisions web
check "the object says so" until_is "True False" k -n kube-system get helmchart web -o 'jsonpath={.status.conditions[*].status}'
check "other values are an upgrade" eval 'chart web "  valuesContent: \"colour: blue\"" && until_is blue value web colour && until_is "1:superseded 2:deployed" revisions web'
check "a configuration is laid over it" eval 'printf "apiVersion: helm.cattle.io/v1\nkind: HelmChartConfig\nmetadata: {name: web, namespace: kube-system}\nspec: {valuesContent: \"size: 7\"}\n" | k apply -f - && until_is 7 value web size && is blue value web colour'
check "nothing changed is no other revision" eval 'k -n kube-system annotate helmchart web by=hand && sleep 5 && is "1:superseded 2:superseded 3:deployed" revisions web'
check "set and a timeout reach helm" eval 'chart web "  set: {colour: green}
  timeout: 90s" && until_is green value web colour && is 7 value web size'
check "a chart that can't be is told in helm's words" eval 'chart broken "  valuesContent: \"colour: [\"
  failurePolicy: abort
  backOffLimit: 1" && WITHIN=110 until_is True k -n kube-system get helmchart broken -o "jsonpath={.status.conditions[?(@.type==\"Failed\")].status}" && has "failed to parse|yaml" k -n kube-system get helmchart broken -o "jsonpath={.status.conditions[?(@.type==\"Failed\")].message}"'
check "deleting it uninstalls the release" eval 'k -n kube-system delete helmchart web --timeout=100s && is "" k -n shop get cm web --ignore-not-found -o name && is "" k -n shop get secret -l owner=helm,name=web -o name'
check "one that never was installed goes, too" k -n kube-system delete helmchart broken --timeout=100s
check "the job's rights go with it" is "" k get clusterrolebinding helm-kube-system-web --ignore-not-found -o name
