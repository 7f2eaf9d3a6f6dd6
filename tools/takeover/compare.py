#!/usr/bin/env python3
"""compare.py ONE OTHER [PATTERN…]: two directories of `kubectl get -o json`, one file a resource. Says what is missing, new
or different in OTHER, except for objects whose "resource namespace/name" a pattern fits, and fails if there is any."""
import json, pathlib, re, sys


def objects(directory):
    found = {}
    for file in sorted(pathlib.Path(directory).iterdir()):
        for item in json.loads(file.read_text())["items"]:
            meta = item["metadata"]
            found[f"{file.name} {meta.get('namespace', '')}/{meta['name']}"] = item
    return found


def paths(one, other, at=""):
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from paths(one.get(key), other.get(key), f"{at}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other)):
            yield from paths(*pair, f"{at}[{index}]")
    elif one != other:
        yield f"{at}: {json.dumps(one)[:120]} → {json.dumps(other)[:120]}"


one, other, allowed = objects(sys.argv[1]), objects(sys.argv[2]), [re.compile(p) for p in sys.argv[3:]]
bad = apart = 0
for name in sorted(one.keys() | other.keys()):
    if one.get(name) == other.get(name):
        continue
    if any(p.fullmatch(name) for p in allowed):
        apart += 1
        continue
    bad += 1
    print(f"{name}: " + ("missing" if name not in other else "new" if name not in one else "different"))
    if name in one and name in other:
        for path in paths(one[name], other[name]):
            print("   ", path)
print(f"{len(one)} objects and {len(other)}: {bad} differ, {apart} of the server's own aside")
sys.exit(bad > 0)
