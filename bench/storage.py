"""What bench/storage.sh measures. Speaks to the API itself: starting kubectl takes longer than what is measured."""
import base64, http.client, json, os, re, select, shutil, signal, ssl, statistics, subprocess, tempfile, time

CLAIMS, PODS = int(os.environ.get("CLAIMS", 50)), int(os.environ.get("PODS", 100))
TIMES, EACH = int(os.environ.get("TIMES", 7)), int(os.environ.get("SECONDS_EACH", 8))
STATE, PG = os.environ["STATE"], os.environ["PG"]


def connect():
    text = open(os.environ["KUBECONFIG_FILE"]).read()
    part = lambda name: base64.b64decode(re.search(rf"{name}: *(\S+)", text)[1])
    context = ssl.create_default_context(cadata=part("certificate-authority-data").decode())
    with tempfile.NamedTemporaryFile() as both:
        both.write(part("client-certificate-data") + part("client-key-data"))
        both.flush()
        context.load_cert_chain(both.name)
    host, port = re.search(r"https://([^:/]+):(\d+)", text).groups()
    return http.client.HTTPSConnection(host, int(port), context=context)


API = connect()


def ask(method, path, body=None):
    API.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
    answer = API.getresponse()
    said = json.loads(answer.read())
    assert answer.status < 300, said
    return said


def claim(name, size):
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}}


def pod(name):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "example.local/web:1", "imagePullPolicy": "Never", "command": ["sleep", "1000000"],
                        "volumeMounts": [{"name": "d", "mountPath": "/data"}]}],
        "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": name}}]}}


CORE = "/api/v1/namespaces/default"


def both(name, size):
    ask("POST", f"{CORE}/persistentvolumeclaims", claim(name, size))
    return ask("POST", f"{CORE}/pods", pod(name))["metadata"]["uid"]


def gone():
    ask("DELETE", f"{CORE}/pods")
    ask("DELETE", f"{CORE}/persistentvolumeclaims")
    while ask("GET", "/api/v1/persistentvolumes")["items"]:
        time.sleep(0.1)


def mounted(uid, until):
    """Waits for the mount in the pod's directory: the kernel tells when the list of mounts has changed."""
    with open("/proc/self/mounts") as mounts:
        notices = select.poll()
        notices.register(mounts, select.POLLERR | select.POLLPRI)
        while time.monotonic() < until:
            mounts.seek(0)
            for line in mounts:
                if uid in line and "/volumes/kubernetes.io~csi/" in line:
                    return line.split()[1]
            notices.poll(1000)
    raise SystemExit(f"no mount for pod {uid}")


def ready():
    return sum(any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", []))
               for p in ask("GET", f"{CORE}/pods")["items"])


def claims():
    took = []
    for n in range(CLAIMS):
        began = time.monotonic()
        mounted(both(f"one-{n}", "64Mi"), began + 30)
        took.append((time.monotonic() - began) * 1000)
        time.sleep(0.2)
    took.sort()
    print(f"claim and pod created until the volume is mounted for the pod: p50 {statistics.median(took):.0f} ms, p95 {took[len(took) * 95 // 100]:.0f} ms, of {CLAIMS}", flush=True)
    gone()


def pods():
    began = time.monotonic()
    for n in range(PODS):
        both(f"many-{n}", "16Mi")
    asked = time.monotonic() - began
    while ready() < PODS:
        assert time.monotonic() - began < 120, f"{ready()} of {PODS} are Ready"
        time.sleep(0.05)
    print(f"{PODS} pods with a volume each: all Ready {time.monotonic() - began:.1f} s after the first was asked for (asking took {asked:.1f} s)", flush=True)
    gone()


def in_turns(what, plain, volume, times, run):
    pairs = [(run(plain), run(volume)) if n % 2 else tuple(reversed((run(volume), run(plain)))) for n in range(times)]
    ratios = [b / a * 100 for a, b in pairs]
    print(f"{what}: plain {statistics.median(a for a, _ in pairs):.0f}/s, volume {statistics.median(b for _, b in pairs):.0f}/s; volume of plain, median of {times} pairs: "
          f"{statistics.median(ratios):.1f} % (from {min(ratios):.0f} to {max(ratios):.0f})", flush=True)


def fio(directory, *options, time=True):
    bounds = [f"--runtime={EACH}", "--time_based"] if time else []
    said = subprocess.run(["fio", "--name=x", f"--directory={directory}", "--output-format=json", "--unlink=1", *bounds, *options],
                          capture_output=True, text=True, check=True).stdout
    job = json.loads(said)["jobs"][0]
    return max(job["write"]["iops"], job["read"]["iops"])


def pgbench(directory):
    """Transactions a second of pgbench's own mixture, over a database made in this directory."""
    # Mounts that nobody else sees end with who has them: whoever is killed leaves no /dev below a directory that is removed one day.
    enter = 'mount --bind "$1" "$2/data" && mount --bind /dev "$2/dev" && shift && exec chroot --userspec=999:999 "$@"'
    inside = lambda *command: ["unshare", "--mount", "sh", "-c", enter, "sh", directory, os.path.join(PG, "root"), *command]
    try:
        subprocess.run(["chown", "999:999", directory], check=True)
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(inside("initdb", "-D", "/data/bench", "--auth=trust", "--no-locale", "--username=postgres"), **quiet)
        server = subprocess.Popen(inside("postgres", "-D", "/data/bench", "-k", "/tmp", "-c", "listen_addresses=", "-c", "jit=off"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while subprocess.run(inside("pg_isready", "-q", "-h", "/tmp")).returncode:
                assert server.poll() is None, "PostgreSQL has ended"
                time.sleep(0.1)
            subprocess.run(inside("pgbench", "-h", "/tmp", "-U", "postgres", "-i", "-q", "-s", "5", "postgres"), **quiet)
            said = subprocess.run(inside("pgbench", "-h", "/tmp", "-U", "postgres", "-c", "4", "-T", str(EACH), "postgres"), capture_output=True, text=True, check=True).stdout
            return float(re.search(r"tps = ([0-9.]+)", said)[1])
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    finally:
        shutil.rmtree(os.path.join(directory, "bench"), ignore_errors=True)


def overhead():
    """The same on the disk's own file system and in a volume on it, in turns: a machine that others use is slower now and faster then for both."""
    volume = mounted(both("speed", "2Gi"), time.monotonic() + 60)
    plain = os.path.join(STATE, "plain")
    os.makedirs(plain, exist_ok=True)
    in_turns("fio, 1 MiB written one after the other past the cache, into room that nothing was in yet", plain, volume, 1,
             lambda d: fio(d, "--rw=write", "--bs=1m", "--size=1g", "--ioengine=psync", "--direct=1", time=False))
    # What is reserved is zeroed as it is first written to, once in a volume's life: from here on all of it has been.
    subprocess.run(["dd", "if=/dev/zero", f"of={volume}/fill", "bs=1M", "oflag=direct"], stderr=subprocess.DEVNULL)
    os.remove(f"{volume}/fill")
    os.sync()
    for what, run in {
        "fio, 4 KiB written at random, fdatasync after each": lambda d: fio(d, "--rw=randwrite", "--bs=4k", "--size=256m", "--ioengine=psync", "--fdatasync=1"),
        "fio, 4 KiB written at random past the cache, 16 at a time": lambda d: fio(d, "--rw=randwrite", "--bs=4k", "--size=256m", "--ioengine=libaio", "--iodepth=16", "--direct=1"),
        "fio, 1 MiB read one after the other past the cache": lambda d: fio(d, "--rw=read", "--bs=1m", "--size=512m", "--ioengine=psync", "--direct=1"),
        "fio, 1 MiB written one after the other past the cache": lambda d: fio(d, "--rw=write", "--bs=1m", "--size=512m", "--ioengine=psync", "--direct=1"),
        "pgbench, four clients": pgbench,
    }.items():
        in_turns(what, plain, volume, TIMES, run)
    shutil.rmtree(plain)
    API.close()   # nobody has spoken on it for minutes: the next request makes another
    gone()


claims()
pods()
overhead()
