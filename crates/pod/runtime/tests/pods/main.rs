//! Pods on this machine, through CRI: a busybox image made from the machine's own, real namespaces, control groups and
//! overlays, and shims that outlive the server. Needs root and `busybox` (statically linked); says so if it lacks them.
//!
//! The program is its own shim and its own cell, so it has no test harness: `cargo test -p keelson-runtime --test pods [-- name…]`.

mod archives;
mod basics;
mod beside;
mod cells;
mod crashes;
mod devices;
mod isolation;
mod layers;
mod peers;
mod registry;
mod selinux;
mod series;
mod streams;
mod support;
mod upgrades;
mod users;

use std::ffi::OsString;
use std::process::ExitCode;

use nix::sched::CloneFlags;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|a| a == "shim") {
        keelson_runtime::shim::main(args.into_iter().skip(1));
    }
    if args.first().is_some_and(|a| a == "cell") {
        keelson_runtime::cell::main(args.into_iter().skip(1));
    }
    if let [first, dir, cgroup] = args.as_slice()
        && first == "server"
    {
        return crashes::server(dir.as_ref(), &cgroup.to_string_lossy());
    }
    args.retain(|a| !a.to_string_lossy().starts_with("--"));
    if let Err(why) = prerequisites() {
        println!("cannot test pods: {why}");
        println!("0 passed, 1 failed");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a tokio runtime");
    if let Err(why) = runtime.block_on(support::loopback()) {
        println!("cannot test pods: {why:#}\n0 passed, 1 failed");
        return ExitCode::FAILURE;
    }
    let failed = runtime.block_on(support::run_all(
        &[
            basics::ALL,
            isolation::ALL,
            devices::ALL,
            beside::ALL,
            streams::ALL,
            layers::ALL,
            cells::ALL,
            registry::ALL,
            selinux::ALL,
            peers::ALL,
            series::ALL,
            upgrades::ALL,
            users::ALL,
            crashes::ALL,
        ]
        .concat(),
        &args,
    ));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Own mount and network namespaces: what a test leaves behind ends with it.
fn prerequisites() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("it takes root".into());
    }
    if !support::busybox().exists() {
        return Err("it takes busybox: apt-get install busybox-static".into());
    }
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
    use keelson_sys::mount::{Propagation, set_propagation};
    let root = std::path::Path::new("/");
    set_propagation(root, Propagation::Private).map_err(|e| e.to_string())?;
    set_propagation(root, Propagation::Shared).map_err(|e| e.to_string())
}
