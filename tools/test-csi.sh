#!/bin/sh
# csi-sanity, the upstream test of CSI drivers, against ours. Needs root, Go and mkfs.ext4; leaves nothing behind.
set -eu
cd "$(dirname "$0")/.."
version=v5.6.0
work=$(mktemp -d)
pid=
finish() {
  exec 3>&-
  [ -z "$pid" ] || wait "$pid" || true
  rm -rf "$work"
}
trap finish EXIT
cargo build --quiet --locked -p keelson-local --example driver
GOBIN="$work" go install "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$version"
mkfifo "$work/in"
"${CARGO_TARGET_DIR:-target}/debug/examples/driver" "$work/pool" "$work/csi.sock" < "$work/in" &
pid=$!
exec 3> "$work/in"
for _ in $(seq 100); do [ -S "$work/csi.sock" ] && break; sleep 0.1; done
"$work/csi-sanity" -csi.endpoint "$work/csi.sock" -csi.testvolumesize 67108864 -csi.testvolumeexpandsize 134217728 \
  -csi.mountdir "$work/target" -csi.stagingdir "$work/staging" -ginkgo.no-color "$@"
