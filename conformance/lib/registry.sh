#!/bin/bash
# registry.sh up|down: a registry with all of $LAB/images inside the cluster's namespace, at $NODE_IP:$REGISTRY_PORT. The suite
# pulls some images with policy Always; the cluster's registries file sends every host name here.
. "$(dirname "$0")/env.sh"; set -e
R=$LAB/registry; PIDFILE=$STATE/registry.pid
case $1 in
up)
  mkdir -p $R $STATE
  printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}\nhttp: {addr: %s:%s}\nlog: {level: warn}\n' $R $NODE_IP $REGISTRY_PORT >$STATE/registry.yml
  setsid nsenter --net=/run/netns/$CLUSTER docker-registry serve $STATE/registry.yml >>$STATE/registry.log 2>&1 </dev/null & echo $! >$PIDFILE
  for j in $(seq 100); do inns curl -s -o /dev/null http://$NODE_IP:$REGISTRY_PORT/v2/ && break; sleep 0.1; done
  for t in $LAB/images/*.tar; do s=$R/$(basename $t).pushed; [ $s -nt $t ] && continue
    for n in $(tar -xOf $t manifest.json | jq -r '.[0].RepoTags[]'); do inns skopeo copy -q --dest-tls-verify=false docker-archive:$t docker://$NODE_IP:$REGISTRY_PORT/${n#*/}; done && touch $s; done ;;
down) [ -f $PIDFILE ] && kill "$(cat $PIDFILE)" 2>/dev/null; rm -f $PIDFILE; true ;;
esac
