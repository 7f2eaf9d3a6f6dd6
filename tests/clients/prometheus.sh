#!/bin/bash
# prometheus.sh: Prometheus in a pod with kube-prometheus' rights: finds nodes, pods, services, endpoints and ingresses by the API, scrapes what a server and a kubelet tell, with each certificate verified, and has what
# kube-prometheus' rules and dashboards select (prometheus/series.tsv).
# needs: prometheus
. "$(dirname "$0")/lib.sh"
HERE=$ROOT/tests/clients/prometheus
image example.local/prometheus:1 '["/bin/prometheus"]' "$CLIENTS/prometheus"
cluster
check "it is deployed, with something to watch over" eval 'k apply -f "$HERE/objects.yaml" && k -n monitoring create cm prometheus --from-file="$HERE/prometheus.yml" --from-file="$HERE/recorded.rules.yaml" && k -n shop rollout status deploy/web --timeout=60s && k -n monitoring rollout status deploy/prometheus --timeout=60s' || exit 1
ADDRESS=http://$(k -n monitoring get svc prometheus -o 'jsonpath={.spec.clusterIP}'):9090
api() { inns curl -sf --max-time 20 "$ADDRESS/api/v1/$1" "${@:2}"; }
query() { api query --data-urlencode "query=$1" | jq -r '.data.result[] | .value[1]'; }
targets() { api targets | jq -r --arg j "$1" '[.data.activeTargets[] | select(.scrapePool == $j) | .health] | unique | join(" ")'; }
for job in apiserver kube-scheduler kube-controller-manager kube-proxy kube-dns slis kubelet kubelet-cadvisor kubelet-resource kubelet-probes kubelet-slis pods services endpoints ingresses; do
  check "$job: found and scraped" eval "WITHIN=30 until_is up targets $job || { api targets | jq -r '.data.activeTargets[] | select(.scrapePool == \"$job\") | .lastError' ; false; }"
done
check "pods with the labels that were asked for, a target each" until_is 2 query 'count(up{job="pods"} == 1)'
check "a pod's owner, node and name" until_is 2 query "count(web_colours{job=\"pods\",owner=\"ReplicaSet\",node=\"$CLUSTER\",namespace=\"shop\",pod=~\"web-.*\"} == 3)"
check "a service by its address, endpoints by theirs" eval 'until_is 1 query "count(web_colours{job=\"services\",type=\"ClusterIP\"})" && until_is 2 query "count(web_colours{job=\"endpoints\",ready=\"true\",pod=~\"web-.*\"})"'
check "an ingress with its host and path" until_is 1 query 'count(up{job="ingresses",url="shop.example.com/at"})'
check "who isn't ready is told so, who is there no more is no target" eval 'k -n shop scale deploy/web --replicas=1 && until_is 1 query "count(up{job=\"pods\"})" && k -n shop scale deploy/web --replicas=2 && until_is 2 query "count(up{job=\"pods\"} == 1)"'
check "another account's token is refused what it has no right to" eval 'k -n monitoring create sa nobody; t=$(k -n monitoring create token nobody); is 403 inns curl -sk -o /dev/null -w "%{http_code}" -H "Authorization: Bearer $t" https://$NODE_IP:6443/metrics && is 403 inns curl -sk -o /dev/null -w "%{http_code}" -H "Authorization: Bearer $t" https://$NODE_IP:10250/metrics/cadvisor'
# Work of which there are figures: a command in a pod, one that is refused, one that can't be scheduled, names that are asked for.
k -n shop exec deploy/web -- sh -c 'nslookup web.shop.svc.cluster.local; nslookup none.invalid; dd if=/dev/zero of=/data/f bs=64k count=64; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done' >/dev/null 2>&1
k -n shop get cm none >/dev/null 2>&1; k auth can-i get pods --as=nobody >/dev/null 2>&1
printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: big, namespace: shop}\nspec: {containers: [{name: a, image: "example.local/web:1", resources: {requests: {cpu: 900}}}]}\n' | k apply -f - >/dev/null
k -n shop run none --image=example.local/none:1 --restart=Never >/dev/null
missing() {
  local selector labels l left=
  while IFS=$'\t' read -r selector labels; do
    for l in "" ${labels//,/ }; do
      case $selector,$l in *,) l=$selector ;; *}*) l="${selector%\}},$l!=\"\"}" ;; *) l="$selector{$l!=\"\"}" ;; esac
      [ -n "$(query "count(last_over_time(${l}[5m]))")" ] || { left+="$l"$'\n'; [ "$l" != "$selector" ] || break; }
    done
  done < <(grep -v '^#' "$HERE/series.tsv")
  echo "$left"
}
check "what rules and dashboards select is there" eval 'for _ in 1 2 3; do left=$(missing); [ -n "$left" ] || break; sleep 5; done; is "" echo "$left"'
check "rules are evaluated without a complaint" eval 'is "" bash -c "nsenter --net=/run/netns/$CLUSTER curl -sf $ADDRESS/api/v1/rules | jq -r \".data.groups[].rules[] | select(.health != \\\"ok\\\") | .name + .lastError\"" && until_is 1 query "count(cluster:api_errors:ratio)"'
check "no sample was refused" is "0" query 'sum(prometheus_target_scrapes_sample_duplicate_timestamp_total) + sum(prometheus_target_scrapes_sample_out_of_order_total) + sum(prometheus_target_scrapes_exceeded_sample_limit_total) or vector(0)'
