#!/usr/bin/env python3
"""Asks an API server without a pause, and tells what failed and what was missed: load.py KUBECONFIG.json STOP-FILE

A request counts as failed however it fails; only on a connection that had served before it is tried once more, as every HTTP client does
with one that the server has closed meanwhile. Bounded: it ends after ten minutes at the latest.
"""
import base64, http.client, json, os, ssl, sys, tempfile, threading, time

config, stop = json.load(open(sys.argv[1])), sys.argv[2]
cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
host, port = cluster["server"].split("//")[1].rsplit(":", 1)
tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
with tempfile.NamedTemporaryFile() as pem:
    pem.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
    pem.flush()
    tls.load_cert_chain(pem.name)
# By when the last event has to have come, after the last write.
LAST = 30
UNTIL = [time.monotonic() + 600]
MAPS = "/api/v1/namespaces/default/configmaps"
counts, failures, lock = {}, [], threading.Lock()
slowest, relists, gaps, seen, written = [0.0], [0], [], set(), set()
# Who may still write.
writing = [2]


def going():
    if UNTIL[0] > time.monotonic() + LAST and os.path.exists(stop):
        UNTIL[0] = time.monotonic() + LAST
    return time.monotonic() < UNTIL[0] - LAST


def connect():
    return http.client.HTTPSConnection(host, int(port), timeout=60, context=tls)


def ask(what, connection, method, path, body=None, used=False):
    began = time.monotonic()
    try:
        headers = {"Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json"}
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not used:
                raise
            connection.close()
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise OSError(f"{answer.status} {content[:200]}")
        with lock:
            counts[what] = counts.get(what, 0) + 1
            slowest[0] = max(slowest[0], time.monotonic() - began)
        return json.loads(content)
    except Exception as error:
        with lock:
            failures.append(f"{what}: {type(error).__name__}: {error}")


def reads(n):
    # Each on a connection of its own: none may be refused.
    while going():
        connection = connect()
        ask("get on a new connection", connection, "GET", "/api/v1/namespaces/default")
        connection.close()


def lists(n):
    connection, used = connect(), False
    while going():
        ask("list on a kept connection", connection, "GET", "/api/v1/pods?limit=50", used=used)
        used = True
        time.sleep(0.05)


def writes(n):
    at = 0
    while going():
        at += 1
        name = f"load-{os.getpid()}-{n}-{at}"
        body = json.dumps({"metadata": {"name": name, "labels": {"load": "yes"}}, "data": {"at": str(at)}})
        connection = connect()
        if ask("create", connection, "POST", MAPS, body):
            with lock:
                written.add(name)
        connection.close()
        time.sleep(0.02)
    with lock:
        writing[0] -= 1


def done():
    with lock:
        return not going() and not writing[0] and not written - seen


def watch(n):
    version, ended = None, None
    while not done():
        if time.monotonic() > UNTIL[0]:
            return
        connection = connect()
        connection.timeout = 5
        try:
            if version is None:
                listed = ask("list for the watch", connection, "GET", MAPS + "?labelSelector=load")
                version = listed["metadata"]["resourceVersion"]
                seen.update(i["metadata"]["name"] for i in listed["items"])
            connection.request("GET", f"{MAPS}?watch=true&labelSelector=load&allowWatchBookmarks=true&resourceVersion={version}")
            answer = connection.getresponse()
            if answer.status != 200:
                raise OSError(f"{answer.status} {answer.read(200)}")
            if ended:
                gaps.append(time.monotonic() - ended)
                ended = None
            while line := answer.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    # What a client does then, too: it begins anew with a list.
                    version, relists[0] = None, relists[0] + 1
                    break
                version = event["object"]["metadata"]["resourceVersion"]
                seen.add(event["object"]["metadata"]["name"])
                if done():
                    return
        except TimeoutError:
            pass
        except Exception as error:
            with lock:
                failures.append(f"watch: {type(error).__name__}: {error}")
            time.sleep(0.1)
        finally:
            connection.close()
        ended = ended or time.monotonic()


threads = [threading.Thread(target=t, args=(n,)) for n, t in enumerate([reads, reads, lists, writes, writes, watch])]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"requests": sum(counts.values()), "by sort": counts, "failed": len(failures), "first failures": failures[:10],
                  "slowest seconds": round(slowest[0], 2), "longest gap of the watch": round(max(gaps, default=0), 2),
                  "lists made anew for the watch": relists[0], "written": len(written), "missed by the watch": len(written - seen)}))
