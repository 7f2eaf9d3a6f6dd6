#!/bin/bash
# cluster-api.sh: Cluster API by clusterctl, from its own manifests, in pods with the rights that gives them: its core, kubeadm's bootstrap and control plane, and its developers' provider, whose machines, API servers and etcd are in memory.
# Webhooks by cert-manager's certificates, definitions of several versions with conversions; a cluster of a ClusterClass: made, reached, grown, repaired, saved, upgraded, deleted.
# needs: helm cert-manager kustomize clusterctl capi-core capi-bootstrap capi-controlplane capi-development
. "$(dirname "$0")/lib.sh"
FROM=$(source_of capi-core) TEST=$(source_of capi-development)/infrastructure/docker CHART=$(source_of cert-manager)/deploy/charts/cert-manager
set_images=()
for part in controller webhook cainjector; do
  image example.local/cert-manager-$part:1 "[\"/bin/cert-manager\",\"$part\"]" "$CLIENTS/cert-manager"
  at=$part.image; [ $part != controller ] || at=image
  set_images+=(--set-string "$at.repository=example.local/cert-manager-$part,$at.tag=1")
done
V=v1.14.2 R=$WORK/providers
# provider LABEL COMPONENTS SOURCE IMAGE PROGRAM: a folder of releases as clusterctl reads them, and the image they name. There is no Docker.
provider() {
  mkdir -p "$R/$1/$V"; cp "$FROM/metadata.yaml" "$R/$1/$V/"
  "$CLIENTS/kustomize" build "$3/config/default" | sed -E 's/imagePullPolicy: Always/imagePullPolicy: IfNotPresent/; /- mountPath: \/var\/run\/docker.sock/,+1d; s/^( *)- hostPath:/\1- emptyDir: {}/; /^ *path: \/var\/run\/docker.sock/d' >"$R/$1/$V/$2"
  image "gcr.io/k8s-staging-cluster-api/$4:main" '["/manager"]' "$CLIENTS/$5=/manager"
}
provider cluster-api core-components.yaml "$FROM/core" cluster-api-controller capi-core
provider bootstrap-kubeadm bootstrap-components.yaml "$FROM/bootstrap/kubeadm" kubeadm-bootstrap-controller capi-bootstrap
provider control-plane-kubeadm control-plane-components.yaml "$FROM/controlplane/kubeadm" kubeadm-control-plane-controller capi-controlplane
provider infrastructure-docker infrastructure-components-development.yaml "$TEST" capd-manager capi-development
for t in clusterclass-in-memory cluster-template-in-memory; do sed -E 's/startupDuration: "[0-9]+s"/startupDuration: "1s"/' "$TEST/templates/$t.yaml" >"$R/infrastructure-docker/$V/$t.yaml"; done
cat >"$WORK/clusterctl.yaml" <<END
providers:
- {name: cluster-api, type: CoreProvider, url: "$R/cluster-api/$V/core-components.yaml"}
- {name: kubeadm, type: BootstrapProvider, url: "$R/bootstrap-kubeadm/$V/bootstrap-components.yaml"}
- {name: kubeadm, type: ControlPlaneProvider, url: "$R/control-plane-kubeadm/$V/control-plane-components.yaml"}
- {name: docker, type: InfrastructureProvider, url: "$R/infrastructure-docker/$V/infrastructure-components-development.yaml"}
CLUSTER_TOPOLOGY: "true"
EXP_MACHINE_POOL: "true"
END
ctl() { inns env HOME="$WORK" CLUSTERCTL_DISABLE_VERSIONCHECK=true "$CLIENTS/clusterctl" --config "$WORK/clusterctl.yaml" "$@"; }
cluster --disable metrics
check "cert-manager gets ready" c helm install cert-manager "$CHART" -n cert-manager --create-namespace --set crds.enabled=true,startupapicheck.enabled=false "${set_images[@]}" --wait --timeout 110s || exit 1
check "clusterctl installs its providers, which get ready" ctl init --core cluster-api:$V --bootstrap kubeadm:$V --control-plane kubeadm:$V --infrastructure docker:$V --wait-providers --wait-provider-timeout 120 || exit 1
check "their authorities are in webhooks and conversions" eval 'until_is true bash -c "nsenter --net=/run/netns/$CLUSTER $BIN/kubectl get validatingwebhookconfiguration,mutatingwebhookconfiguration -o json | jq \"[.items[].webhooks[].clientConfig.caBundle | length > 100] | all\"" && until_is true bash -c "nsenter --net=/run/netns/$CLUSTER $BIN/kubectl get crd clusters.cluster.x-k8s.io -o json | jq \".spec.conversion.webhook.clientConfig.caBundle | length > 100\""'
k create ns shop >/dev/null
generate() { ctl generate cluster one --flavor in-memory --infrastructure "docker:$V" --kubernetes-version v1.33.0 --control-plane-machine-count 1 --worker-machine-count 2 -n shop >"$WORK/one.yaml"; }
check "a cluster that can be none is refused by its webhook" eval 'generate && refused "admission webhook .*denied the request|is invalid" eval "sed \"s/version: v1.33.0/version: nonsense/\" $WORK/one.yaml | k apply --dry-run=server -f -"'
check "one of a class is applied" k apply -n shop -f "$WORK/one.yaml"
of() { k -n shop get "$1" one -o "jsonpath=$2"; }
running() { k -n shop get machine -l cluster.x-k8s.io/cluster-name=one -o json | jq '[.items[] | select(.status.phase == "Running" and .metadata.deletionTimestamp == null)] | length'; }
condition() { of cluster "{.status.conditions[?(@.type==\"$1\")].status}"; }
check "its machines run, and it is available" eval 'WITHIN=150 until_is 3 running && WITHIN=90 until_is True condition Available && is Provisioned of cluster "{.status.phase}"'
theirs() { inns "$BIN/kubectl" --kubeconfig "$WORK/one.kubeconfig" "$@"; }
nodes() { theirs get nodes -o json | jq '.items | length'; }
check "it is reached by the kubeconfig made for it" eval 'ctl get kubeconfig one -n shop >"$WORK/one.kubeconfig" && until_is 3 nodes'
check "its tree is told" has 'Cluster shop/one, v1.33.0 .* True +Available' ctl describe cluster one -n shop
check "the older version says the same, and is written" eval 'until_is "cluster.x-k8s.io/v1beta1 in-memory v1.33.0" k -n shop get clusters.v1beta1.cluster.x-k8s.io one -o "jsonpath={.apiVersion} {.spec.topology.class} {.spec.topology.version}" && k -n shop patch clusters.v1beta1.cluster.x-k8s.io one --type=merge -p "{\"spec\":{\"topology\":{\"workers\":{\"machineDeployments\":[{\"class\":\"default-worker\",\"name\":\"md-0\",\"replicas\":3}]}}}}" && is 3 of cluster "{.spec.topology.workers.machineDeployments[0].replicas}"'
check "and it grows" eval 'WITHIN=120 until_is 4 running && until_is 4 nodes'
check "its control plane, too" eval 'k -n shop patch cluster one --type=merge -p "{\"spec\":{\"topology\":{\"controlPlane\":{\"replicas\":3}}}}" && WITHIN=150 until_is 6 running && WITHIN=90 until_is True condition Available'
machine() { k -n shop get machine -l cluster.x-k8s.io/deployment-name -o 'jsonpath={.items[0].metadata.name}'; }
check "a machine that is deleted is drained, and another comes" eval 'm=$(machine) && k -n shop delete machine "$m" --timeout=90s && WITHIN=90 until_is 6 running && until_is 6 nodes'
saved() { (cd "$WORK/moved" && printf '%s ' Cluster_*.yaml && ls | grep -c ^Machine_); }
check "its objects are saved to files, and it goes on" eval 'mkdir -p "$WORK/moved" && ctl move --to-directory "$WORK/moved" -n shop && until_is "Cluster_shop_one.yaml 6" saved && until_is "" of cluster "{.spec.paused}" && until_is True condition Available'
versions() { k -n shop get machine -l cluster.x-k8s.io/cluster-name=one -o json | jq -r '[.items[].spec.version] | unique | join(" ")'; }
check "another version rolls through all of it" eval 'k -n shop patch cluster one --type=merge -p "{\"spec\":{\"topology\":{\"version\":\"v1.34.0\"}}}" && WITHIN=240 until_is v1.34.0 versions && WITHIN=90 until_is 6 running'
check "deleted, all of it goes" eval 'k -n shop delete cluster one --timeout=150s && is "" k -n shop get machine,kubeadmcontrolplane,devmachine,devcluster -o name'
# clusterctl may find a definition in discovery that has gone when it asks for it.
check "its providers go with their definitions" eval 'k -n shop delete clusterclass,devclustertemplate,devmachinetemplate,kubeadmcontrolplanetemplate,kubeadmconfigtemplate --all --timeout=60s && soon ctl delete --all --include-crd --include-namespace && WITHIN=90 until_is "" k get ns capi-system --ignore-not-found -o name && is "" bash -c "nsenter --net=/run/netns/$CLUSTER $BIN/kubectl get crd -o name | grep cluster.x-k8s.io | grep -v providers.clusterctl"'
