//! The Kubernetes container runtime interface (CRI v1): messages, client and server, in process or over a unix socket.
