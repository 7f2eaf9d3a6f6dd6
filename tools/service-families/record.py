#!/usr/bin/env python3
"""What kube-apiserver makes of the families, policies and addresses of services, on clusters of one family and of both:
crates/request/apiserver/tests/service_families.jsonl.gz, which our server is held to.
usage: record.py BIN-DIRECTORY | gzip -9n >FILE  (etcd and kube-apiserver; they listen on 127.0.0.1)"""
import itertools, json, os, re, shutil, ssl, subprocess, sys, tempfile, time, urllib.error, urllib.request

CLUSTERS = {"4": "10.96.0.0/16", "6": "fd00:96::/112", "46": "10.96.0.0/16,fd00:96::/112", "64": "fd00:96::/112,10.96.0.0/16"}
# Asked for by number, from the part of a range of which nobody is given one.
FOUR, SIX, OTHER = "10.96.0.44", "fd00:96::44", "10.96.0.45"
POLICIES = [None, "SingleStack", "PreferDualStack", "RequireDualStack"]
FAMILIES = [None, ["IPv4"], ["IPv6"], ["IPv4", "IPv6"], ["IPv6", "IPv4"]]
ADDRESSES = [None, ["None"], [FOUR], [SIX], [FOUR, SIX], [SIX, FOUR]]


def spec(policy=None, families=None, ips=None, selector=True):
    s = {"ports": [{"port": 80}]}
    if selector: s["selector"] = {"a": "b"}
    if policy: s["ipFamilyPolicy"] = policy
    if families: s["ipFamilies"] = families
    if ips: s["clusterIPs"], s["clusterIP"] = ips, ips[0]
    return s


def cases(cluster):
    for policy, families, ips in itertools.product(POLICIES, FAMILIES, ADDRESSES):
        yield [spec(policy, families, ips)]
        if ips == ["None"]: yield [spec(policy, families, ips, selector=False)]
    if cluster == "6": return
    one, two = (["IPv6", "IPv4"] if cluster == "64" else ["IPv4", "IPv6"]), [FOUR, SIX]
    begins = [spec("SingleStack"), spec("SingleStack", ["IPv6"]), spec("PreferDualStack"), spec("RequireDualStack", ["IPv6", "IPv4"]),
              spec("PreferDualStack", ips=two), spec("SingleStack", ips=["None"]), spec("RequireDualStack", ips=["None"]),
              spec(ips=["None"], selector=False), {"type": "ExternalName", "externalName": "example.com"}]
    changes = [{"ipFamilyPolicy": p} for p in POLICIES] + [{"ipFamilies": f} for f in FAMILIES]
    changes += [{"ipFamilyPolicy": p, "ipFamilies": f} for p in POLICIES for f in FAMILIES[1:]]
    changes += [{"ipFamilyPolicy": p, "clusterIPs": ips, "clusterIP": ips[0]} for p in POLICIES[1:] for ips in (two, [FOUR], [SIX], [OTHER, SIX], ["None"])]
    changes += [{"clusterIPs": ["$first"]}, {"ipFamilyPolicy": "SingleStack", "clusterIPs": ["$first"]},
                {"ipFamilyPolicy": "SingleStack", "ipFamilies": one[:1], "clusterIPs": ["$first"]},
                {"clusterIPs": ["$second", "$first"], "clusterIP": "$second"}, {"clusterIP": "", "clusterIPs": None}, {"clusterIPs": None},
                {"ipFamilyPolicy": "PreferDualStack", "clusterIPs": ["$first", SIX]}, {"selector": {"a": "c"}}, {"type": "NodePort"},
                {"type": "ExternalName", "externalName": "example.com"},
                {"type": "ExternalName", "externalName": "example.com", "clusterIP": None, "clusterIPs": None, "ipFamilies": None, "ipFamilyPolicy": None},
                {"type": "ClusterIP", "externalName": None, "ports": [{"port": 80}]},
                {"type": "ClusterIP", "externalName": None, "ports": [{"port": 80}], "ipFamilyPolicy": "RequireDualStack"}]
    for begin, change in itertools.product(begins, changes): yield [begin, change]
    for policy in POLICIES[1:]:
        for families in FAMILIES[1:]: yield [spec(policy, families), {"ipFamilyPolicy": "SingleStack"}, {"ipFamilyPolicy": "RequireDualStack"}]


class Peer:
    def __init__(self, bin, ranges):
        self.dir, self.all = tempfile.mkdtemp(prefix="families-"), []
        run = lambda *a: subprocess.run(a, cwd=self.dir, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "crt", "-days", "2", "-subj", "/CN=peer", "-addext", "subjectAltName=IP:127.0.0.1")
        run("openssl", "genrsa", "-out", "sa.key", "2048"); run("openssl", "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
        with open(f"{self.dir}/tokens", "w") as f: f.write('recorder,tester,tester,"system:masters"\n')
        start = lambda *a: self.all.append(subprocess.Popen(a, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(f"{self.dir}/log", "ab")))
        start(f"{bin}/etcd", "--data-dir", "etcd", "--listen-client-urls", "http://127.0.0.1:23790", "--advertise-client-urls", "http://127.0.0.1:23790", "--listen-peer-urls",
              "http://127.0.0.1:23800", "--initial-advertise-peer-urls", "http://127.0.0.1:23800", "--initial-cluster", "default=http://127.0.0.1:23800", "--unsafe-no-fsync")
        start(f"{bin}/kube-apiserver", "--etcd-servers=http://127.0.0.1:23790", "--bind-address=127.0.0.1", "--secure-port=64430", "--advertise-address=" + ("2001:db8::1" if ranges.startswith("fd") else "192.0.2.1"),
              f"--service-cluster-ip-range={ranges}", "--endpoint-reconciler-type=none", "--authorization-mode=RBAC", "--token-auth-file=tokens", "--tls-cert-file=crt",
              "--tls-private-key-file=key", "--service-account-issuer=https://peer", "--service-account-key-file=sa.pub", "--service-account-signing-key-file=sa.key")
        self.tls = ssl._create_unverified_context()
        for _ in range(600):
            if any(p.poll() is not None for p in self.all): sys.exit(open(f"{self.dir}/log").read()[-2000:])
            try:
                if self.call("GET", "/readyz", raw=True)[0] == 200: break
            except OSError: pass
            time.sleep(0.2)

    def call(self, method, path, body=None, kind="application/json", raw=False):
        data = None if body is None else json.dumps(body).encode()
        r = urllib.request.Request("https://127.0.0.1:64430" + path, data, {"Authorization": "Bearer recorder", "Content-Type": kind}, method=method)
        try:
            with urllib.request.urlopen(r, context=self.tls, timeout=30) as a: return a.status, (a.read() if raw else json.loads(a.read()))
        except urllib.error.HTTPError as e:
            text = e.read(); return e.code, (text if raw else json.loads(text))

    def stop(self):
        for p in reversed(self.all): p.terminate(); p.wait(30)
        shutil.rmtree(self.dir)


def hidden(text):
    """Addresses that the server chose, by family only."""
    chosen = lambda kind: lambda m: m.group(0) if m.group(0) in (FOUR, SIX, OTHER) else kind
    return re.sub(r"10\.96\.\d+\.\d+(?!/)", chosen("four"), re.sub(r"fd00:96::[0-9a-f]*[0-9a-f](?![:/])", chosen("six"), text))


def outcome(code, answer):
    if code >= 300: return hidden(answer.get("message", ""))
    s = answer["spec"]
    return hidden(" ".join([s.get("ipFamilyPolicy", "-"), ",".join(s.get("ipFamilies", [])) or "-", s.get("clusterIP", "-"), ",".join(s.get("clusterIPs", [])) or "-"]))


def filled(change, spec):
    ips = (spec or {}).get("clusterIPs", []) + ["", ""]
    return json.loads(json.dumps(change).replace("$first", ips[0]).replace("$second", ips[1]))


def main():
    services = "/api/v1/namespaces/default/services"
    for cluster, ranges in CLUSTERS.items():
        peer = Peer(sys.argv[1], ranges)
        try:
            for steps in cases(cluster):
                seen, spec_now = [], None
                for n, step in enumerate(steps):
                    if n == 0:
                        code, answer = peer.call("POST", services, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": step})
                    else:
                        code, answer = peer.call("PATCH", f"{services}/s", {"spec": filled(step, spec_now)}, "application/merge-patch+json")
                    seen.append(f"{code} {outcome(code, answer)}")
                    if code < 300: spec_now = answer["spec"]
                    elif n == 0: break
                if spec_now is not None: peer.call("DELETE", f"{services}/s")
                print(json.dumps({"on": cluster, "do": steps, "seen": seen}, separators=(",", ":")))
        finally:
            peer.stop()


main()
