#!/bin/bash
# build.sh [kubectl|etcd|apiserver|components|kubeadm|differential|gateway|registry|quick|all]: builds the upstream suite (e2e.test, ginkgo), kubectl, etcd, kube-apiserver and the
# programs of the suite's images from published Go modules into $LAB/bin. kubectl, etcd, apiserver: only that; components: kube-scheduler and
# kube-controller-manager; kubeadm: kubeadm, kubelet, kube-proxy, containerd and runc; differential: etcd and apiserver; gateway: the suite of
# the Gateway API, its echo server and CoreDNS; quick: what the gate needs; all: what all 462 tests need.
# 10 to 15 minutes on two cores the first time; builds only what is missing.
. "$(dirname "$0")/lib/env.sh"; set -e
WHAT=${1:-all}; K=v1.37.2; M=v0.37.2 GATEWAY_API=v1.6.1
mkdir -p $BIN $LAB/build
command -v go >/dev/null || { echo "Go is missing: install Go 1.26 or newer (golang.org, or your distribution's package)" >&2; exit 1; }
NEED="jq"; [[ $WHAT = @(kubectl|etcd|apiserver|components|kubeadm|differential|registry) ]] || NEED="jq skopeo docker-registry busybox-static nftables iproute2 gcc make curl python3"
MISSING=$(for p in $NEED; do dpkg -s $p >/dev/null 2>&1 || echo $p; done)
[ -z "$MISSING" ] || { apt-get update -qq; apt-get install -y -qq --no-install-recommends $MISSING >/dev/null; }
V="-X k8s.io/component-base/version.gitVersion=$K -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37 -X k8s.io/client-go/pkg/version.gitVersion=$K"
say() { printf '%s building %s\n' "$(date +%T)" "$*"; }
# k8s.io/kubernetes replaces its staging modules by folders; a consumer has to name their published versions.
module() { # directory
  mkdir -p $1; cd $1; [ -f go.mod ] && return
  local src; src=$(go mod download -json k8s.io/kubernetes@$K | jq -r .Dir)
  { printf 'module suite\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire k8s.io/kubernetes %s\n\nreplace (\n' $K
    sed -n '/^replace (/,/^)/p' $src/go.mod | awk -v m=$M '/=>/{print "\t"$1" => "$1" "m}'; echo ')'; } >go.mod
}
build() { # output package
  [ -x $BIN/$1 ] && return; say $1
  go get $2@$K 2>/dev/null; go build -mod=mod -trimpath -ldflags "-s -w $V" -o $BIN/$1 $2
}
other() { # output module version package tags
  [ -x $BIN/$1 ] && return; say $1; mkdir -p $LAB/build/$1
  ( cd $LAB/build/$1; [ -f go.mod ] || go mod init suite/$1 2>/dev/null
    go get $4@$3 2>/dev/null; go build -mod=mod -trimpath -tags "${5:-}" -ldflags '-s -w' -o $BIN/$1 $4 )
}
export CGO_ENABLED=0
etcd() {
  other etcd go.etcd.io/etcd/server/v3 v3.7.3 go.etcd.io/etcd/server/v3
  for c in etcdctl etcdutl; do other $c go.etcd.io/etcd/$c/v3 v3.7.3 go.etcd.io/etcd/$c/v3; done
}
[ $WHAT = etcd ] && { etcd; exit; }
[ $WHAT = differential ] && etcd
[[ $WHAT = @(apiserver|differential) ]] && { module $LAB/build/kubernetes; build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver; exit; }
[ $WHAT = components ] && { module $LAB/build/kubernetes; for c in kube-scheduler kube-controller-manager; do build $c k8s.io/kubernetes/cmd/$c; done; exit; }
# Its version is that of the definitions in crates/pod/gateway. The suite's module replaces the API's by a folder; its published version takes the place.
[ $WHAT = gateway ] && {
  other coredns github.com/coredns/coredns v1.15.0 github.com/coredns/coredns
  [ -x $BIN/gateway.test ] && [ -x $BIN/img-echo-basic ] && exit
  mkdir -p $LAB/build/gateway; cd $LAB/build/gateway; S=sigs.k8s.io/gateway-api
  printf 'module suite\n\ngo 1.26.0\n\nrequire %s/conformance %s\n\nreplace %s => %s %s\n' $S $GATEWAY_API $S $S $GATEWAY_API >go.mod
  say gateway.test; go get -t $S/conformance@$GATEWAY_API 2>/dev/null; go test -mod=mod -c -trimpath -ldflags '-s -w' -o $BIN/gateway.test $S/conformance
  say img-echo-basic; go build -mod=mod -trimpath -ldflags '-s -w' -o $BIN/img-echo-basic $S/conformance/echo-basic; exit; }
# OCI's suite of the distribution API; its module has no releases.
[ $WHAT = registry ] && {
  C=github.com/opencontainers/distribution-spec/conformance; other oci-conformance $C v0.0.0-20260831232431-97274622c111 $C; exit; }
[ $WHAT = kubeadm ] && {
  dpkg -s libseccomp-dev pkg-config gcc containernetworking-plugins >/dev/null 2>&1 || { apt-get update -qq; apt-get install -y -qq --no-install-recommends libseccomp-dev pkg-config gcc containernetworking-plugins >/dev/null; }
  ( module $LAB/build/kubernetes; for c in kubeadm kubelet kube-proxy; do build $c k8s.io/kubernetes/cmd/$c; done )
  C=github.com/containerd/containerd/v2
  for c in containerd containerd-shim-runc-v2 ctr; do other $c $C v2.4.2 $C/cmd/$c; done
  CGO_ENABLED=1 other runc github.com/opencontainers/runc v1.5.2 github.com/opencontainers/runc seccomp; exit; }
I=k8s.io/kubernetes/test/images
( module $LAB/build/kubernetes; build kubectl k8s.io/kubernetes/cmd/kubectl
  [ $WHAT = kubectl ] && exit; build agnhost $I/agnhost; build img-nnp $I/nonewprivs; [ $WHAT = quick ] || { build img-regression-issue-74839 $I/regression-issue-74839
    build img-consumer $I/resource-consumer; build img-consume-cpu $I/resource-consumer/consume-cpu; } )
[ $WHAT = kubectl ] && exit
( [ -x $BIN/e2e.test ] && [ -x $BIN/ginkgo ] && exit
  module $LAB/build/e2e; say e2e.test; go get -t k8s.io/kubernetes/test/e2e@$K 2>/dev/null; go get github.com/onsi/ginkgo/v2/ginkgo 2>/dev/null
  go test -mod=mod -c -trimpath -ldflags "-s -w $V" -o $BIN/e2e.test k8s.io/kubernetes/test/e2e
  go build -mod=mod -trimpath -ldflags '-s -w' -o $BIN/ginkgo github.com/onsi/ginkgo/v2/ginkgo )
etcd
[ $WHAT = quick ] || {
  [ -x $BIN/img-hostpathplugin ] || { say img-hostpathplugin; go build -trimpath -ldflags '-s -w' -o $BIN/img-hostpathplugin $HERE/images/hostpathplugin/main.go; }
  other coredns github.com/coredns/coredns v1.15.0 github.com/coredns/coredns
  other sample-apiserver k8s.io/sample-apiserver v0.33.3 k8s.io/sample-apiserver; }
