#!/usr/bin/env python3
"""grow.py RESULTS.tsv [RESULTS.tsv ...]: adds to lists/passing.txt each test that passed in at least three of these runs
and failed in none. The list only grows; a test in it that failed is named, and the exit status is 1."""
import collections, os, re, sys
here = os.path.dirname(os.path.abspath(__file__))
path = os.path.join(here, 'lists', 'passing.txt')
known = {l.strip() for l in open(os.path.join(here, 'lists', 'all.txt')) if l.strip()}
have = {l.strip() for l in open(path) if l.strip()} if os.path.exists(path) else set()
passed, failed = collections.Counter(), collections.Counter()
for f in sys.argv[1:]:
    for line in open(f):
        status, _, name = line.rstrip('\n').split('\t')
        name = re.sub(r' \[sig-[a-z-]*(, [^]]*)?\]( \[[a-z]*: .*)?$', '', name)
        (passed if status == 'PASS' else failed)[name] += 1
new = {n for n, c in passed.items() if c >= 3 and not failed[n] and n in known}
with open(path, 'w') as out:
    out.writelines(n + '\n' for n in sorted(have | new))
print(f'{len(have)} before, {len(have | new)} now')
regressed = sorted(have & set(failed))
for n in regressed:
    print('REGRESSED', n)
sys.exit(1 if regressed else 0)
