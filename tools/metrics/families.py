#!/usr/bin/env python3
"""Families of metrics that Go sources declare: name | kind | labels | bounds of buckets, a line each.

    families.py k8s.io/apiserver/pkg/endpoints/metrics/metrics.go ... | grep '^apiserver_request_total '

The lists beside our code (crates/**/{told,upstream,queues,requests}.txt) are lines of this, of the families that are told here.
What can't be read is marked by a question mark.
"""

import glob
import os
import re
import sys

FAMILY = re.compile(r"New(Counter|Gauge|Histogram)(Vec|Func)?\(\s*&?(?:\w+\.)?\w*Opts\s*\{")
CONSTANT = re.compile(r'^\s*(?:const\s+|var\s+)?(\w+)\s*(?:string\s*)?=\s*("[^"]*"|\[\]float64\{[^}]*\}|\w+\.\w+Buckets\([^)]*\))', re.M)
DEFAULT = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]


def without_comments(text):
    return re.sub(r"//.*", "", text)


def numbers(text):
    return [float(eval(n, {}, {})) for n in without_comments(text).replace("\n", " ").split(",") if n.strip()]


def buckets(expression, constants):
    expression = re.sub(r"\b(?:\w*metrics|prometheus|plugin)\.", "", expression.strip().rstrip(","))
    if expression in constants:
        return buckets(constants[expression], constants)
    if m := re.match(r"\[\]float64\s*\{(.*)\}$", expression, re.S):
        return numbers(m[1])
    if m := re.match(r"MergeBuckets\((.*)\)$", expression, re.S):
        parts = re.findall(r"\w+Buckets\([^)]*\)", without_comments(m[1]))
        return [bound for part in parts for bound in buckets(part, constants)]
    m = re.match(r"(Exponential|Linear)Buckets\((.*?)\)", expression, re.S)
    if not m:
        raise ValueError(expression)
    value, step, count = numbers(m[2])
    found = []
    for _ in range(int(count)):
        found.append(value)
        value = value * step if m[1] == "Exponential" else value + step
    return found


def body_end(text, start):
    depth, at = 1, start
    while depth:
        if text[at] in '"`':
            at = text.index(text[at], at + 1)
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return at


def families(path):
    text = open(path).read()
    constants = {}
    for file in [path, *glob.glob(os.path.dirname(path) + "/*.go")]:
        for name, value in CONSTANT.findall(open(file).read()):
            constants.setdefault(name, value)

    def word(given):
        given = given.strip()
        if given.startswith('"'):
            return given.strip('"')
        name = given.split(".")[-1]
        return "coredns" if given == "plugin.Namespace" else constants.get(name, "?" + name).strip('"')

    for m in FAMILY.finditer(text):
        end = body_end(text, m.end())
        body = text[m.end() : end - 1]
        parts = [re.search(rf"\b{field}:\s*([^,\n]+),", body) for field in ("Namespace", "Subsystem", "Name")]
        name = "_".join(filter(None, (word(p[1]) for p in parts if p)))
        labels = re.match(r"\s*,\s*\[\]string\s*\{([^}]*)\}", text[end:], re.S) if m[2] == "Vec" else None
        labels = [word(l) for l in without_comments(labels[1]).split(",") if l.strip()] if labels else []
        bounds = ""
        if m[1] == "Histogram":
            given = re.search(r"\bBuckets:\s*(.*?)(?:,\s*(?://[^\n]*)?\n\s*(?:\w+:|$)|,?\s*$)", body, re.S)
            try:
                found = buckets(without_comments(given[1]), constants) if given else DEFAULT
                bounds = " ".join(str(int(b)) if b == int(b) else repr(b) for b in found)
            except (ValueError, SyntaxError):
                bounds = "?"
        yield " | ".join([name, m[1].lower(), " ".join(sorted(labels)), bounds]).rstrip(" |")


if __name__ == "__main__":
    for line in sorted({line for path in sys.argv[1:] for line in families(path)}):
        print(line)
