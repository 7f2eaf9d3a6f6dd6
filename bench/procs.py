#!/usr/bin/env python3
"""procs.py mem|cpu SECONDS exe:PATH | tree:DIRECTORY
Memory (PSS, MiB) or CPU (% of one core over SECONDS) of all processes whose program is PATH, or of the process trees whose
roots are named by DIRECTORY/*.pid (scripts and namespace tools are left out)."""
import collections, glob, os, sys, time

def read(path):
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        return ''

def processes(selector):
    kind, where = selector.split(':', 1)
    pids = [int(d[6:]) for d in glob.glob('/proc/[0-9]*')]
    if kind == 'exe':
        want = os.path.realpath(where)
        def exe(p):
            try:
                return os.readlink(f'/proc/{p}/exe').removesuffix(' (deleted)')
            except OSError:
                return ''
        return [p for p in pids if exe(p) == want]
    children = collections.defaultdict(list)
    for p in pids:
        stat = read(f'/proc/{p}/stat')
        if stat:
            children[int(stat.rsplit(')', 1)[1].split()[1])].append(p)
    found, todo = [], [int(read(f).strip() or 0) for f in glob.glob(where + '/*.pid')]
    while todo:
        p = todo.pop()
        if p in found:
            continue
        found.append(p)
        todo += children[p]
    tools = ('nsenter', 'unshare', 'bash', 'sleep', 'pause')
    return [p for p in found if read(f'/proc/{p}/comm').strip() not in tools and not read(f'/proc/{p}/comm').strip().endswith('.sh')]

def mem(selector):
    total = 0
    for p in processes(selector):
        for line in read(f'/proc/{p}/smaps_rollup').splitlines():
            if line.startswith('Pss:'):
                total += int(line.split()[1])
    return total / 1024

def ticks(selector):
    total = {}
    for p in processes(selector):
        stat = read(f'/proc/{p}/stat')
        if stat:
            fields = stat.rsplit(')', 1)[1].split()
            total[p] = int(fields[11]) + int(fields[12])
    return total

what, seconds, selector = sys.argv[1], float(sys.argv[2]), sys.argv[3]
if what == 'mem':
    print(f'{mem(selector):.1f}')
else:
    before = ticks(selector)
    time.sleep(seconds)
    after = ticks(selector)
    used = sum(v - before.get(p, 0) for p, v in after.items()) / os.sysconf('SC_CLK_TCK')
    print(f'{100 * used / seconds:.2f}')
