#!/bin/bash
# image.sh OUTDIR: makes the image archive web.tar (example.local/web:1) from Debian's busybox-static: a shell, the usual
# tools and a small web server. No registry is needed.
set -euo pipefail
OUT=${1:?directory}; NAME=example.local/web:1
command -v busybox >/dev/null && [ -e /usr/share/doc/busybox-static ] || { apt-get update -qq; apt-get install -y -qq busybox-static >/dev/null; }
mkdir -p "$OUT"; W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
mkdir -p "$W"/root/{bin,etc,tmp,www,root,proc,sys,dev}; chmod 1777 "$W/root/tmp"
cp "$(command -v busybox)" "$W/root/bin/busybox"
for a in $(busybox --list); do [ "$a" = busybox ] || ln -sf busybox "$W/root/bin/$a"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$W/root/etc/passwd"
printf 'root:x:0:\nnobody:x:65534:\n' >"$W/root/etc/group"
echo 'hello from the image' >"$W/root/www/index.html"
REPRODUCIBLE=(--sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner)
tar -C "$W/root" "${REPRODUCIBLE[@]}" -cf "$W/layer.tar" .
sha() { sha256sum "$1" | cut -d' ' -f1; }
L=$(sha "$W/layer.tar"); mkdir "$W/image"; mv "$W/layer.tar" "$W/image/$L.tar"
printf '{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z","config":{"Env":["PATH=/bin"],"Cmd":["httpd","-f","-v","-p","8080","-h","/www"],"ExposedPorts":{"8080/tcp":{}}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$L" >"$W/config.json"
C=$(sha "$W/config.json"); mv "$W/config.json" "$W/image/$C.json"
printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["%s.tar"]}]' "$C" "$NAME" "$L" >"$W/image/manifest.json"
tar -C "$W/image" "${REPRODUCIBLE[@]}" -cf "$OUT/web.tar" .
echo "$OUT/web.tar: $NAME"
