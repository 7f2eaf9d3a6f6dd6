#!/bin/bash
# deps.sh: installs from Debian packages what building and running needs, and only what is missing.
# env: TOOLS=further packages, which tests use
set -euo pipefail
NEED="clang mold pkg-config libseccomp-dev make iproute2 nftables e2fsprogs curl ca-certificates git procps ${TOOLS:-}"
MISSING=$(for p in $NEED; do dpkg -s "$p" >/dev/null 2>&1 || echo "$p"; done)
if [ -n "$MISSING" ]; then
  [ "$(id -u)" = 0 ] || { echo "these packages are missing, and installing them needs root: $MISSING" >&2; exit 1; }
  echo "installing: "$MISSING
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $MISSING >/dev/null
fi
command -v cargo >/dev/null || { echo "Rust is missing: install it from rustup.rs (1.95 or newer)" >&2; exit 1; }
