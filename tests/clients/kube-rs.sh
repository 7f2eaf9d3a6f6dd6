#!/bin/bash
# kube-rs.sh: kube-rs: the tests that its crates are published with and that need a cluster, a check each, and a program of ours (kube-rs/main.rs): watches of three forms, a controller, refusals, patches, waits, discovery, leases, tokens, streams by WebSocket.
# needs: kube-rs
. "$(dirname "$0")/lib.sh"
image docker.io/library/busybox:stable '["sh"]'
cluster --disable metrics
k create ns shop >/dev/null
cat <<'END' | k apply -f - >/dev/null
{apiVersion: v1, kind: Pod, metadata: {name: echo, namespace: shop}, spec: {terminationGracePeriodSeconds: 0, containers: [
  {name: a, image: "example.local/web:1", command: [nc, -ll, -p, "1234", -e, cat], readinessProbe: {exec: {command: [grep, "04D2 ", /proc/net/tcp, /proc/net/tcp6]}, periodSeconds: 1}},
  {name: web, image: "example.local/web:1", command: [sh, -c, "mkdir /tmp/w; echo forwarded >/tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w"]}]}}
END
k -n shop wait --for=condition=Ready --timeout=60s pod/echo >/dev/null
for crate in kube kube-client kube-runtime; do
  while read -r test; do check "$crate: $test" c "kube-rs-$crate.test" --ignored --exact "$test"; done < <("$CLIENTS/kube-rs-$crate.test" --list --ignored 2>/dev/null | sed -n 's/: test$//p')
done
check "lists by the watch, in pages, and of metadata end in the same" c kube-rs watches
check "a controller of a definition of two versions" c kube-rs controller
check "refusals are told in members" c kube-rs errors
check "patches of each kind" c kube-rs patches
check "what is waited for comes" c kube-rs waits
check "discovery by group and in one answer is the same, and all of it can be listed" c kube-rs discovery
check "one of those who write a lease does" c kube-rs leases
check "a token may what its account may" c kube-rs tokens
check "commands by WebSocket: a megabyte, an exit code, a terminal's size" c kube-rs exec
check "two are attached to one container" c kube-rs attach
check "ports by WebSocket, several of one connection" c kube-rs forward
