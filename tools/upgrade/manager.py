#!/usr/bin/env python3
"""What of systemd the tests of upgrades need, on a machine without it: one service of a unit's file, its readiness, its sockets.

manager.py run DIR UNIT      the manager, until SIGTERM; the service goes on then
manager.py ctl DIR WORD...   systemctl's words, answered by it
"""
import array, os, select, shlex, signal, socket, subprocess, sys, time


class Manager:
    def __init__(self, directory, unit):
        self.dir, self.unit = directory, unit
        self.state, self.pid, self.starts, self.restarts = "inactive", 0, 0, 0
        self.again_at, self.kill_at, self.then = None, None, None
        self.store = []  # (name, descriptor)
        self.stopping = False
        path = os.path.join(directory, "notify")
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(path)
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control.bind(os.path.join(directory, "control"))
        self.control.listen(8)

    def settings(self):
        found = {}
        for line in open(self.unit):
            if "=" in line and not line.startswith("#"):
                key, value = line.rstrip("\n").split("=", 1)
                found.setdefault(key, []).append(value)
        return found

    def environment(self, settings):
        env = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": os.path.join(self.dir, "notify")}
        for name in settings.get("EnvironmentFile", []):
            try:
                for word in shlex.split(open(name.lstrip("-")).read()):
                    key, value = word.split("=", 1)
                    env[key] = value
            except FileNotFoundError:
                pass
        return env

    @staticmethod
    def words(line):
        return [w.replace("$$", "$").replace("%%", "%") for w in shlex.split(line)]

    def start(self):
        settings = self.settings()
        env = self.environment(settings)
        self.state, self.starts, self.again_at = "activating", self.starts + 1, None
        log = open(os.path.join(self.dir, "log"), "ab")
        for pre in settings.get("ExecStartPre", []):
            subprocess.run(self.words(pre.lstrip("-")), env=env, stdout=log, stderr=log, timeout=120)
        keeps = int(settings.get("FileDescriptorStoreMax", ["0"])[0]) > 0
        kept = self.store if keeps else []
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                high = [os.dup2(fd, 100 + n) for n, (_, fd) in enumerate(kept)]
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                for n, fd in enumerate(high):
                    os.dup2(fd, 3 + n, inheritable=True)
                os.closerange(3 + len(high), 4096)
                if kept:
                    env.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)), LISTEN_FDNAMES=":".join(n for n, _ in kept))
                words = self.words(settings["ExecStart"][0])
                os.execve(words[0], words, env)
            finally:
                os._exit(203)
        self.pid = pid

    def stop(self, then=None):
        self.then, self.stopping = then, True
        if not self.pid:
            self.ended()
            return
        self.state, self.kill_at = "deactivating", time.monotonic() + 60
        os.kill(self.pid, signal.SIGTERM)

    def ended(self):
        self.pid, self.kill_at = 0, None
        if self.then:
            self.then, self.stopping, self.restarts = None, False, 0
            self.start()
        elif self.stopping:
            # A service that is stopped for good keeps nothing.
            self.state, self.stopping, self.again_at = "inactive", False, None
            for _, fd in self.store:
                os.close(fd)
            self.store = []
        else:
            self.state, self.again_at = "activating", time.monotonic() + 1

    def told(self):
        data, rights, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(16 * 4))
        fds = array.array("i")
        for level, kind, content in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        lines = dict(l.split("=", 1) for l in data.decode().split("\n") if "=" in l)
        name = lines.get("FDNAME", "stored")
        if "FDSTOREREMOVE" in lines:
            for n, fd in self.store:
                if n == name:
                    os.close(fd)
            self.store = [(n, fd) for n, fd in self.store if n != name]
        if "FDSTORE" in lines:
            self.store += [(name, fd) for fd in fds]
        if "READY" in lines:
            self.state = "active"

    def answer(self):
        client, _ = self.control.accept()
        words = client.recv(4096).decode().split("\0")
        verb, done = words[0], ""
        if verb == "show":
            done = f"ActiveState={self.state}\nInvocationID={self.starts}\nMainPID={self.pid}\nNRestarts={self.restarts}\n"
        elif verb == "restart" or (verb == "start" and not self.pid):
            self.stop(then="start")
        elif verb == "stop" or (verb == "disable" and "--now" in words):
            self.stop()
        client.sendall(done.encode())
        client.close()

    def run(self):
        gone = []
        signal.signal(signal.SIGTERM, lambda *_: gone.append(1))
        while not gone:
            ready, _, _ = select.select([self.notify, self.control], [], [], 0.05)
            if self.notify in ready:
                self.told()
            if self.control in ready:
                self.answer()
            if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
                self.ended()
            if self.kill_at and time.monotonic() > self.kill_at:
                os.kill(self.pid, signal.SIGKILL)
            if self.again_at and time.monotonic() > self.again_at:
                self.restarts += 1
                self.start()


def ctl(directory, words):
    words = [w for w in words if w != "--no-block"]
    wait = words[0] == "stop" or "--now" in words
    for _ in range(1200):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(os.path.join(directory, "control"))
            client.sendall("\0".join(words).encode())
            said = b"".join(iter(lambda: client.recv(4096), b"")).decode()
        if not wait or "ActiveState=inactive" in said:
            break
        words = ["show"]
        time.sleep(0.05)
    if not wait:
        sys.stdout.write(said)


if sys.argv[1] == "run":
    Manager(sys.argv[2], sys.argv[3]).run()
else:
    ctl(sys.argv[2], sys.argv[3:])
