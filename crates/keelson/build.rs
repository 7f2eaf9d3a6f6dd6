//! Links the program to a fixed address, as Go programs are. Every pod has a shim that is this program again: relocating it at
//! each start would dirty 2 MiB a shim, which are shared pages this way.

fn main() {
    println!("cargo:rustc-link-arg-bins=-no-pie");
    println!("cargo:rerun-if-changed=build.rs");
}
