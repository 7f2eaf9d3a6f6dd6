//! Runs another process in a container, as restricted as the container's own: namespaces, control groups, user,
//! capabilities, no-new-privileges and system call filter all come from the container's specification.
//!
//! `libcontainer` drops the filter here, so this is done by hand: a child of the shim enters the container and clones
//! the process as its sibling (entering a process namespace takes a clone), so that the shim is the one to reap it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use keelson_sys::cgroup::Cgroups;
use keelson_sys::process;
use keelson_sys::tty;
use nix::sched::CloneFlags;
use oci_spec::runtime::Spec;

use super::create::{external_command, run_external, set_oom_score};
use super::launch;
use super::program::{self, Plan};
use super::protocol::Exec;

/// The container that a process is to run in.
pub struct Target<'a> {
    /// Its first process, which the shim has not reaped.
    pub process: OwnedFd,
    pub pid: i32,
    pub bundle: &'a Path,
    pub cgroup: &'a str,
    pub oom_score_adj: Option<i32>,
    pub external: Option<&'a str>,
}

/// The body of the child. `streams` are the standard streams unless the process gets a terminal.
pub fn run(dir: &Path, exec: &Exec, target: &Target<'_>, streams: Option<[OwnedFd; 3]>, report: OwnedFd) -> i32 {
    let result = match target.external {
        None => built_in(exec, target, streams, &report),
        Some(program) => external(dir, exec, target, streams, &report, program),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            launch::report_error(report.as_fd(), error);
            1
        }
    }
}

/// Returns only the reason why not.
fn built_in(exec: &Exec, target: &Target<'_>, streams: Option<[OwnedFd; 3]>, report: &OwnedFd) -> Result<(), String> {
    let step = |what: &'static str| move |e: io::Error| format!("cannot {what}: {}", launch::lower(&e));
    let spec = Spec::load(target.bundle.join("config.json")).map_err(|e| e.to_string())?;
    let plan = Plan::of(&spec)?.for_command(&exec.args, exec.terminal);
    set_oom_score(target.oom_score_adj);
    let own = std::process::id() as i32;
    Cgroups::detect()
        .and_then(|c| c.attach_beside(target.cgroup, own, target.pid))
        .map_err(|e| e.to_string())?;
    process::enter_namespaces(target.process.as_fd(), plan.namespaces).map_err(step("enter the container"))?;
    if plan.namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        // The host's root is nobody there, and could own no terminal.
        process::set_ids(0, 0, &[]).map_err(step("become the pod's root"))?;
    }
    match streams {
        Some(streams) => {
            for (fd, target) in streams.iter().zip(0..) {
                process::dup_to(fd.as_fd(), target).map_err(step("set up the standard streams"))?;
            }
        }
        None => {
            let (master, end) = tty::open_pair().map_err(step("open a terminal"))?;
            nix::unistd::fchown(&end, Some(plan.uid.into()), None).map_err(|e| step("own the terminal")(e.into()))?;
            for target in 0..=2 {
                process::dup_to(end.as_fd(), target).map_err(step("set up the standard streams"))?;
            }
            let outcome = serde_json::to_vec(&launch::Outcome::default()).map_err(|e| e.to_string())?;
            process::send_with_fds(report.as_fd(), &outcome, &[master.as_raw_fd()])
                .map_err(step("hand over the terminal"))?;
        }
    }
    program::start(&plan, exec.terminal, report.as_fd())
}

/// `exec` of an OCI runtime such as runc.
fn external(
    dir: &Path,
    exec: &Exec,
    target: &Target<'_>,
    streams: Option<[OwnedFd; 3]>,
    report: &OwnedFd,
    program: &str,
) -> Result<(), String> {
    let spec = std::fs::read(target.bundle.join("config.json")).map_err(|e| e.to_string())?;
    let mut spec: serde_json::Value = serde_json::from_slice(&spec).map_err(|e| e.to_string())?;
    let mut wanted = spec["process"].take();
    wanted["args"] = serde_json::json!(exec.args);
    wanted["terminal"] = serde_json::json!(false);
    if exec.terminal {
        return Err(format!("a terminal in containers of {program} is not supported"));
    }
    let unique = format!("exec-{}", std::process::id());
    let process_file = target.bundle.join(format!("{unique}.json"));
    let pid_file = target.bundle.join(format!("{unique}.pid"));
    let log = target.bundle.join(format!("{unique}.log"));
    let written = serde_json::to_vec(&wanted).map_err(|e| e.to_string())?;
    std::fs::write(&process_file, written).map_err(|e| e.to_string())?;
    let mut command = external_command(program, dir, &log);
    command
        .args(["exec", "--detach", "--process"])
        .arg(&process_file)
        .arg("--pid-file")
        .arg(&pid_file);
    command.arg(&exec.container);
    if let Some([stdin, stdout, stderr]) = streams {
        command.stdin(stdin).stdout(stdout).stderr(stderr);
    }
    let result = run_external(&mut command, &log).and_then(|()| {
        let pid = std::fs::read_to_string(&pid_file).map_err(|e| e.to_string())?;
        let pid = pid
            .trim()
            .parse()
            .map_err(|_| format!("{program} wrote {pid:?} as pid"))?;
        launch::report_pid(report.as_fd(), pid).map_err(|e| e.to_string())
    });
    for file in [process_file, pid_file, log] {
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(format!("{}: {e}", file.display())),
            _ => {}
        }
    }
    result
}
