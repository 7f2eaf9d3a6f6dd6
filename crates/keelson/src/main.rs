//! Kubernetes as one program.

fn main() {}
