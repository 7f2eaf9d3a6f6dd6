#!/bin/bash
# python.sh: the Python client (`kubernetes`), as its package is published, in an environment of its own: typed, dynamic and asynchronous; streams by WebSocket. What it is asked to do stands in python/checks.py.
. "$(dirname "$0")/lib.sh"
HERE=$ROOT/tests/clients/python; ENV=$CLIENTS/python-$(sha256sum <"$HERE/requirements.txt" | cut -c1-12)
[ -e "$ENV/whole" ] || { rm -rf "$ENV"; python3 -m venv "$ENV" && "$ENV/bin/pip" install -q --disable-pip-version-check --no-deps -r "$HERE/requirements.txt" && touch "$ENV/whole"; } || exit 1
cluster
inns env PYTHONDONTWRITEBYTECODE=1 timeout -k 5 300 "$ENV/bin/python" "$HERE/checks.py" "$RESULTS" || failed=1
