# Settings that all scripts share. Everything built or downloaded lives in $LAB, outside the source tree.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ROOT=$(cd "$HERE/.." && pwd)
export LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}
P=$LAB; BIN=$LAB/bin
export PATH=$BIN:$PATH:/usr/local/go/bin:/usr/sbin:/sbin
# The cluster under test: one network namespace a node.
CLUSTER=${CLUSTER:-kl0}
NODE_IP=${NODE_IP:-10.78.0.1}
REGISTRY_PORT=5555   # a test of the suite has a registry of its own at 5000
STATE=${STATE:-$LAB/cluster-$CLUSTER}
KUBECONFIG_FILE=$STATE/admin.kubeconfig
inns() { nsenter --net=/run/netns/$CLUSTER "$@"; }
# Names as lists have them: without labels, and without what a version is asked for, which results have behind them.
bare() { sed 's/ \[sig-[a-z-]*\(, [^]]*\)\?\]\( \[[a-z]*: .*\)\?$//; s/ *$//'; }
