#!/bin/sh
# Regenerates the objects that every cluster starts with from the published Go modules. Needs Go and the module cache (or a proxy).
set -eu
cd "$(dirname "$0")"
CGO_ENABLED=0 go run -trimpath . >objects.new
mv objects.new ../../crates/request/apiserver/src/bootstrap/objects.jsonl
