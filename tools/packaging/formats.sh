# formats.sh: the forms in which a program is handed out, for tools/package.sh, which sets PROGRAM, TREE (what goes into an archive), OUT, WORK, VERSION,
# NAME, ARCH and OTHER (the architecture, as the kernel calls it and as Debian and OCI do) and SOURCE_DATE_EPOCH.

# pack DIR NAME...: an archive of these, on standard output
pack() { tar -C "$1" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=ustar -cf - "${@:2}"; }
sum() { sha256sum "$1" | cut -d' ' -f1; }

archive() { pack "$WORK" "$NAME" | gzip -9n >"$OUT/$NAME.tar.gz"; }

# installed DIR: files where a package has them
installed() {
  install -D -m 755 "$PROGRAM" "$1/usr/bin/keelson"
  install -D -m 644 "$TREE/completions/keelson" "$1/usr/share/bash-completion/completions/keelson"
  install -D -m 644 "$TREE/completions/_keelson" "$1/usr/share/zsh/vendor-completions/_keelson"
  install -D -m 644 "$TREE/completions/keelson.fish" "$1/usr/share/fish/vendor_completions.d/keelson.fish"
  install -D -m 600 tools/packaging/config.yaml "$1/etc/keelson/config.yaml"
  install -D -m 644 LICENSE "$1/usr/share/doc/keelson/copyright"
  mkdir -p "$1/usr/lib/systemd/system" "$1/usr/share/man/man1"
  sed 's|/usr/local/bin/|/usr/bin/|' tools/packaging/keelson.service >"$1/usr/lib/systemd/system/keelson.service"
  local page; for page in "$TREE"/man/*; do gzip -9n <"$page" >"$1/usr/share/man/man1/$(basename "$page").gz"; done
  find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

# needed: what the program is linked to, in Debian's names, with the oldest C library that has it all; nothing, if it is static
needed() {
  local linked all=; linked=$({ readelf -d "$PROGRAM" || true; } 2>/dev/null | grep NEEDED || true)
  has() { grep -qF "[$1]" <<<"$linked"; }
  if has libc.so.6; then
    local oldest; oldest=$({ objdump -T "$PROGRAM" || true; } 2>/dev/null | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1 | cut -d_ -f2 || true)
    all="libc6${oldest:+ (>= $oldest)}"
  fi
  ! has libgcc_s.so.1 || all+=", libgcc-s1"
  ! has libseccomp.so.2 || all+=", libseccomp2"
  [ -z "$all" ] || echo "Depends: $all"
}

deb() {
  local root=$WORK/deb; mkdir -p "$root/DEBIAN"; cp -a "$WORK/root/." "$root"
  install -m 755 tools/packaging/deb/* "$root/DEBIAN"
  echo /etc/keelson/config.yaml >"$root/DEBIAN/conffiles"
  { cat <<TXT; needed; cat <<TXT; } >"$root/DEBIAN/control"
Package: keelson
Version: $VERSION
Architecture: $OTHER
Maintainer: The Keelson authors <keelson@localhost>
Section: admin
Priority: optional
Installed-Size: $(du -sk --apparent-size "$root/usr" | cut -f1)
TXT
Description: Kubernetes as one program
 API server, store, scheduler, controllers, kubelet, container runtime, pod
 network, service proxy and DNS of a cluster, on one machine or many.
TXT
  (cd "$root" && find usr -type f | sort | xargs md5sum >DEBIAN/md5sums)
  find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  dpkg-deb --root-owner-group -Zgzip -z9 --build "$root" "$OUT/keelson_${VERSION}_$OTHER.deb" >/dev/null
}

rpm() {
  local top=$WORK/rpm root=$WORK/rpmroot; cp -a "$WORK/root" "$root"
  mkdir -p "$root/usr/share/zsh/site-functions" "$root/usr/share/licenses/keelson"   # as that family of systems has them
  mv "$root/usr/share/zsh/vendor-completions/_keelson" "$root/usr/share/zsh/site-functions/"; rmdir "$root/usr/share/zsh/vendor-completions"
  mv "$root/usr/share/doc/keelson/copyright" "$root/usr/share/licenses/keelson/LICENSE"; rm -r "$root/usr/share/doc"
  find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  env HOME="$WORK" rpmbuild -bb --quiet --target "$ARCH-linux" --buildroot "$WORK/rpmbuild" \
    -D "_topdir $top" -D "_rpmdir $OUT" -D "_build_name_fmt keelson-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" -D "_dbpath $top/db" \
    -D "_buildhost reproducible" -D "use_source_date_epoch_as_buildtime 1" -D "clamp_mtime_to_source_date_epoch 1" \
    -D "version $VERSION" -D "tree $root" tools/packaging/rpm/keelson.spec >"$WORK/rpm.log" 2>&1 || { cat "$WORK/rpm.log" >&2; return 1; }
}

# libraries DIR: what the program is linked to, below that directory
libraries() {
  readelf -lW "$PROGRAM" 2>/dev/null | grep -q INTERP || return 0
  ldd "$PROGRAM" | grep -o '/[^ ]*' | while read -r library; do install -D -m 755 "$(realpath "$library")" "$1$library"; done
}

# An image of the program, with what it is linked to and nothing else, as an archive of OCI's layout.
image() {
  local at=$WORK/oci blobs=$WORK/oci/blobs/sha256 size; mkdir -p "$blobs" "$WORK/layer/bin" "$WORK/layer/tmp"
  install -m 755 "$PROGRAM" "$WORK/layer/bin/keelson"; chmod 1777 "$WORK/layer/tmp"
  blob() { size=$(stat -c %s "$1") digest=$(sum "$1"); mv "$1" "$blobs/$digest"; }
  local unpacked created digest layer layer_size config
  created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%FT%TZ)
  libraries "$WORK/layer"
  (cd "$WORK/layer" && pack . -- *) >"$WORK/layer.tar"; unpacked=$(sum "$WORK/layer.tar")
  gzip -9n "$WORK/layer.tar"; blob "$WORK/layer.tar.gz"; layer=$digest layer_size=$size
  cat >"$WORK/config.json" <<TXT
{"architecture":"$OTHER","os":"linux","created":"$created","config":{"Env":["PATH=/bin"],"Entrypoint":["/bin/keelson"],"Cmd":["server"],"Volumes":{"/var/lib/keelson":{}},"Labels":{"org.opencontainers.image.title":"keelson","org.opencontainers.image.version":"$VERSION","org.opencontainers.image.licenses":"Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":["sha256:$unpacked"]}}
TXT
  blob "$WORK/config.json"; config=$digest
  cat >"$WORK/manifest.json" <<TXT
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$size},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:$layer","size":$layer_size}]}
TXT
  blob "$WORK/manifest.json"
  echo '{"imageLayoutVersion":"1.0.0"}' >"$at/oci-layout"
  cat >"$at/index.json" <<TXT
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$digest","size":$size,"platform":{"architecture":"$OTHER","os":"linux"},"annotations":{"io.containerd.image.name":"keelson.local/keelson:$VERSION","org.opencontainers.image.ref.name":"$VERSION"}}]}
TXT
  pack "$at" oci-layout index.json blobs >"$OUT/$NAME.oci.tar"
}
