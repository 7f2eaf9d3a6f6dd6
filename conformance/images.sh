#!/bin/bash
# Builds every container image that the tests of our lists use, offline, from Debian packages (apt) and Go programs
# built by build.sh, and writes one archive per image to $OUT (default $LAB/images).
# Images whose programs were not built (see build.sh) are left out, with a line that says so.
# Each *.tar is BOTH an OCI image layout (oci-layout, index.json with io.containerd.image.name, blobs/sha256/*) and a
# docker-save archive (manifest.json with RepoTags): `ctr -n k8s.io images import X.tar`, `skopeo copy docker-archive:X.tar`
# and `podman load` all take it. Output is reproducible for the same inputs (mtime 0, sorted).
# Usage: images.sh [name-regex]      (re-runnable; package downloads are cached in build/debs)
set -euo pipefail
export PATH=$PATH:/usr/local/go/bin; . "$(dirname "$0")/lib/env.sh"; OUT=${OUT:-$P/images}; DEBS=$P/build/debs; ROOT=$P/build/debroot
SRC=$(go mod download -json k8s.io/kubernetes@v1.37.2 | jq -r .Dir)
mkdir -p $OUT $DEBS

# 1. a Debian root made with dpkg -x only (no maintainer scripts): source of dynamically linked programs
PK="bind9-dnsutils bind9-host curl netcat-openbsd iproute2 iperf bash socat util-linux nginx nginx-common stress perl-base libc-bin
 coreutils iputils-ping iptables conntrack busybox-static procps ca-certificates netbase"
if [ ! -e $ROOT/.done ]; then
  rm -rf $ROOT; mkdir -p $ROOT/usr/{bin,sbin,lib,lib64}; for d in bin sbin lib lib64; do ln -s usr/$d $ROOT/$d; done
  L=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances $PK | grep '^[a-z0-9]' | grep -vE ':i386|^(debconf|python3.*|systemd|dbus.*|perl|perl-modules.*)$' | sort -u)
  R=$(apt-cache policy $L | awk '/^[a-z0-9]/{p=$1} /Candidate: [0-9]/{sub(":$","",p); print p}')
  ( cd $DEBS; for p in $R; do ls ${p}_*.deb >/dev/null 2>&1 || echo $p; done | xargs -r apt-get -o APT::Sandbox::User=root download -qq )
  for p in $R; do f=$(ls $DEBS/${p}_*.deb | tail -1); dpkg-deb --fsys-tarfile $f | tar -x -C $ROOT --keep-directory-symlink; done
  touch $ROOT/.done
fi
# 1b. busybox 1.37.0 from its unpatched source (Debian source package), default config + static, as docker-library builds it:
#     Debian's own busybox-static prefers applets in its shell and drops environment variables such as "data-1" (2 conformance tests)
BBD=$P/build/busybox
if [ ! -x $BBD/busybox ]; then
  T=$P/build/trixie; mkdir -p $T/lists/partial; ( cd $T
  M=$(apt-get indextargets --format '$(URI)' | sed -n 's#/dists/.*##p' | grep -v security | head -1)   # this machine's own mirror
  for k in deb deb-src; do echo "$k [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $M trixie main"; done >sources.list
  O="-o APT::Sandbox::User=root -o Dir::Etc::sourcelist=$T/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$T/lists -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache="
  apt-get $O update -qq; apt-get $O source --download-only -qq busybox )
  rm -rf $BBD; mkdir $BBD; tar -xf $T/busybox_1.37.0.orig.tar.bz2 -C $BBD --strip-components=1
  ( cd $BBD; make defconfig >/dev/null 2>&1; sed -i 's/^# CONFIG_STATIC is not set/CONFIG_STATIC=y/; s/^CONFIG_TC=y/# CONFIG_TC is not set/; s/^CONFIG_FEATURE_SYNC_FANCY=y/# CONFIG_FEATURE_SYNC_FANCY is not set/' .config; set +o pipefail; yes '' | make -j$(nproc) busybox >make.log 2>&1; [ -x busybox ] )
fi
# 2. pause, from the upstream C source
if [ ! -x $BIN/img-pause ]; then
  gcc -Os -Wall -static -s -DVERSION=v3.10.2 -o $BIN/img-pause $SRC/build/pause/linux/pause.c
fi
export SRC BIN OUT ROOT BBD
exec python3 - "${1:-.}" <<'PY'
import os,sys,io,re,json,tarfile,hashlib,subprocess,stat
SRC,BIN,OUT,ROOT=(os.environ[k] for k in('SRC','BIN','OUT','ROOT'))
E2E='registry.k8s.io/e2e-test-images/'
def sha(b): return hashlib.sha256(b).hexdigest()
class Layer:
    def __init__(s): s.e={}; s.missing=None
    def dir(s,p,mode=0o755): 
        if p not in s.e: s._parents(p); s.e[p]=('d',None,mode)
        return s
    def _parents(s,p):
        d=os.path.dirname(p)
        if d and d not in s.e: s._parents(d); s.e[d]=('d',None,0o755)
    def data(s,p,b,mode=0o644): s._parents(p); s.e[p]=('f',b if isinstance(b,bytes) else b.encode(),mode); return s
    def file(s,p,src,mode=None):
        if not os.path.exists(src): s.missing=src; return s
        s._parents(p); s.e[p]=('s',src,mode or stat.S_IMODE(os.stat(src).st_mode)); return s
    def link(s,p,t): s._parents(p); s.e[p]=('l',t,0o777); return s
    def tree(s,src,dst):
        for d,ds,fs in os.walk(src):
            for f in fs+[x for x in ds if os.path.islink(os.path.join(d,x))]:
                a=os.path.join(d,f); q=os.path.join(dst,os.path.relpath(a,src))
                s.link(q,os.readlink(a)) if os.path.islink(a) else s.file(q,a)
        return s
    def dyn(s,*progs): # program of the Debian root + its shared libraries, at the same paths
        for p in progs:
            s.file(p.lstrip('/'),real(p),0o755)
            r=subprocess.run(['chroot',ROOT,'/lib64/ld-linux-x86-64.so.2','--list',p],capture_output=True,text=True)
            if r.returncode: continue   # static or script
            for l in r.stdout.splitlines():
                m=re.search(r'(?:=> )?(/\S+) \(0x',l)
                if m: s.file(m.group(1).lstrip('/'),real(m.group(1)),0o755)
        if progs: s.file('lib64/ld-linux-x86-64.so.2',real('/lib64/ld-linux-x86-64.so.2'),0o755)
        return s
    def blob(s):
        b=io.BytesIO(); t=tarfile.open(fileobj=b,mode='w',format=tarfile.PAX_FORMAT)
        for p in sorted(s.e):
            k,v,m=s.e[p]; i=tarfile.TarInfo(p); i.mode=m; i.mtime=0; i.uid=i.gid=0; i.uname=i.gname=''
            if k=='d': i.type=tarfile.DIRTYPE; t.addfile(i)
            elif k=='l': i.type=tarfile.SYMTYPE; i.linkname=v; t.addfile(i)
            else:
                c=open(v,'rb').read() if k=='s' else v
                i.size=len(c); t.addfile(i,io.BytesIO(c))
        t.close(); return b.getvalue()
def real(p): # resolve symlinks inside ROOT
    parts=p.strip('/').split('/'); cur=ROOT; n=0
    while parts:
        x=os.path.join(cur,parts.pop(0))
        if os.path.islink(x):
            n+=1; assert n<40; t=os.readlink(x)
            if t.startswith('/'): cur=ROOT
            parts=t.strip('/').split('/')+parts
            # relative targets resolve from cur; normalise ".."
            while parts and parts[0]=='..': parts.pop(0); cur=os.path.dirname(cur)
        else: cur=x
    return cur
PATHENV=['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin']
def write(names,layers,entry=None,cmd=None,user=None,env=PATHENV,ports=(),workdir=None,stop=None):
    name=names[0]; fn=re.sub(r'[/:]','_',name.replace('registry.k8s.io/','',1))+'.tar'
    if not re.search(sys.argv[1],name): return
    if any(l.missing and l is not cored for l in layers): print('left out:',name,'needs',[l.missing for l in layers if l.missing]); return
    layers=[l for l in layers if not l.missing]
    cfg={}
    if entry: cfg['Entrypoint']=entry
    if cmd: cfg['Cmd']=cmd
    if user: cfg['User']=user
    if env: cfg['Env']=env
    if ports: cfg['ExposedPorts']={p+'/tcp':{} for p in ports}
    if workdir: cfg['WorkingDir']=workdir
    if stop: cfg['StopSignal']=stop
    bl=[l.blob() for l in layers]
    conf=json.dumps({'architecture':'amd64','os':'linux','created':'1970-01-01T00:00:00Z','config':cfg,
        'rootfs':{'type':'layers','diff_ids':['sha256:'+sha(b) for b in bl]},'history':[{'created':'1970-01-01T00:00:00Z','created_by':'images.sh'}]*len(bl)},sort_keys=True).encode()
    man=json.dumps({'schemaVersion':2,'mediaType':'application/vnd.oci.image.manifest.v1+json',
        'config':{'mediaType':'application/vnd.oci.image.config.v1+json','digest':'sha256:'+sha(conf),'size':len(conf)},
        'layers':[{'mediaType':'application/vnd.oci.image.layer.v1.tar','digest':'sha256:'+sha(b),'size':len(b)} for b in bl]},sort_keys=True).encode()
    idx=json.dumps({'schemaVersion':2,'mediaType':'application/vnd.oci.image.index.v1+json','manifests':[
        {'mediaType':'application/vnd.oci.image.manifest.v1+json','digest':'sha256:'+sha(man),'size':len(man),'platform':{'architecture':'amd64','os':'linux'},
         'annotations':{'io.containerd.image.name':n,'org.opencontainers.image.ref.name':n.rsplit(':',1)[1]}} for n in names]}).encode()
    dm=json.dumps([{'Config':'blobs/sha256/'+sha(conf),'RepoTags':names,'Layers':['blobs/sha256/'+sha(b) for b in bl]}]).encode()
    files=[('oci-layout',b'{"imageLayoutVersion":"1.0.0"}'),('index.json',idx),('manifest.json',dm)]
    files+=sorted({('blobs/sha256/'+sha(b),b) for b in bl+[conf,man]})
    t=tarfile.open(os.path.join(OUT,fn+'.tmp'),'w')
    for n,b in files:
        i=tarfile.TarInfo(n); i.size=len(b); i.mode=0o644; t.addfile(i,io.BytesIO(b))
    t.close(); os.rename(os.path.join(OUT,fn+'.tmp'),os.path.join(OUT,fn))
    print(f'{os.path.getsize(os.path.join(OUT,fn))>>20:5d} MiB  {fn}  {" ".join(names)}',flush=True)

def etc(l,users='',groups='',gusers=''):
    l.data('etc/passwd','root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n'+users)
    l.data('etc/group','root:x:0:\ndaemon:x:1:\ntty:x:5:\nnobody:x:65534:\nnogroup:x:65533:\n'+groups)
    l.data('etc/shadow','root:*:::::::\nnobody:*:::::::\n',0o640)
    l.data('etc/nsswitch.conf','passwd: files\ngroup: files\nhosts: files dns\n')
    for f in('services','protocols'): l.file('etc/'+f,real('/etc/'+f),0o644)
    l.dir('tmp',0o1777).dir('var/tmp',0o1777).dir('root',0o700).dir('home').dir('proc',0o555).dir('sys',0o555).dir('dev').dir('run').dir('var/log').dir('etc').dir('usr/bin').dir('usr/sbin').dir('var/spool').dir('var/www')
    return l
BB=os.environ['BBD']+'/busybox'
applets=subprocess.run([BB,'--list'],capture_output=True,text=True).stdout.split()
skip={'busybox','init','linuxrc','poweroff','reboot','halt'}
def bb(users='',groups=''):
    l=etc(Layer(),users,groups); l.file('bin/busybox',BB,0o755)
    for a in applets:
        if a not in skip: l.link('bin/'+a,'busybox')
    l.link('usr/bin/env','../../bin/env'); return l
base=bb()
cored=Layer().file('coredns',BIN+'/coredns',0o755)
# pause
write(['registry.k8s.io/pause:3.10.2','registry.k8s.io/pause:3.10.1','registry.k8s.io/pause:3.10'],[Layer().file('pause',BIN+'/img-pause',0o755)],entry=['/pause'],user='65535:65535')
# busybox (official image: CMD sh, no entrypoint)
write([E2E+'busybox:1.37.0-2'],[base],cmd=['sh'])
# agnhost
tools=Layer().dyn('/bin/bash','/usr/bin/dig','/usr/bin/nslookup','/usr/bin/host','/usr/bin/curl','/usr/bin/nc.openbsd','/usr/bin/ss','/usr/bin/ip','/usr/bin/iperf','/usr/bin/socat','/usr/bin/getent','/usr/bin/nsenter','/usr/bin/unshare','/usr/bin/ipcs','/usr/bin/ipcmk','/usr/bin/ipcrm','/usr/bin/lscpu','/usr/bin/findmnt','/usr/bin/flock','/usr/bin/prlimit','/usr/bin/setpriv','/usr/bin/taskset','/usr/bin/ping','/usr/bin/timeout')
for a,b in(('bin/ss','../usr/bin/ss'),('bin/ip','../usr/bin/ip'),('usr/bin/nc','nc.openbsd'),('bin/nc','../usr/bin/nc.openbsd'),('bin/nslookup','../usr/bin/nslookup'),('bin/nsenter','../usr/bin/nsenter'),('bin/unshare','../usr/bin/unshare'),('bin/taskset','../usr/bin/taskset'),('bin/setpriv','../usr/bin/setpriv'),('bin/ping','../usr/bin/ping'),('bin/timeout','../usr/bin/timeout'),('usr/local/bin/iperf','/usr/bin/iperf')): tools.link(a,b)
# upstream's agnhost, kitten and nautilus are built on alpine:3.21; a conformance test reads "Alpine Linux" in kitten's /etc/os-release
agbase=bb('user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n','user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n').dir('home/user-defined-in-image').data('etc/os-release','NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.21.0\nPRETTY_NAME="Alpine Linux v3.21 (file of a stand-in image made from Debian packages by images.sh)"\n')
I=SRC+'/test/images/'
ag=Layer().file('agnhost',BIN+'/agnhost',0o755).link('agnhost-2','agnhost').dir('uploads').file('localhost.crt',I+'agnhost/porter/localhost.crt',0o644).file('localhost.key',I+'agnhost/porter/localhost.key',0o644)
A=dict(entry=['/agnhost'],cmd=['pause'],ports=('80','8080','8081','9376','5000'))
write([E2E+'agnhost:2.66.1',E2E+'agnhost:2.55'],[agbase,tools,cored,ag],**A)
for n in('kitten','nautilus'):
    l=Layer()
    for f in os.listdir(I+n+'/html'): l.file(f,I+n+'/html/'+f,0o644)
    write([E2E+n+':1.8'],[agbase,tools,cored,ag,l],**{**A,'cmd':['test-webserver']})
# Debian-like images
write([E2E+'glibc-dns-testing:2.1.1'],[base,tools,cored],cmd=['bash'])
write([E2E+'ipc-utils:1.4'],[base,Layer().dyn('/usr/bin/ipcs','/usr/bin/ipcmk','/usr/bin/ipcrm')],cmd=['/bin/sh'])
write([E2E+'nonroot:1.5'],[base],cmd=['/bin/sh'],user='1234')
write([E2E+'nonewprivs:1.4'],[base,Layer().file('usr/local/bin/nnp',BIN+'/img-nnp',0o6755)],cmd=['nnp'])
write([E2E+'regression-issue-74839:1.5'],[base,Layer().file('regression-issue-74839',BIN+'/img-regression-issue-74839',0o755)],entry=['/regression-issue-74839'])
write([E2E+'resource-consumer:1.14'],[base,Layer().dyn('/usr/bin/stress').file('consumer',BIN+'/img-consumer',0o755).file('consume-cpu',BIN+'/img-consume-cpu',0o755)],entry=['/consumer'],ports=('8080',))
write([E2E+'perl:5.26'],[base,Layer().dyn('/usr/bin/perl').tree(ROOT+'/usr/lib/x86_64-linux-gnu/perl-base','usr/lib/x86_64-linux-gnu/perl-base')],cmd=['perl'])
write([E2E+'sample-apiserver:1.29.2'],[base,Layer().file('sample-apiserver',BIN+'/sample-apiserver',0o755)],entry=['/sample-apiserver'])
write(['registry.k8s.io/sig-storage/hostpathplugin:v1.17.1'],[base,Layer().file('hostpathplugin',BIN+'/img-hostpathplugin',0o755)],entry=['/hostpathplugin'])
write(['registry.k8s.io/etcd:3.7.0-0'],[base,Layer().file('usr/local/bin/etcd',BIN+'/etcd',0o755).file('usr/local/bin/etcdctl',BIN+'/etcdctl',0o755)],cmd=['/usr/local/bin/etcd'],ports=('2379','2380'))
# The suite of the Gateway API (build.sh gateway): one program under the versions that its manifests name.
write(['registry.k8s.io/gateway-api/echo-basic:'+v for v in('v1.5.1','v1.6.0-dev.2','v1.6.0-dev.3')],[Layer().file('echo-basic',BIN+'/img-echo-basic',0o755)],entry=['/echo-basic'],user='65532:65532')
if not cored.missing: write(['registry.k8s.io/coredns/coredns:v1.15.0','registry.k8s.io/coredns/coredns:v1.12.2'],[Layer().dir('etc').dir('tmp',0o1777),cored],entry=['/coredns'],ports=('53',))
# nginx, laid out as in the Docker official image
nb=bb('nginx:x:101:101:nginx:/nonexistent:/bin/false\n','nginx:x:101:\n')
ng=Layer().dyn('/usr/sbin/nginx').file('etc/nginx/mime.types',real('/etc/nginx/mime.types'),0o644)
ng.data('etc/nginx/nginx.conf','''user nginx;
worker_processes auto;
error_log /var/log/nginx/error.log notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http { include /etc/nginx/mime.types; default_type application/octet-stream; access_log /var/log/nginx/access.log; sendfile on; keepalive_timeout 65; include /etc/nginx/conf.d/*.conf; }
''').data('etc/nginx/conf.d/default.conf','''server { listen 80; listen [::]:80; server_name localhost;
  location / { root /usr/share/nginx/html; index index.html index.htm; }
  error_page 500 502 503 504 /50x.html; location = /50x.html { root /usr/share/nginx/html; } }
''').data('usr/share/nginx/html/index.html','<!DOCTYPE html>\n<html>\n<head>\n<title>Welcome to nginx!</title>\n</head>\n<body>\n<h1>Welcome to nginx!</h1>\n</body>\n</html>\n')
ng.data('usr/share/nginx/html/50x.html','<html><body>error</body></html>\n').dir('var/lib/nginx').dir('var/cache/nginx').link('var/log/nginx/access.log','/dev/stdout').link('var/log/nginx/error.log','/dev/stderr')
ng.data('docker-entrypoint.sh','#!/bin/sh\nset -e\nexec "$@"\n',0o755)
for v,ver in(('1.27.0-2','1.27.0'),('1.28.0-2','1.28.0')):
    write([E2E+'nginx:'+v],[nb,ng,Layer().data('etc/nginx/VERSION',ver+'\n')],entry=['/docker-entrypoint.sh'],cmd=['nginx','-g','daemon off;'],env=PATHENV+['NGINX_VERSION='+ver],ports=('80',),stop='SIGQUIT')
PY
