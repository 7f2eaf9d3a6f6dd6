#!/usr/bin/env python3
"""figures.py RAW.tsv KEELSON-APIBENCH UPSTREAM-APIBENCH: medians and ratios as a Markdown table."""
import json, re, statistics, sys

raw = {}
for line in open(sys.argv[1]):
    who, what, value = line.split('\t')
    raw.setdefault((who, what), []).append(float(value))

def apibench(path, name, what='p50_ms'):
    values = []
    for line in open(path):
        m = re.search(r'\{.*\}', line)
        if m:
            d = json.loads(m.group(0))
            if d.get('name') == name and not d.get('median'):
                values.append(float(d[what]))
    return values

ours, theirs = sys.argv[2], sys.argv[3]
rows = [
    ('program start to node Ready', 's', raw.get(('keelson', 'start')), raw.get(('upstream', 'start'))),
    ('memory (PSS), idle with 10 pods', 'MiB', raw.get(('keelson', 'mem')), raw.get(('upstream', 'mem'))),
    ('CPU, idle with 10 pods', '% of a core', raw.get(('keelson', 'cpu')), raw.get(('upstream', 'cpu'))),
    ('pod create to Running, image present', 'ms', apibench(ours, 'pod-latency'), apibench(theirs, 'pod-latency')),
    ('50 pods Ready', 'ms', apibench(ours, 'deploy-50'), apibench(theirs, 'deploy-50')),
    ('program, stripped', 'MiB', raw.get(('keelson', 'size')), None),
]
print('| figure | unit | Keelson | upstream | ratio |\n|---|---|---|---|---|')
for name, unit, a, b in rows:
    show = lambda v: f'{statistics.median(v):.2f} ({min(v):.2f}–{max(v):.2f}, n={len(v)})' if v else '–'
    x, y = (statistics.median(v) if v else None for v in (a, b))
    # How many times better: less is better.
    better = y / max(x, 0.001) if a and b else None
    ratio = f'{better:.1f}×' if better else '–'
    print(f'| {name} | {unit} | {show(a)} | {show(b)} | {ratio} |')
