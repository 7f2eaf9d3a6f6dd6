#!/bin/sh
# Asks the published Kubernetes server about objects.yaml and what becomes of it when changed. Builds much of the server:
# some minutes the first time.
set -eu
cd "$(dirname "$0")"
go run . -out ../../crates/request/registry/src/resources/validation/golden.txt 2>/dev/null
go run ./internal -out ../../crates/request/registry/src/internal/types.txt
