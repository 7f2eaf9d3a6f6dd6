//! What developers run: tidy checks, schema generation, conformance lists.

fn main() {}
