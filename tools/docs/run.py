#!/usr/bin/env python3
"""run.py [PAGE …]: types what pages tell a user to type, page by page, on the machine of tools/test-docs.sh, and shows what failed.

Every fenced block of `sh` is run, command by command, and every one of `yaml` that is an object of the cluster is applied. What a page can't
say to its readers stands in remarks directly before a block, which nobody sees who reads the page:

  <!-- not run: WHY -->         the block is for another machine, or takes what isn't here
  <!-- not run: PATTERN: WHY --> only the commands that the pattern (between slashes) finds
  <!-- before: COMMAND -->      what the reader has already; `after` puts away what the block left
  <!-- with: WORD=VALUE -->     what the reader puts for a word; the value is what a shell makes of it
  <!-- until: SECONDS -->       a command that goes on until it is ended
  <!-- ends with: STATUS: PATTERN --> the status of the commands that the pattern finds, if it isn't 0

Beside that, each `keelson …` that a page has in its text is held against the program's own help: its commands and options have to exist."""
import functools, os, re, shlex, signal, subprocess, sys, time

LIMIT = 90
WORK = os.environ["WORK"]
STATE = os.path.join(WORK, "shell")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def shell(command, limit=LIMIT):
    """A command in the session of its page: variables and functions of the ones before are there. Returns status and output."""
    script = f'set -a; [ ! -e {STATE} ] || . {STATE} 2>/dev/null; cd "$PAGE_DIRECTORY"; set +e\n{command}\nrc=$?; {{ declare -p -x; declare -f; }} >{STATE}; exit $rc'
    run = subprocess.Popen(["bash", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        out, _ = run.communicate(timeout=limit)
        return run.returncode, ANSI.sub("", out.decode(errors="replace"))
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGINT)
        try:
            out, _ = run.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            out, _ = run.communicate()
        return None, ANSI.sub("", out.decode(errors="replace"))


def commands(text):
    """A block's commands: lines until the shell takes them for whole."""
    held = ""
    for line in text.splitlines():
        held += line + "\n"
        if line.endswith("\\"):
            continue
        judged = subprocess.run(["bash", "-n"], input=held, text=True, capture_output=True)
        if judged.returncode == 0 and not judged.stderr:
            if re.sub(r"(?m)^\s*(#.*)?$", "", held).strip():
                yield held.strip()
            held = ""
    if held.strip():
        yield held.strip()


def blocks(text):
    """(line, language, block, remarks) of each fenced block; remarks are those of the lines directly above."""
    lines, remarks, n = text.splitlines(), [], 0
    while n < len(lines):
        line = lines[n]
        fence = re.match(r"^(\s*)```(\w*)$", line)
        if fence:
            end = next(i for i in range(n + 1, len(lines)) if lines[i].strip() == "```")
            yield n + 1, fence[2], "\n".join(part[len(fence[1]):] for part in lines[n + 1:end]) + "\n", remarks
            n, remarks = end, []
        elif (remark := re.match(r"^\s*<!-- (not run|before|after|with|until|ends with): (.*) -->$", line)):
            remarks.append((remark[1], remark[2]))
        elif line.strip():
            remarks = []
        n += 1


class Page:
    def __init__(self, path):
        self.path, self.run, self.left, self.failures = path, 0, 0, []
        self.here = os.path.join(WORK, "pages", os.path.basename(path))
        os.makedirs(self.here, exist_ok=True)
        os.environ["PAGE_DIRECTORY"] = self.here
        if os.path.exists(STATE):
            os.remove(STATE)

    def failed(self, line, command, said):
        self.failures.append(line)
        print(f"FAILED {self.path}:{line}: {command}\n" + "".join(f"    | {part}\n" for part in said.splitlines()[-15:]), flush=True)

    def filled(self, command, words):
        for name, value in (word.split("=", 1) for word in words):
            pattern = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
            if re.search(pattern, command):
                _, out = shell(f'printf %s "{value}"')
                command = re.sub(pattern, lambda _: out, command)
        return command

    def block(self, line, language, text, remarks):
        said = lambda kind: [value for name, value in remarks if name == kind]
        spared = [re.match(r"^/(.*)/: .", value) for value in said("not run")]
        if any(match is None for match in spared):
            self.left += 1
            return
        # What components read (…config.k8s.io) are files, and a part of an object isn't one.
        if language == "yaml" and not (re.search(r"^apiVersion: (?!.*config\.k8s\.io)", text, re.M) and re.search(r"^kind: ", text, re.M)):
            return
        for command in said("before"):
            status, out = shell(command)
            if status != 0:
                self.failed(line, f"(before) {command}: status {status}", out)
        ends = [value.split(": ", 1) for value in said("ends with")]
        until = float(said("until")[0]) if said("until") else None
        for command in [f"kubectl apply -f - <<'END'\n{text}END"] if language == "yaml" else commands(text):
            if any(re.search(match[1], command) for match in spared):
                self.left += 1
                continue
            command = self.filled(command, said("with"))
            began = time.monotonic()
            status, out = shell(command, until or LIMIT)
            wanted = next((int(value) for value, pattern in ends if re.search(pattern, command)), 0)
            if status != (None if until else wanted):
                self.failed(line, f"{command.splitlines()[0]}: " + (f"not ended after {LIMIT} s" if status is None else f"status {status}"), out)
            self.run += 1
            if os.environ.get("SHOW"):
                print(f"{self.path}:{line} ({time.monotonic() - began:.1f} s) $ {command}\n{out}", flush=True)
        for command in said("after"):
            status, out = shell(command)
            if status != 0:
                self.failed(line, f"(after) {command}: status {status}", out)


@functools.cache
def help_of(words):
    """A command's help, or nothing if there is no such command."""
    asked = subprocess.run(["keelson", *words, "--help"], text=True, capture_output=True, stdin=subprocess.DEVNULL)
    return asked.stdout if asked.returncode == 0 else None


def subcommands(text):
    part = re.search(r"^Commands:\n((?:  .*\n|\n(?=  ))+)", text, re.M)
    return set(re.findall(r"^  ([a-z][a-z-]*)", part[1], re.M)) if part else set()


def mentioned(page, text):
    """What a page says of the program's commands in its text: they and their options have to exist."""
    for n, line in enumerate(text.splitlines(), 1):
        for code in re.findall(r"`((?:sudo )?keelson [^`]+)`", line) + (re.findall(r"^((?:sudo )?keelson .*?)(?:\s+#.*)?$", line)):
            try:
                words = [w for w in shlex.split(code.replace("…", " "), comments=True) if w != "sudo"][1:]
            except ValueError:
                continue
            path, rest = (), words
            while rest and re.fullmatch(r"[a-z][a-z-]*", rest[0]) and (rest[0] in subcommands(help_of(path) or "") or subcommands(help_of(path) or "") and help_of((*path, rest[0]))):
                path, rest = (*path, rest[0]), rest[1:]
            known = help_of(path) or ""
            if rest and re.fullmatch(r"[a-z][a-z-]*", rest[0]) and subcommands(known) and not (set(path) & {"exec", "why"}):
                page.failed(n, f"`{code}`: there is no such command", "")
                continue
            own = words[words.index("--"):] if "--" in words else []
            for option in rest[:len(rest) - len(own)] if own else rest:
                if (name := re.match(r"--[a-z][a-z0-9-]*", option)) and not re.search(rf"{name[0]}(?![a-z0-9-])", known) and name[0] not in ("--help", "--version"):
                    page.failed(n, f"`{code}`: `keelson {' '.join(path)}` has no {name[0]}", "")
            self_options = own[1:]
            if self_options and path[:1] == ("install",):
                role = help_of(("agent",) if "agent" in words else ("server",))
                for option in self_options:
                    if (name := re.match(r"--[a-z][a-z0-9-]*", option)) and not re.search(rf"{name[0]}(?![a-z0-9-])", role):
                        page.failed(n, f"`{code}`: no option {name[0]}", "")


def main():
    began, failed = time.monotonic(), 0
    for path in sys.argv[1:]:
        page, text = Page(path), open(path).read()
        mentioned(page, text)
        for line, language, block, remarks in blocks(text):
            if language in ("sh", "yaml"):
                page.block(line, language, block, remarks)
        failed += len(page.failures)
        print(f"{'ok ' if not page.failures else 'BAD'} {path}: {page.run} run, {page.left} left out, {len(page.failures)} failed", flush=True)
    print(f"=== {failed} failures in {time.monotonic() - began:.0f} s")
    sys.exit(1 if failed else 0)


main()
