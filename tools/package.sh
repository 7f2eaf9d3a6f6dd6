#!/bin/bash
# package.sh PROGRAM DIR: an archive and, on Debian, a package of a program, and their sums. The same program gives the same bytes: names are
# sorted, and every time is SOURCE_DATE_EPOCH (the commit's). SBOM=FILE is handed out beside them.
set -euo pipefail
PROGRAM=$(realpath "$1"); mkdir -p "$2"; OUT=$(realpath "$2")
cd "$(dirname "$0")/.."
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
umask 022
VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -1)
ARCH=$(uname -m); NAME=keelson-$VERSION-linux-$ARCH
WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT

# What the program tells of itself must not depend on who asks.
own() { env -i PATH="$PATH" HOME=/ "$PROGRAM" "$@"; }
TREE=$WORK/$NAME; mkdir -p "$TREE/completions"
install -m 755 "$PROGRAM" "$TREE/keelson"
install -m 644 LICENSE README.md docs/install.md tools/packaging/keelson.service tools/packaging/keelson.openrc "$TREE"
own man "$TREE/man"
own completion bash >"$TREE/completions/keelson"
own completion zsh >"$TREE/completions/_keelson"
own completion fish >"$TREE/completions/keelson.fish"
find "$TREE/man" -type f -exec chmod 644 {} +
tar -C "$WORK" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=ustar -cf - "$NAME" | gzip -9n >"$OUT/$NAME.tar.gz"

if command -v dpkg-deb >/dev/null; then
  case $ARCH in x86_64) DEB=amd64 ;; aarch64) DEB=arm64 ;; *) DEB=$ARCH ;; esac
  ROOT=$WORK/deb; mkdir -p "$ROOT"/DEBIAN
  install -D -m 755 "$PROGRAM" "$ROOT/usr/bin/keelson"
  install -D -m 644 "$TREE/completions/keelson" "$ROOT/usr/share/bash-completion/completions/keelson"
  install -D -m 644 "$TREE/completions/_keelson" "$ROOT/usr/share/zsh/vendor-completions/_keelson"
  install -D -m 644 "$TREE/completions/keelson.fish" "$ROOT/usr/share/fish/vendor_completions.d/keelson.fish"
  install -D -m 600 tools/packaging/config.yaml "$ROOT/etc/keelson/config.yaml"
  install -D -m 644 LICENSE "$ROOT/usr/share/doc/keelson/copyright"
  mkdir -p "$ROOT/usr/lib/systemd/system" "$ROOT/usr/share/man/man1"
  sed 's|/usr/local/bin/|/usr/bin/|' tools/packaging/keelson.service >"$ROOT/usr/lib/systemd/system/keelson.service"
  for page in "$TREE"/man/*; do gzip -9n <"$page" >"$ROOT/usr/share/man/man1/$(basename "$page").gz"; done
  install -m 755 tools/packaging/deb/* "$ROOT/DEBIAN"
  echo /etc/keelson/config.yaml >"$ROOT/DEBIAN/conffiles"
  # What the program is linked to, and the oldest C library that has it all.
  needs() { { readelf -d "$PROGRAM" || true; } 2>/dev/null | grep -q "NEEDED.*\[$1\]"; }
  GLIBC=$({ objdump -T "$PROGRAM" || true; } 2>/dev/null | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1 | cut -d_ -f2 || true)
  DEPENDS=libc6${GLIBC:+ (>= $GLIBC)}
  ! needs libgcc_s.so.1 || DEPENDS+=", libgcc-s1"
  ! needs libseccomp.so.2 || DEPENDS+=", libseccomp2"
  cat >"$ROOT/DEBIAN/control" <<TXT
Package: keelson
Version: $VERSION
Architecture: $DEB
Maintainer: The Keelson authors <keelson@localhost>
Section: admin
Priority: optional
Depends: $DEPENDS
Installed-Size: $(du -sk --apparent-size "$ROOT/usr" | cut -f1)
Description: Kubernetes as one program
 API server, store, scheduler, controllers, kubelet, container runtime, pod
 network, service proxy and DNS of a cluster, on one machine or many.
TXT
  (cd "$ROOT" && find usr -type f | sort | xargs md5sum >DEBIAN/md5sums)
  find "$ROOT" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  dpkg-deb --root-owner-group -Zgzip -z9 --build "$ROOT" "$OUT/keelson_${VERSION}_$DEB.deb" >/dev/null
fi
[ -z "${SBOM:-}" ] || install -m 644 "$SBOM" "$OUT/$NAME.cdx.json"
cd "$OUT"
find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum >SHA256SUMS
