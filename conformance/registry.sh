#!/bin/bash
# registry.sh: OCI's own suite of the distribution API (build.sh registry builds it from its published Go module) against `keelson registry` on loopback,
# whole: with what the specification leaves open (cancelled uploads, digests told, tags beside a digest) and both algorithms. Half a minute.
# The suite's word on each API and each sort of content goes to $REPORT; all it asked and got to $OUT. Fails if anything doesn't pass.
# env: KEELSON=program, PORT, OUT, REPORT=file
. "$(dirname "$0")/lib/env.sh"; set -e
KEELSON=$(realpath "${KEELSON:-$ROOT/target/release/keelson}") OUT=${OUT:-$LAB/registry} PORT=${PORT:-5917} REPORT=${REPORT:-$OUT/report.txt}
"$HERE/build.sh" registry
rm -rf "$OUT"; mkdir -p "$OUT"; D=$(mktemp -d /tmp/keelson-registry.XXXXXX)
"$KEELSON" registry --dir "$D" --listen 127.0.0.1:$PORT --metrics-bind-address 127.0.0.1:0 --plain-http --without-authentication >"$OUT/registry.log" 2>&1 & PID=$!
trap 'kill $PID 2>/dev/null; wait $PID 2>/dev/null; rm -rf "$D"' EXIT
for _ in $(seq 100); do curl -fs "http://127.0.0.1:$PORT/v2/" >/dev/null && break; sleep 0.1; done
rc=0
OCI_REGISTRY=127.0.0.1:$PORT OCI_TLS=disabled OCI_VERSION=1.1 OCI_RESULTS_DIR="$OUT" OCI_REPO1=conformance/repo1 OCI_REPO2=conformance/repo2 \
  OCI_API_BLOBS_UPLOAD_CANCEL=true OCI_API_BLOBS_DIGEST_HEADER=true OCI_API_MANIFESTS_DIGEST_HEADER=true OCI_API_MANIFESTS_TAG_PARAM=true \
  "$BIN/oci-conformance" >"$OUT/suite.log" 2>&1 || rc=1
{ echo "# $(sed -n 's/^.*github.com\/opencontainers\/distribution-spec\/conformance v/github.com\/opencontainers\/distribution-spec\/conformance v/p' $LAB/build/oci-conformance/go.mod | head -1 | sed 's/ *\/\/.*//')"
  sed -n '/^OCI Conformance Result/,$p' "$OUT/suite.log"; } >"$OUT/new.txt"
mv "$OUT/new.txt" "$REPORT"; cat "$REPORT"
grep -q '^OCI Conformance Result: Pass' "$REPORT" || rc=1
exit $rc
