#!/bin/sh
# Regenerates the facts of the built-in API from the published Go modules. Needs Go and the module cache (or a proxy).
set -eu
cd "$(dirname "$0")"
go run . -out ../../crates/base/api/schema -golden ../../crates/base/api/tests/golden.txt
