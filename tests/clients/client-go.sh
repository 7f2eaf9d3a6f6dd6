#!/bin/bash
# client-go.sh: client-go as programs of others use it (client-go/main.go): watch-lists, dynamic and metadata informers, a controller's queue, elections, streams by WebSocket and SPDY, apply configurations, discovery, events.
# needs: client-go
. "$(dirname "$0")/lib.sh"
cluster --disable metrics
k create ns shop >/dev/null
printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: echo, namespace: shop}\nspec: {terminationGracePeriodSeconds: 0, containers: [{name: a, image: "example.local/web:1", command: [nc, -ll, -p, "1234", -e, cat], readinessProbe: {exec: {command: [grep, "04D2 ", /proc/net/tcp, /proc/net/tcp6]}, periodSeconds: 1}}]}\n' | k apply -f - >/dev/null
k -n shop wait --for=condition=Ready --timeout=60s pod/echo >/dev/null
check "a list by the watch, and no LIST" c client-go lists
check "informers of any resource: added, updated, deleted, none twice and none lost" c client-go dynamic
check "objects' metadata alone, in pages" c client-go metadata
check "a controller's queue, with tries that fail" c client-go queue
check "who lets go is followed at once, and never two lead" c client-go election
check "a command by WebSocket: a megabyte there and back, an exit code, a terminal" c client-go exec-websocket
check "the same by SPDY" c client-go exec-spdy
check "a port by WebSocket, twenty connections" c client-go forward-websocket
check "such a port by SPDY" c client-go forward-spdy
check "what was applied is extracted, changed and applied again" c client-go apply
check "discovery in one answer, and short names" c client-go mapping
check "an event again and again is a series" c client-go events
