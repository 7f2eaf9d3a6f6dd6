#!/bin/bash
# Builds the peer and the suite from registry packages into $LAB/bin: upstream Kubernetes v1.37.2, e2e.test, ginkgo, etcd 3.7, containerd 2.4,
# runc, CoreDNS and the images' programs. About 12 minutes on two cores the first time; re-runnable, builds only what is missing.
. "$(dirname "$0")/lib/env.sh"; set -e
mkdir -p $BIN $P/build; export PATH=$PATH:/usr/local/go/bin
apt-get install -y -qq --no-install-recommends containernetworking-plugins nftables iproute2 conntrack iptables ipset socat ethtool jq skopeo docker-registry \
  busybox-static libseccomp-dev pkg-config gcc make curl openssl time >/dev/null || { apt-get update -qq && exec "$0" "$@"; }
K=v1.37.2
V="-X k8s.io/component-base/version.gitVersion=$K -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37 -X k8s.io/client-go/pkg/version.gitVersion=$K"
say() { printf '%s %s\n' "$(date +%T)" "$*"; }
# the staging modules are replaced inside k8s.io/kubernetes; a consumer has to name their published versions
mod() { # dir: a module that requires k8s.io/kubernetes
  mkdir -p $1; cd $1; [ -f go.mod ] && return
  local src; src=$(go mod download -json k8s.io/kubernetes@$K | jq -r .Dir)
  { printf 'module lab\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire k8s.io/kubernetes %s\n\nreplace (\n' $K
    sed -n '/^replace (/,/^)/p' $src/go.mod | awk '/=>/{print "\t"$1" => "$1" v0.37.2"}'; echo ')'; } >go.mod
}
export CGO_ENABLED=0
( mod $P/build/kubernetes
  for p in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl kubeadm; do [ -x $BIN/$p ] && continue; say $p
    go get k8s.io/kubernetes/cmd/$p@$K 2>/dev/null; go build -mod=mod -trimpath -ldflags "-s -w $V" -o $BIN/$p k8s.io/kubernetes/cmd/$p; done
  for t in agnhost:agnhost nonewprivs:img-nnp regression-issue-74839:img-regression-issue-74839 resource-consumer:img-consumer resource-consumer/consume-cpu:img-consume-cpu; do
    [ -x $BIN/${t#*:} ] && continue; say ${t#*:}; go get k8s.io/kubernetes/test/images/${t%:*}@$K 2>/dev/null; go build -mod=mod -trimpath -ldflags '-s -w' -o $BIN/${t#*:} k8s.io/kubernetes/test/images/${t%:*}; done )
( [ -x $BIN/e2e.test ] && [ -x $BIN/ginkgo ] && exit; mod $P/build/e2e; say e2e.test; go get -t k8s.io/kubernetes/test/e2e@$K 2>/dev/null; go get github.com/onsi/ginkgo/v2/ginkgo 2>/dev/null
  go test -mod=mod -c -trimpath -ldflags "-s -w $V" -o $BIN/e2e.test k8s.io/kubernetes/test/e2e; go build -mod=mod -trimpath -ldflags '-s -w' -o $BIN/ginkgo github.com/onsi/ginkgo/v2/ginkgo )
one() { # name module version package [ldflags] [tags]
  [ -x $BIN/$1 ] && return; say $1; mkdir -p $P/build/$1; ( cd $P/build/$1; [ -f go.mod ] || go mod init lab/$1 2>/dev/null
  go get $4@$3 2>/dev/null; go build -mod=mod -trimpath -tags "$6" -ldflags "-s -w $5" -o $BIN/$1 $4 ); }
one etcd go.etcd.io/etcd/server/v3 v3.7.3 go.etcd.io/etcd/server/v3
one etcdctl go.etcd.io/etcd/etcdctl/v3 v3.7.3 go.etcd.io/etcd/etcdctl/v3
C=github.com/containerd/containerd/v2
one containerd $C v2.4.2 $C/cmd/containerd "-X $C/version.Version=v2.4.2"
one containerd-shim-runc-v2 $C v2.4.2 $C/cmd/containerd-shim-runc-v2
one ctr $C v2.4.2 $C/cmd/ctr
one coredns github.com/coredns/coredns v1.15.0 github.com/coredns/coredns
one sample-apiserver k8s.io/sample-apiserver v0.33.3 k8s.io/sample-apiserver
CGO_ENABLED=1 one runc github.com/opencontainers/runc v1.5.2 github.com/opencontainers/runc "-X main.version=1.5.2" seccomp
[ -x $BIN/apibench ] || { say apibench; ( cd "$HERE/../apibench" && go build -buildvcs=false -trimpath -ldflags "-s -w" -o $BIN/apibench . ); }
say done; ls $BIN
