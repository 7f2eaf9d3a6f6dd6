#!/bin/bash
# image.sh OUTDIR: PostgreSQL from Debian's packages (apt), without a registry: OUTDIR/root, a root directory that `chroot` makes use of
# for psql, and OUTDIR/postgres.tar, an image of the same (example.local/postgres:15), whose program makes a database in /data if there is none.
set -euo pipefail
OUT=${1:?directory}; NAME=example.local/postgres:15; V=15
mkdir -p "$OUT"; cd "$OUT"; [ -e postgres.tar ] && [ -d root ] && exit 0
# Libraries are what its programs are linked to; those for compiling queries (LLVM), of which it makes use only if it is told, are left out.
LIBS=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances postgresql-$V postgresql-client-$V |
  grep -E '^lib' | grep -vE ':i386|-perl$|^lib(llvm|z3|perl|debian|text|pam-modules|elogind)' | sort -u)
LIBS=$(apt-cache policy $LIBS | awk '/^[a-z0-9]/ {p = $1} /Candidate: [0-9]/ {sub(":$", "", p); print p}')
rm -rf root debs; mkdir -p debs root/usr/{bin,sbin,lib,lib64}; for d in bin sbin lib lib64; do ln -s usr/$d root/$d; done
(cd debs; apt-get -o APT::Sandbox::User=root download -qq postgresql-$V postgresql-client-$V tzdata zlib1g busybox-static $LIBS)
for f in debs/*.deb; do dpkg-deb --fsys-tarfile "$f" | tar -x -C root --keep-directory-symlink; done
rm -rf debs root/usr/share/{doc,man,locale,lintian,bash-completion} root/usr/lib/postgresql/$V/lib/{bitcode,llvmjit*}
mkdir -p root/usr/local; ln -s ../lib/postgresql/$V/bin root/usr/local/bin
for a in $(root/bin/busybox --list); do [ -e "root/bin/$a" ] || ln -s busybox "root/bin/$a"; done
mkdir -p root/{tmp,etc,proc,sys,dev,data}; chmod 1777 root/tmp
printf 'root:x:0:0:root:/root:/bin/sh\npostgres:x:999:999:postgres:/data:/bin/sh\n' >root/etc/passwd
printf 'root:x:0:\npostgres:x:999:\n' >root/etc/group
cat >root/bin/serve <<'SH'
#!/bin/sh
# A database that was left half made is made anew: its directory has its name only once all of it is on the disk.
set -e
D=/data/database
if [ ! -e $D/PG_VERSION ]; then
  rm -rf $D.new; initdb -D $D.new --data-checksums --auth=trust --no-locale --encoding=UTF8 --username=postgres
  cat >>$D.new/postgresql.conf <<'CONF'
listen_addresses = '*'
unix_socket_directories = '/tmp'
shared_buffers = 64MB
max_wal_size = 256MB
checkpoint_timeout = 30s
jit = off
CONF
  echo 'host all all all trust' >>$D.new/pg_hba.conf
  sync; mv $D.new $D; sync
fi
chmod 700 $D   # whoever mounts a volume for an fsGroup opens it to the group
exec postgres -D $D
SH
chmod 755 root/bin/serve
SAME=(--sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner)
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT; mkdir "$W/image"
sha() { sha256sum "$1" | cut -d' ' -f1; }
tar -C root "${SAME[@]}" -cf "$W/layer.tar" .; L=$(sha "$W/layer.tar"); mv "$W/layer.tar" "$W/image/$L.tar"
# As the official image has it: SIGINT ends sessions and writes what is in memory, SIGTERM would wait for clients.
printf '{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z","config":{"User":"999:999","StopSignal":"SIGINT","Env":["PATH=/usr/local/bin:/bin"],"Cmd":["serve"],"ExposedPorts":{"5432/tcp":{}}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$L" >"$W/config.json"
C=$(sha "$W/config.json"); mv "$W/config.json" "$W/image/$C.json"
printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["%s.tar"]}]' "$C" "$NAME" "$L" >"$W/image/manifest.json"
tar -C "$W/image" "${SAME[@]}" -cf postgres.tar.new .; mv postgres.tar.new postgres.tar
echo "$OUT/postgres.tar: $NAME"
