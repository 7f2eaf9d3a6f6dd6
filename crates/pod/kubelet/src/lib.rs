//! Pods on a node: sources, a worker per pod, pure plans, CRI calls, probes, volumes, status, the kubelet server.
