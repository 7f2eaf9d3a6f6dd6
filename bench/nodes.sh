#!/bin/bash
# nodes.sh [REPETITIONS=3]: what several machines cost and how they reach each other, in a cluster of `keelson dev` that it makes and removes: until nodes
# are Ready, an agent's memory, throughput and round trips between pods of two nodes beside those between the nodes themselves and over a plain
# vxlan made by hand. Nodes are namespaces of one kernel: all packets cost the same processors. Two minutes; needs root. env: KEELSON=program
set -euo pipefail
cd "$(dirname "$0")/.."; REPS=${1:-3}
TOOLS="iperf3 python3 busybox-static" tools/deps.sh
LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/keelson-lab}; export PATH=$LAB/bin:$PATH:/usr/sbin:/sbin
KEELSON=$(realpath "${KEELSON:-target/release/keelson}") KUBECTL=${KUBECTL:-kubectl} S=$(mktemp -d /tmp/keelson-bench-nodes.XXXXXX)
OUT=bench/out/$(sha256sum "$KEELSON" | cut -c1-12); mkdir -p "$OUT"; RAW=$OUT/nodes.tsv; : >"$RAW"
dev() { "$KEELSON" dev "$1" --dir "$S/clusters" --kubeconfig "$S/config" bench "${@:2}"; }
k() { "$KUBECTL" --kubeconfig "$S/config" "$@"; }
note() { printf '%s\t%s\t%s\n' "$@" | tee -a "$RAW"; }
seconds() { awk -v a="$(date +%s.%N)" -v b="$1" 'BEGIN{printf "%.2f", a-b}'; }
SERVERS=()
cleanup() {
  status=$?
  # Functions in the background are shells, and the servers their children.
  for p in "${SERVERS[@]}"; do kill $(pgrep -P "$p") "$p" 2>/dev/null || true; done
  [ $status = 0 ] || tail -n 20 "$S"/clusters/*/*.log 2>/dev/null || true
  dev down >/dev/null 2>&1 || true; rm -rf "$S"; exit $status
}
trap cleanup EXIT
mkdir "$S/images"; examples/image.sh "$S/images" >/dev/null
options=(--eviction-hard "nodefs.available<1%,imagefs.available<1%,nodefs.inodesFree<1%")
up() { t=$(date +%s.%N); dev up --images "$S/images" --nodes "$1" -- "${options[@]}" >/dev/null; seconds "$t"; }

for _ in $(seq "$REPS"); do
  note "a server and two agents, to Ready" s "$(up 3)"
  note "another agent, from its command to Ready" s "$(up 4)"
  dev down >/dev/null
done
up 2 >/dev/null
BRIDGE=kldev$(sed -n 's/.*"number": \([0-9]*\).*/\1/p' "$S/clusters/bench/cluster.json")
on() { ip netns exec "$BRIDGE-$1" "${@:2}"; }   # node command…
pss() { # node: MiB of the program's processes in it
  ns=$(stat -Lc %i "/run/netns/$BRIDGE-$1"); total=0
  for p in /proc/[0-9]*; do
    [ "$(readlink "$p/exe" 2>/dev/null)" = "$KEELSON" ] && [ "$(stat -Lc %i "$p/ns/net" 2>/dev/null)" = "$ns" ] || continue
    total=$((total + $(awk '/^Pss:/{print $2}' "$p/smaps_rollup" 2>/dev/null || echo 0)))
  done
  awk -v k=$total 'BEGIN{printf "%.1f", k/1024}'
}
pod() { # name node
  printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%s"},"spec":{"nodeName":"bench-%s","terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"example.local/web:1","imagePullPolicy":"Never","command":["sleep","9%s00"]}]}}\n---\n' "$1" "$2" "${1#*-}"; }
sleep 10; note "an agent's memory, no pods" MiB "$(pss 1)"
for i in $(seq 101 110); do pod "p-$i" 1; done | k apply -f - >/dev/null
pod p-201 0 | k apply -f - >/dev/null
k wait --for=condition=Ready pod --all --timeout=60s >/dev/null; sleep 10
note "an agent's memory, ten pods" MiB "$(pss 1)"

into() { nsenter --net="/proc/$(pgrep -fx "sleep 9${1}00" | head -n 1)/ns/net" "${@:2}"; }   # number of a pod, command…
address() { k get pod "p-$1" -o 'jsonpath={.status.podIP}'; }
# A vxlan as one would make it by hand, beside the cluster's.
for n in 0 1; do
  peer=$(on $((1 - n)) ip -4 -o addr show scope global | awk '{split($4,a,"/"); if (!f) print a[1]; f=1}')
  dev_of=$(on "$n" ip -4 -o addr show scope global | awk '{if (!f) print $2; f=1}')
  on "$n" ip link add vxbench type vxlan id 4242 dstport 4789 remote "$peer" dev "$dev_of"
  on "$n" ip addr add "192.168.242.$((n + 1))/24" dev vxbench; on "$n" ip link set vxbench up
done
hosts() { on 1 ip -4 -o addr show scope global | awk '{split($4,a,"/"); if (!f) print a[1]; f=1}'; }
ROUND='import socket,sys,time
s=socket.create_connection((sys.argv[1],5202)); s.setsockopt(socket.IPPROTO_TCP,socket.TCP_NODELAY,1)
times=[]
for i in range(5000):
    t=time.perf_counter(); s.sendall(b"x"); s.recv(1); times.append(time.perf_counter()-t)
times.sort(); print("%.1f %.1f"%(times[2500]*1e6,times[4950]*1e6))'
ECHO='import socket
l=socket.create_server(("",5202))
for _ in range(100):
    c,_a=l.accept(); c.setsockopt(socket.IPPROTO_TCP,socket.TCP_NODELAY,1)
    while True:
        d=c.recv(1)
        if not d: break
        c.sendall(d)'
serve() { "$@" iperf3 -s -p 5201 >/dev/null 2>&1 & SERVERS+=($!); "$@" python3 -c "$ECHO" >/dev/null 2>&1 & SERVERS+=($!); }
measure() { # what address command…
  note "$1, throughput" Gbit/s "$("${@:3}" timeout 30 iperf3 -c "$2" -p 5201 -t 5 -J | python3 -c 'import json,sys; print("%.2f"%(json.load(sys.stdin)["end"]["sum_received"]["bits_per_second"]/1e9))')"
  read -r p50 p99 < <("${@:3}" timeout 60 python3 -c "$ROUND" "$2")
  note "$1, round trip" µs "$p50"; note "$1, round trip, p99" µs "$p99"
}
serve on 1; serve into 101; sleep 1
for _ in $(seq "$REPS"); do
  measure "node to node" "$(hosts)" on 0
  measure "node to node over a vxlan made by hand" 192.168.242.2 on 0
  measure "pod to pod of another node" "$(address 101)" into 201
done
echo "| figure | unit | median | least–most |"; echo "|---|---|---|---|"
sort -s -t$'\t' -k1,2 "$RAW" | awk -F'\t' '
  function out() { if (n) printf "| %s | %s | %s | %s–%s |\n", name, unit, v[int((n+1)/2)], v[1], v[n]; n=0 }
  $1!=name || $2!=unit { asort_(); out(); name=$1; unit=$2 } { v[++n]=$3 }
  function asort_(  i,j,t) { for (i=2;i<=n;i++) for (j=i;j>1 && v[j-1]+0>v[j]+0;j--) { t=v[j]; v[j]=v[j-1]; v[j-1]=t } }
  END { asort_(); out() }' | tee "$OUT/nodes.md"
