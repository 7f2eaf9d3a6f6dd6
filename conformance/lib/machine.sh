#!/bin/bash
# machine.sh DIR COMMAND …: the first process of a node that has processes, mounts and a /var/lib of its own, as a machine has. Upstream's
# tests of volumes and plug-ins enter pid 1's mounts and look for /var/lib/kubelet. Ends with the command, and everything in it with it.
set -e
lib=$1/lib; shift; mkdir -p $lib
mount --make-rprivate /; mount --bind $lib /var/lib; mount --make-rshared /
"$@" & child=$!
trap 'kill -TERM $child' TERM
until wait $child; rc=$?; ! kill -0 $child 2>/dev/null; do :; done
exit $rc
