#!/bin/sh
# Writes the Rust of every protocol anew, beside its .proto. To be run when one changes; building Keelson doesn't.
set -eu
cd "$(dirname "$0")"
for proto in ../../crates/*/*/proto/*.proto ../../crates/*/*/proto/*/*.proto; do
  cargo run --quiet --locked -- "$proto" "$(dirname "$proto")"
done
