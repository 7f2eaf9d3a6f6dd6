"""What the Python client is asked to do, a function a check: checks.py RESULTS. The cluster is KUBECONFIG's; what is made stands in the namespace `python`."""

import asyncio
import json
import select
import socket
import sys
import tempfile
import threading
import time
import traceback
import urllib.request

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.aio import client as aio, config as aio_config, watch as aio_watch
from kubernetes.client.rest import ApiException
from kubernetes.informer import SharedInformer
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock
from kubernetes.stream import portforward, stream
from kubernetes.utils.retry import retry_on_conflict

NS = "python"
config.load_kube_config()
core, apps, batch, custom = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api(), client.CustomObjectsApi()


CHECKS = []


def check(what):
    """A promise, made in the order in which they stand here."""
    return lambda how: CHECKS.append((what, how)) or how


def eventually(what, within=60):
    """The first true answer of `what`."""
    until = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < until, f"not within {within} s"
        time.sleep(0.1)
    return found


def refused(code, reason, call, *args, **kwargs):
    """What the server says in its Status."""
    try:
        call(*args, **kwargs)
    except ApiException as e:
        said = json.loads(e.body)
        assert (e.status, said["reason"]) == (code, reason), (e.status, e.body)
        return said
    raise AssertionError(f"accepted, not refused with {code}")


def config_map(name, **data):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data=data)


def pod(name, *command, **spec):
    container = {"name": "main", "image": "example.local/web:1", "imagePullPolicy": "IfNotPresent"}
    if command:
        container["command"] = list(command)
    return {"metadata": {"name": name, "labels": {"app": name}}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [container], **spec}}


def running(name, *command):
    core.create_namespaced_pod(NS, pod(name, *command))
    return eventually(lambda: core.read_namespaced_pod(name, NS).status.phase == "Running")


@check("version, groups, a namespace and its account")
def version():
    assert client.VersionApi().get_code().major == "1"
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NS)))
    groups = {g.name for g in client.ApisApi().get_api_versions().groups}
    assert {"apps", "batch", "apiextensions.k8s.io", "metrics.k8s.io"} <= groups, groups
    eventually(lambda: [a for a in core.list_namespaced_service_account(NS).items if a.metadata.name == "default"])


@check("objects are made, patched, replaced by who has the newest, and deleted")
def objects():
    made = core.create_namespaced_config_map(NS, config_map("a", v="1"))
    assert refused(409, "AlreadyExists", core.create_namespaced_config_map, NS, config_map("a"))["details"] == {"name": "a", "kind": "configmaps"}
    core.patch_namespaced_config_map("a", NS, {"data": {"w": "2"}})
    core.patch_namespaced_config_map("a", NS, [{"op": "replace", "path": "/data/v", "value": "3"}])
    assert core.read_namespaced_config_map("a", NS).data == {"v": "3", "w": "2"}
    made.data = {"v": "old"}
    assert "the object has been modified" in refused(409, "Conflict", core.replace_namespaced_config_map, "a", NS, made)["message"]

    def again():
        now = core.read_namespaced_config_map("a", NS)
        now.data["v"] = "4"
        return core.replace_namespaced_config_map("a", NS, now)

    assert retry_on_conflict(again).data["v"] == "4"
    assert core.delete_namespaced_config_map("a", NS)["status"] == "Success"
    refused(404, "NotFound", core.read_namespaced_config_map, "a", NS)
    causes = refused(422, "Invalid", core.create_namespaced_config_map, NS, config_map("NO"))["details"]["causes"]
    assert [c["field"] for c in causes] == ["metadata.name"], causes


@check("a Status' text is kube-apiserver's")
def statuses():
    """A Status is text, too: its members stand as kube-apiserver writes them."""
    try:
        core.read_namespaced_config_map("none", NS)
    except ApiException as e:
        assert e.body == (
            '{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"configmaps \\"none\\" not found",'
            '"reason":"NotFound","details":{"name":"none","kind":"configmaps"},"code":404}\n'
        ), e.body


@check("lists in pages, by fields, and deleted as one")
def pages():
    for i in range(7):
        core.create_namespaced_config_map(NS, config_map(f"page-{i}", i=str(i)))
    names, token = [], None
    while token != "":
        page = core.list_namespaced_config_map(NS, limit=3, _continue=token)
        names += [m.metadata.name for m in page.items]
        token = page.metadata._continue or ""
    assert [n for n in names if n.startswith("page-")] == [f"page-{i}" for i in range(7)], names
    assert len(core.list_namespaced_config_map(NS, field_selector="metadata.name=page-3").items) == 1
    core.delete_collection_namespaced_config_map(NS, label_selector="!kept", field_selector="metadata.name!=kube-root-ca.crt")
    eventually(lambda: len(core.list_namespaced_config_map(NS).items) == 1)


@check("a watch from a revision")
def watches():
    start = core.list_namespaced_config_map(NS).metadata.resource_version
    core.create_namespaced_config_map(NS, config_map("w", v="1"))
    core.patch_namespaced_config_map("w", NS, {"data": {"v": "2"}})
    core.delete_namespaced_config_map("w", NS)
    watcher, seen = watch.Watch(), []
    for event in watcher.stream(core.list_namespaced_config_map, NS, resource_version=start, timeout_seconds=20):
        seen.append((event["type"], event["object"].metadata.name, event["object"].data["v"]))
        if event["type"] == "DELETED":
            watcher.stop()
    assert seen == [("ADDED", "w", "1"), ("MODIFIED", "w", "2"), ("DELETED", "w", "2")], seen
    began = time.monotonic()
    assert list(watch.Watch().stream(core.list_namespaced_secret, NS, timeout_seconds=1)) == []
    assert time.monotonic() - began < 10


@check("an informer")
def informers():
    seen, known = [], threading.Event()
    informer = SharedInformer(core.list_namespaced_config_map, namespace=NS, label_selector="informed=yes")
    for kind in ("ADDED", "MODIFIED", "DELETED"):
        informer.add_event_handler(kind, lambda o, kind=kind: (seen.append((kind, o.metadata.name)), known.set()))
    informer.start()
    try:
        body = config_map("informed", v="1")
        body.metadata.labels = {"informed": "yes"}
        core.create_namespaced_config_map(NS, body)
        eventually(lambda: ("ADDED", "informed") in seen)
        core.patch_namespaced_config_map("informed", NS, {"data": {"v": "2"}})
        eventually(lambda: informer.cache.get_by_key(f"{NS}/informed").data["v"] == "2")
        core.delete_namespaced_config_map("informed", NS)
        eventually(lambda: informer.cache.list() == [])
        assert [kind for kind, _ in seen] == ["ADDED", "MODIFIED", "DELETED"], seen
    finally:
        informer.stop()


@check("exec: output, input, exit codes, a closed input, a terminal")
def execs():
    running("shell", "sh", "-c", "echo started; while read -r line; do echo \"got $line\"; done; sleep 3600")
    run = lambda *command, **how: stream(core.connect_post_namespaced_pod_exec, "shell", NS, command=list(command), **{"stderr": True, "stdin": False, "stdout": True, "tty": False, **how})
    assert run("seq", "3").split() == ["1", "2", "3"]
    assert run("sh", "-c", "printf '\\000\\377'", binary=True) == b"\x00\xff"
    for command, code in ((["false"], 1), (["sh", "-c", "exit 7"], 7), (["true"], 0)):
        session = run(*command, _preload_content=False)
        session.run_forever(timeout=20)
        assert session.returncode == code, (command, session.returncode)
    session = run("sh", stdin=True, _preload_content=False)
    session.write_stdin("echo out; echo err >&2\n")
    assert (session.readline_stdout(timeout=20), session.readline_stderr(timeout=20)) == ("out", "err")
    session.write_stdin("exit 3\n")
    session.run_forever(timeout=20)
    assert session.returncode == 3
    session = run("cat", stdin=True, _preload_content=False)
    assert session.subprotocol == "v5.channel.k8s.io", session.subprotocol
    session.write_stdin("all of it\n")
    session.close_channel(0)
    session.run_forever(timeout=20)
    assert (session.read_stdout(), session.returncode, session.is_open()) == ("all of it\n", 0, False)
    session = run("sh", "-c", "tty; stty size", tty=True, stdin=True, _preload_content=False)
    session.write_channel(4, json.dumps({"Width": 91, "Height": 17}))
    session.run_forever(timeout=20)
    assert "/dev/pts/" in session.read_stdout()


@check("logs, followed")
def logs():
    assert "started" in eventually(lambda: core.read_namespaced_pod_log("shell", NS))
    running("counting", "sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.3; done; sleep 3600")
    watcher, lines = watch.Watch(), []
    for line in watcher.stream(core.read_namespaced_pod_log, "counting", NS, follow=True):
        lines.append(line)
        if len(lines) == 3:
            watcher.stop()
    assert lines == ["line 1", "line 2", "line 3"], lines
    assert core.read_namespaced_pod_log("counting", NS, tail_lines=1) == "line 3\n"


@check("ports forwarded, and one where nobody listens")
def forwards():
    running("ports", "sh", "-c", "nc -ll -p 1234 -e cat & nc -ll -p 1235 -e cat & exec httpd -f -p 8080 -h /www")
    eventually(lambda: ":04D3 " in stream(core.connect_get_namespaced_pod_exec, "ports", NS, command=["cat", "/proc/net/tcp", "/proc/net/tcp6"], stdout=True, stderr=False, stdin=False, tty=False))
    for _ in range(3):
        forward = portforward(core.connect_get_namespaced_pod_portforward, "ports", NS, ports="1234,1235,1236")
        sockets = [forward.socket(1234), forward.socket(1235)]
        for i, s in enumerate(sockets):
            s.setblocking(True)
            s.sendall(b"by port %d" % i)
        for i, s in enumerate(sockets):
            assert select.select([s], [], [], 20)[0] and s.recv(1024) == b"by port %d" % i
        closed = forward.socket(1236)
        closed.setblocking(True)
        assert closed.recv(1024) == b"" and "1236" in forward.error(1236), forward.error(1236)
        for s in sockets:
            s.close()
        closed.close()
        eventually(lambda: not forward.connected, 20)
        assert (forward.error(1234), forward.error(1235)) == (None, None)
    usual = socket.create_connection
    try:
        socket.create_connection = lambda address, *a, **k: portforward(core.connect_get_namespaced_pod_portforward, "ports", NS, ports=str(address[1])).socket(address[1])
        assert b"hello from the image" in urllib.request.urlopen("http://ports:8080/index.html", timeout=20).read()
    finally:
        socket.create_connection = usual


@check("proxies of pods and services")
def proxies():
    core.create_namespaced_service(NS, {"metadata": {"name": "ports"}, "spec": {"selector": {"app": "ports"}, "ports": [{"name": "web", "port": 80, "targetPort": 8080}]}})
    page = "hello from the image\n"
    assert core.connect_get_namespaced_pod_proxy_with_path("ports:8080", NS, "index.html") == page
    eventually(lambda: client.DiscoveryV1Api().list_namespaced_endpoint_slice(NS, label_selector="kubernetes.io/service-name=ports").items)
    assert eventually(lambda: core.connect_get_namespaced_service_proxy_with_path("ports:web", NS, "index.html")) == page


MANY = """
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: many}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: many}, data: {v: "1"}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: many}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: many}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: many}
subjects: [{kind: ServiceAccount, name: many, namespace: python}]
"""


@check("files of several objects, and what is told where they are there")
def files():
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(MANY)
        file.flush()
        utils.create_from_yaml(client.ApiClient(), file.name, namespace=NS)
        try:
            utils.create_from_yaml(client.ApiClient(), file.name, namespace=NS)
            raise AssertionError("made twice")
        except utils.FailToCreateError as e:
            assert [x.status for x in e.api_exceptions] == [409] * 4, e
            assert '"reason":"AlreadyExists","details":{"name":"many","group":"rbac.authorization.k8s.io","kind":"roles"},"code":409}' in str(e), e
        utils.create_from_yaml(client.ApiClient(), file.name, namespace=NS, apply=True)


@check("as a pod: by its account's token")
def inside():
    """As a pod sees the cluster: by a token of its own, with the rights of its account."""
    asked = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    token = core.create_namespaced_service_account_token("many", NS, asked).status.token
    address = client.Configuration.get_default_copy().host.removeprefix("https://")
    host, port = address.rsplit(":", 1)
    with tempfile.NamedTemporaryFile("w") as tokens, tempfile.NamedTemporaryFile("w") as authority:
        tokens.write(token)
        authority.write(core.read_namespaced_config_map("kube-root-ca.crt", NS).data["ca.crt"])
        tokens.flush(), authority.flush()
        found = client.Configuration()
        config.incluster_config.InClusterConfigLoader(
            token_filename=tokens.name, cert_filename=authority.name, environ={"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        ).load_and_set(found)
        its = client.CoreV1Api(client.ApiClient(found))
        assert its.read_namespaced_config_map("many", NS).data == {"v": "1"}
        said = refused(403, "Forbidden", its.list_namespaced_secret, NS)["message"]
        assert said == 'secrets is forbidden: User "system:serviceaccount:python:many" cannot list resource "secrets" in API group "" in the namespace "python"', said
        me = client.AuthenticationV1Api(client.ApiClient(found)).create_self_subject_review({})
        assert me.status.user_info.username == "system:serviceaccount:python:many"


@check("deployments, their scale, an eviction, a job")
def workloads():
    body = {"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": pod("web")}}
    apps.create_namespaced_deployment(NS, body)
    eventually(lambda: apps.read_namespaced_deployment("web", NS).status.ready_replicas == 2)
    apps.patch_namespaced_deployment_scale("web", NS, {"spec": {"replicas": 1}})
    eventually(lambda: (apps.read_namespaced_deployment("web", NS).status.replicas, len(core.list_namespaced_pod(NS, label_selector="app=web").items)) == (1, 1))
    assert apps.read_namespaced_deployment_scale("web", NS).spec.replicas == 1
    one = core.list_namespaced_pod(NS, label_selector="app=web").items[0].metadata.name
    core.create_namespaced_pod_eviction(one, NS, client.V1Eviction(metadata=client.V1ObjectMeta(name=one)))
    eventually(lambda: [p for p in core.list_namespaced_pod(NS, label_selector="app=web").items if p.metadata.name != one])
    job = {"metadata": {"name": "once"}, "spec": {"template": {"spec": {**pod("once", "true")["spec"], "restartPolicy": "Never"}}}}
    batch.create_namespaced_job(NS, job)
    eventually(lambda: batch.read_namespaced_job("once", NS).status.succeeded == 1)
    batch.delete_namespaced_job("once", NS, propagation_policy="Foreground")
    eventually(lambda: not core.list_namespaced_pod(NS, label_selector="job-name=once").items)
    apps.delete_namespaced_deployment("web", NS, body=client.V1DeleteOptions(propagation_policy="Foreground"))


@check("definitions, their objects, statuses and scale")
def definitions():
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 8}, "lines": {"type": "integer"}}}, "status": {"type": "object", "properties": {"lines": {"type": "integer"}}}}}
    client.ApiextensionsV1Api().create_custom_resource_definition({
        "metadata": {"name": "signs.python.example.com"},
        "spec": {"group": "python.example.com", "scope": "Namespaced", "names": {"plural": "signs", "singular": "sign", "kind": "Sign"}, "versions": [{
            "name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.lines", "statusReplicasPath": ".status.lines"}}}]},
    })
    of = ("python.example.com", "v1", NS, "signs")
    sign = {"apiVersion": "python.example.com/v1", "kind": "Sign", "metadata": {"name": "s"}, "spec": {"text": "stop", "lines": 2}}

    def made():
        try:
            return custom.create_namespaced_custom_object(*of, sign)
        except ApiException as e:
            assert e.status in (404, 503), e

    eventually(made)
    custom.patch_namespaced_custom_object_status(*of, "s", {"status": {"lines": 2}})
    custom.patch_namespaced_custom_object_scale(*of, "s", {"spec": {"replicas": 5}})
    now = custom.get_namespaced_custom_object(*of, "s")
    assert (now["spec"]["lines"], now["status"]["lines"]) == (5, 2), now
    refused(422, "Invalid", custom.patch_namespaced_custom_object, *of, "s", {"spec": {"text": "much too long"}})
    signs = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="python.example.com/v1", kind="Sign")
    assert [s.metadata.name for s in signs.get(namespace=NS).items] == ["s"]
    for event in signs.watch(namespace=NS, timeout=5):
        assert (event["type"], event["object"].spec.text) == ("ADDED", "stop")
        break
    signs.delete(name="s", namespace=NS)


@check("server-side apply, a conflict and who takes it")
def applies():
    maps = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="v1", kind="ConfigMap")
    body = lambda v: {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied", "namespace": NS}, "data": {"v": v}}
    maps.server_side_apply(body=body("1"), field_manager="one")
    try:
        maps.server_side_apply(body=body("2"), field_manager="two")
        raise AssertionError("two took it")
    except dynamic.exceptions.ConflictError as e:
        assert 'conflict with \\"one\\": .data.v' in e.body, e.body
    taken = maps.server_side_apply(body=body("2"), field_manager="two", force_conflicts=True)
    assert (taken.data.v, [m.manager for m in taken.metadata.managedFields]) == ("2", ["two"]), taken


@check("who leads, and who lost it")
def elections():
    led, lost = threading.Event(), threading.Event()
    lock = LeaseLock("elected", NS, "first")
    how = electionconfig.Config(lock, lease_duration=4, renew_deadline=3, retry_period=1, onstarted_leading=led.set, onstopped_leading=lost.set)
    threading.Thread(target=leaderelection.LeaderElection(how).run, daemon=True).start()
    assert led.wait(30)
    lease = client.CoordinationV1Api().read_namespaced_lease("elected", NS)
    assert lease.spec.holder_identity == "first"
    eventually(lambda: client.CoordinationV1Api().read_namespaced_lease("elected", NS).spec.renew_time > lease.spec.renew_time, 10)
    client.CoordinationV1Api().patch_namespaced_lease("elected", NS, {"spec": {"holderIdentity": "second"}})
    assert lost.wait(30), "who lost it leads on"


@check("figures of pods and nodes")
def metrics():
    def told():
        try:
            return utils.get_pods_metrics(client.ApiClient(), NS)["items"]
        except ApiException as e:
            assert e.status in (404, 503), e

    assert {c["name"] for p in eventually(told, 90) for c in p["containers"]} == {"main"}
    node = eventually(lambda: utils.get_nodes_metrics(client.ApiClient())["items"])[0]
    assert utils.parse_quantity(node["usage"]["memory"]) > 0


@check("many at once, asynchronously")
def asynchronous():
    async def all_of_it():
        await aio_config.load_kube_config()
        async with aio.ApiClient() as api:
            maps, seen = aio.CoreV1Api(api), []
            start = (await maps.list_namespaced_config_map(NS)).metadata.resource_version

            async def follow():
                async with aio_watch.Watch().stream(maps.list_namespaced_config_map, NS, resource_version=start, timeout_seconds=20) as events:
                    async for event in events:
                        seen.append((event["type"], event["object"].metadata.name))
                        if event["type"] == "DELETED":
                            return

            following = asyncio.create_task(follow())
            await asyncio.gather(*(maps.create_namespaced_config_map(NS, {"metadata": {"name": f"async-{i}"}}) for i in range(20)))
            await maps.delete_namespaced_config_map("async-7", NS)
            await asyncio.wait_for(following, 30)
            assert len({name for kind, name in seen if kind == "ADDED"}) == 20 and seen[-1] == ("DELETED", "async-7"), seen

    asyncio.run(all_of_it())


@check("its namespace goes with all of it")
def gone():
    core.delete_namespace(NS)
    eventually(lambda: NS not in [n.metadata.name for n in core.list_namespace().items], 90)
    client.ApiextensionsV1Api().delete_custom_resource_definition("signs.python.example.com")


def main(results):
    """All of them, as lib.sh's `check` tells them; the others are made when one fails."""
    failed = False
    for what, how in CHECKS:
        began = time.monotonic()
        try:
            how()
            passed = True
        except Exception:
            passed, failed = False, True
            traceback.print_exc(file=sys.stdout)
        with open(results, "a") as file:
            file.write(f"{'PASS' if passed else 'FAIL'}\tpython: {what}\n")
        print(time.strftime("%T"), "ok    " if passed else "FAILED", f"python: {what} ({(time.monotonic() - began) * 1000:.0f} ms)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
