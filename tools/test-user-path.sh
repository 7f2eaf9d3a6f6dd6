#!/bin/bash
# test-user-path.sh: what a new user does with kubectl, on the cluster of conformance/cluster.sh.
set -euo pipefail   # no `grep -q` in pipes: it ends at the first match, and who still writes then fails the pipe
cd "$(dirname "$0")/.."; . conformance/lib/env.sh
KEELSON=${KEELSON:-$PWD/target/release/keelson}
k() { inns $BIN/kubectl --kubeconfig $KUBECONFIG_FILE "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
ok() { echo "ok  $*"; }
inns $KEELSON doctor --security --data-dir $STATE/data --kubeconfig $KUBECONFIG_FILE >$STATE/doctor.log && ok "doctor --security: $(tail -1 $STATE/doctor.log)" || fail "doctor --security: $(grep -E '^(FAIL|unknown)' $STATE/doctor.log || cat $STATE/doctor.log)"
mkdir -p $STATE/images; examples/image.sh $STATE/images >/dev/null
inns $KEELSON image --data-dir $STATE/data import $STATE/images/web.tar >/dev/null && ok "image imported" || fail "image imported"
k get nodes | grep ' Ready ' >/dev/null && ok "node Ready" || fail "node Ready"
k apply -f examples/web.yaml >/dev/null && ok "apply" || fail "apply"
k -n web rollout status deployment/web --timeout=120s >/dev/null && ok "rollout" || fail "rollout"
k -n web wait --for=condition=complete job/check --timeout=120s >/dev/null && ok "job complete" || fail "job complete"
IP=$(k -n web get service web -o jsonpath='{.spec.clusterIP}')
want='hello from keelson'
[ "$(inns curl -s -m 5 http://$IP/)" = "$want" ] && ok "ClusterIP answers" || fail "ClusterIP answers"
[ "$(inns curl -s -m 5 http://$NODE_IP:30080/)" = "$want" ] && ok "NodePort answers" || fail "NodePort answers"
POD=$(k -n web get pods -l app=web -o jsonpath='{.items[0].metadata.name}')
[ "$(k -n web exec $POD -- wget -qO- http://web.web.svc.cluster.local/)" = "$want" ] && ok "DNS name from a pod, and exec" || fail "DNS name from a pod, and exec"
[ "$(k -n web exec $POD -- sh -c 'echo $TOKEN')" = not-much-of-a-secret ] && ok "Secret in the environment" || fail "Secret in the environment"
set +e; k -n web exec $POD -- sh -c 'exit 7' >/dev/null 2>&1; [ $? = 7 ] && ok "exit code of exec" || fail "exit code of exec"; set -e
k -n web scale deployment/web --replicas=5 >/dev/null; k -n web rollout status deployment/web --timeout=60s >/dev/null && ok "scale up" || fail "scale up"
k -n web scale deployment/web --replicas=3 >/dev/null; k -n web rollout status deployment/web --timeout=60s >/dev/null && ok "scale down" || fail "scale down"
k -n web set env deployment/web GENERATION=2 >/dev/null; k -n web rollout status deployment/web --timeout=120s >/dev/null && ok "rolling update" || fail "rolling update"
k -n web rollout undo deployment/web >/dev/null; k -n web rollout status deployment/web --timeout=120s >/dev/null && ok "rollback" || fail "rollback"
POD=$(k -n web get pods -l app=web --field-selector=status.phase=Running --sort-by=.metadata.creationTimestamp -o jsonpath='{.items[-1:].metadata.name}')
k -n web logs job/check | grep "$want" >/dev/null && ok "logs" || fail "logs"
timeout 5 $BIN/kubectl version --client >/dev/null
echo copied >$STATE/cp.txt; k -n web cp $STATE/cp.txt $POD:/scratch/cp.txt >/dev/null; k -n web cp $POD:/scratch/cp.txt $STATE/cp.back >/dev/null 2>&1
cmp -s $STATE/cp.txt $STATE/cp.back && ok "cp there and back" || fail "cp"
k -n web describe pod $POD | grep 'Started container\|Container started' >/dev/null && ok "describe with events" || fail "describe with events"
k -n web get events --field-selector involvedObject.name=$POD -o name | grep . >/dev/null && ok "events" || fail "events"
k explain deployment.spec.strategy | grep -i 'FIELD: strategy' >/dev/null && ok "explain" || fail "explain"
nsenter --net=/run/netns/$CLUSTER $BIN/kubectl --kubeconfig $KUBECONFIG_FILE -n web port-forward $POD 18080:8080 >$STATE/pf.log 2>&1 & PF=$!
for i in $(seq 50); do grep -q Forwarding $STATE/pf.log && break; sleep 0.1; done
[ "$(inns curl -s -m 5 http://127.0.0.1:18080/)" = "$want" ] && ok "port-forward" || fail "port-forward: $(cat $STATE/pf.log)"
kill $PF; wait $PF 2>/dev/null || true
k -n web exec $POD -- timeout 60 sleep 87654321 >/dev/null 2>&1 & for i in $(seq 50); do IN=$(pgrep -x -f 'sleep 87654321' | tail -1) && break; sleep 0.1; done
nsenter --net=/proc/$IN/ns/net timeout 60 python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 5353))
for _ in range(10): what, who = s.recvfrom(65536); s.sendto(what, who)' & ECHO=$!
inns timeout 60 $KEELSON port-forward --kubeconfig $KUBECONFIG_FILE -n web service/web 18080:80 >$STATE/pf.log 2>&1 & PF=$!
inns timeout 60 $KEELSON port-forward --kubeconfig $KUBECONFIG_FILE -n web $POD 15353:5353/udp 15354:5354/udp >$STATE/udp.log 2>&1 & UDP=$!
for i in $(seq 50); do grep -q Forwarding $STATE/pf.log && grep -q 15354 $STATE/udp.log && break; sleep 0.1; done
[ "$(inns curl -s -m 5 http://127.0.0.1:18080/)" = "$want" ] && ok "our port-forward to a service" || fail "our port-forward: $(cat $STATE/pf.log)"
said() { inns python3 -c 'import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.sendto(b"ping", ("127.0.0.1", int(sys.argv[1]))); print(s.recv(99).decode())' "$1"; }
for i in $(seq 5); do [ "$(said 15353 2>/dev/null)" != ping ] || break; done   # who answers may have begun later
[ "$(said 15353)" = ping ] && ok "datagrams to a pod and back" || fail "datagrams: $(cat $STATE/udp.log)"
said 15354 >/dev/null 2>&1 || true; grep -q '5354/udp.*refused' $STATE/udp.log && ok "that nobody listens is told" || fail "nobody listens: $(cat $STATE/udp.log)"
k -n web delete pod -l app=web >/dev/null; k -n web rollout status deployment/web --timeout=60s >/dev/null
[ "$(inns curl -s -m 5 http://127.0.0.1:18080/)" = "$want" ] && ok "it goes on with another pod" || fail "it ended with its pod: $(cat $STATE/pf.log)"
kill $PF $UDP $ECHO 2>/dev/null || true; wait $PF $UDP $ECHO 2>/dev/null || true
POD=$(k -n web get pods -l app=web --field-selector=status.phase=Running --sort-by=.metadata.creationTimestamp -o jsonpath='{.items[-1:].metadata.name}')
(timeout 20 nsenter --net=/run/netns/$CLUSTER $BIN/kubectl --kubeconfig $KUBECONFIG_FILE -n web logs -f $POD >$STATE/follow.log 2>&1 & echo $! >$STATE/follow.pid; wait) &
sleep 1; inns curl -s http://$IP/ >/dev/null; for i in $(seq 50); do [ -s $STATE/follow.log ] && break; inns curl -s http://$IP/ >/dev/null; sleep 0.2; done
[ -s $STATE/follow.log ] && ok "logs -f" || fail "logs -f"
kill "$(cat $STATE/follow.pid)" 2>/dev/null || true

echo "--- a user is revoked while he watches, has a shell and a port"
add() { inns $KEELSON user add ana --role cluster-admin --kubeconfig $KUBECONFIG_FILE -o $STATE/ana.kubeconfig; }
ana() { inns $BIN/kubectl --kubeconfig $STATE/ana.kubeconfig "$@"; }
part() { sed -n "s/^ *$1: //p" $STATE/ana.kubeconfig | base64 -d >$STATE/ana.$2; chmod 600 $STATE/ana.$2; }
kubelet() { inns curl -sk -m 5 -o /dev/null -w '%{http_code}' --cert $STATE/ana.crt --key $STATE/ana.key https://$NODE_IP:10250/pods || true; }
add; part client-certificate-data crt; part client-key-data key
ana get nodes >/dev/null && [ "$(kubelet)" = 200 ] && ok "user add; the API and the kubelet let the user in" || fail "user add: kubelet $(kubelet)"
held=()
for what in "get pods -A --watch" "-n web exec $POD -- sleep 300" "-n web logs -f $POD" "-n web port-forward $POD 18081:8080"; do
  nsenter --net=/run/netns/$CLUSTER timeout 60 $BIN/kubectl --kubeconfig $STATE/ana.kubeconfig $what >>$STATE/ana.log 2>&1 & held+=($!)
done
for i in $(seq 100); do grep -a Forwarding $STATE/ana.log >/dev/null && break; sleep 0.1; done; sleep 1
inns curl -s -m 5 http://127.0.0.1:18081/ >/dev/null && ok "they are there" || fail "they aren't there: $(cat $STATE/ana.log)"
inns curl -sN -m 60 http://127.0.0.1:18081/ --limit-rate 1 >/dev/null 2>&1 & flow=$!
inns $KEELSON user revoke ana --kubeconfig $KUBECONFIG_FILE --reason 'laptop stolen' >/dev/null; revoked=$(date +%s%N)
[ "$(kubelet)" = 401 ] || { sleep 1; [ "$(kubelet)" = 401 ]; } && ok "the kubelet refuses" || fail "the kubelet answers $(kubelet)"
# kubectl's port-forward waits for its next connection: it ends with that.
inns curl -s -m 5 http://127.0.0.1:18081/ >/dev/null 2>&1 && fail "the port still leads to the pod"; kill $flow 2>/dev/null || true
for p in "${held[@]:0:3}"; do for i in $(seq 50); do kill -0 $p 2>/dev/null || break; sleep 0.1; done; kill -0 $p 2>/dev/null && fail "one goes on: $(tail -3 $STATE/ana.log)"; done
ok "watch, shell, log and port ended $(( ($(date +%s%N) - revoked) / 1000000 )) ms after it"
kill "${held[3]}" 2>/dev/null || true
ana get nodes >/dev/null 2>$STATE/ana.err && fail "a revoked user is let in"; grep -i 'unauthorized\|logged in' $STATE/ana.err >/dev/null && ok "401" || fail "$(cat $STATE/ana.err)"
inns $KEELSON user ls --kubeconfig $KUBECONFIG_FILE | grep '^ana .*revoked at' >/dev/null && ok "user ls tells it" || fail "user ls"
inns $KEELSON user revoke kubernetes-admin --kubeconfig $KUBECONFIG_FILE >/dev/null 2>&1 && fail "the administrator revoked himself"; ok "who would lock himself out is asked to mean it"
add && ana get nodes >/dev/null && ok "added again, the user is let in" || fail "added again"
inns $KEELSON certificate revoke $STATE/ana.kubeconfig --kubeconfig $KUBECONFIG_FILE >/dev/null; sleep 1
ana get nodes >/dev/null 2>&1 && fail "a revoked certificate is let in"; ok "and its certificate alone is revoked"
inns $KEELSON user rm ana --kubeconfig $KUBECONFIG_FILE >/dev/null

echo "--- kill -9 of the server while the workload serves"
pids() { for c in $(k -n web get pods -l app=web -o jsonpath='{range .items[*]}{.metadata.name}{"\n"}{end}' | sort); do echo "$c $(k -n web get pod $c -o jsonpath='{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}')"; done; }
# The server in a pod forks for each request: those count for nothing.
procs() { for p in $(pgrep -f 'httpd -f -v -p 8080'); do up=$(awk '/^PPid:/{print $2}' /proc/$p/status 2>/dev/null) || continue; grep -aqs 'httpd' /proc/$up/cmdline || echo $p; done | sort | tr '\n' ' '; }
before=$(pids); procs_before=$(procs)
( n=0; bad=0; while [ ! -e $STATE/storm.stop ] && [ $n -lt 3000 ]; do n=$((n+1)); inns curl -sS -m 2 -o /dev/null -w '%{time_connect} %{time_total}\n' http://$IP/ >$STATE/storm.last 2>&1 || { bad=$((bad+1)); date +%T.%N; cat $STATE/storm.last; } >>$STATE/storm.err; done; echo "$n $bad" >$STATE/storm ) & STORM=$!
sleep 1; kill -9 "$(cat $STATE/server.pid)"; sleep 2
conformance/cluster.sh start
sleep 2; touch $STATE/storm.stop; wait $STORM; read -r n bad <$STATE/storm; rm -f $STATE/storm.stop
[ "$n" -gt 50 ] || fail "the load made only $n requests"
[ "$bad" = 0 ] && ok "$n requests, none failed" || { cat $STATE/storm.err; k -n web get pods,endpointslices,events -o wide; fail "$bad of $n requests failed"; }
[ "$procs_before" = "$(procs)" ] && ok "the pods' processes are the same" || fail "processes changed: $procs_before / $(procs)"
[ "$before" = "$(pids)" ] && ok "containers and restart counts are the same" || fail "containers changed: $before / $(pids)"
k -n web scale deployment/web --replicas=4 >/dev/null; k -n web rollout status deployment/web --timeout=60s >/dev/null && ok "work goes on after the restart" || fail "work goes on after the restart"
echo "--- a server that is started anew while a webhook that is nowhere refuses everything"
k delete clusterrole system:keelson:ingress >/dev/null
k create -f - >/dev/null <<'YAML'
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: nowhere}
webhooks:
- name: nowhere.example.com
  failurePolicy: Fail
  sideEffects: None
  timeoutSeconds: 1
  admissionReviewVersions: [v1]
  clientConfig: {url: "https://127.0.0.1:1/"}
  rules: [{apiGroups: ["*"], apiVersions: ["*"], operations: ["*"], resources: ["*"]}]
YAML
conformance/cluster.sh stop; conformance/cluster.sh start
k get clusterrole system:keelson:ingress >/dev/null 2>&1 && fail "the webhook isn't asked"; ok "it runs, with what could be written"
k delete validatingwebhookconfiguration nowhere >/dev/null
for i in $(seq 400); do k get clusterrole system:keelson:ingress >/dev/null 2>&1 && break; sleep 0.1; done
k get clusterrole system:keelson:ingress >/dev/null && ok "and with the rest when nobody refuses it any more" || fail "what was refused is not tried again"
k delete -f examples/web.yaml --timeout=120s >/dev/null && ok "delete" || fail "delete"
k get namespace web >/dev/null 2>&1 && fail "namespace web is still there"; ok "namespace gone"
