#!/bin/bash
# node.sh DIR NAME [SANDBOX-IMAGE]: process 1 of a machine as kubeadm expects one, in namespaces of its own (mounts, names, processes; the network is given):
# containerd if a sandbox image is named, and what a service manager would do for the kubelet: start it when kubeadm has written its files, and again when it ends.
# Everything it writes is below DIR; DIR/kubelet.command in place of upstream's kubelet if it is there.
set -u
DIR=$1 NAME=$2 PAUSE=${3:-}
hostname "$NAME"
mount --make-rprivate /
mount -t tmpfs -o mode=755 run /run; mkdir -p /run/netns /run/containerd /run/lock
# What kubeadm's parts write is below DIR, and no directory of the host is mounted over: were that one removed there, the mount would go, too.
for d in var/lib var/log; do mkdir -p "$DIR/$d"; mount --bind "$DIR/$d" "/$d"; done
for d in etc opt usr/libexec; do mkdir -p "$DIR/over/$d" "$DIR/work/$d"
  mount -t overlay -o "lowerdir=/$d,upperdir=$DIR/over/$d,workdir=$DIR/work/$d" over "/$d"; done
for d in etc/cni etc/kubernetes etc/containerd; do mkdir -p "$DIR/$d" "/$d"; mount --bind "$DIR/$d" "/$d"; done
printf '127.0.0.1 localhost %s\n' "$NAME" >"$DIR/hosts"; echo "$NAME" >"$DIR/hostname"; : >"$DIR/resolv.conf"
for f in hosts hostname resolv.conf; do mount --bind "$DIR/$f" "/etc/$f"; done
mount --make-rshared /
for c in /sys/fs/cgroup/*/; do [ -e "$c/cgroup.procs" ] && mkdir -p "$c/$NAME"; done
if [ -d /sys/fs/cgroup/cpuset ]; then for f in cpus mems; do cat /sys/fs/cgroup/cpuset/cpuset.$f >"/sys/fs/cgroup/cpuset/$NAME/cpuset.$f"; done; fi
if [ -n "$PAUSE" ]; then
mkdir -p /opt/cni/bin /etc/cni/net.d; mount --bind "${CNI_BIN:-/usr/lib/cni}" /opt/cni/bin
cat >/etc/containerd/config.toml <<C
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "$PAUSE"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  disable_hugetlb_controller = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
C
containerd >>"$DIR/containerd.log" 2>&1 &
for _ in $(seq 600); do [ -S /run/containerd/containerd.sock ] && break; sleep 0.1; done
for t in "$DIR"/images/*.tar; do ctr -n k8s.io images import "$t" >>"$DIR/import.log" 2>&1; done
fi
touch "$DIR/up"
# As kubeadm's drop-in for systemd has it.
while :; do
  if [ -x "$DIR/kubelet.command" ]; then "$DIR/kubelet.command" >>"$DIR/kubelet.log" 2>&1 & echo $! >"$DIR/kubelet.pid"; wait $!
  elif [ -e /var/lib/kubelet/config.yaml ] && [ -e /var/lib/kubelet/kubeadm-flags.env ] && [ ! -e "$DIR/hold" ]; then
    . /var/lib/kubelet/kubeadm-flags.env
    # shellcheck disable=SC2086
    kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml \
      ${KUBELET_KUBEADM_ARGS:-} >>"$DIR/kubelet.log" 2>&1 &
    echo $! >"$DIR/kubelet.pid"; wait $!
  fi
  sleep 0.5
done
