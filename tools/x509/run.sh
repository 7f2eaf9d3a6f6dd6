#!/bin/sh
# Makes certificate requests and certificates anew and records what upstream's own code says of them. Needs Go and the
# module cache (or a proxy). Keys are new each time, so every line of the result changes.
set -eu
cd "$(dirname "$0")"
go run . ../../crates/base/pki/testdata
