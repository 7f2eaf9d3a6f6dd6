//! Runs another process in a container, as restricted as the container's own: namespaces, control groups, user,
//! capabilities, no-new-privileges and system call filter all come from the container's specification.
//!
//! `libcontainer` drops the filter here, so this is done by hand: a child of the shim enters the container and clones
//! the process as its sibling (entering a process namespace takes a clone), so that the shim is the one to reap it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use keelson_sys::cgroup::Cgroups;
use keelson_sys::process::{self, Capabilities, Parent};
use keelson_sys::tty;
use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, Spec};

use super::create::{external_command, run_external, set_oom_score};
use super::launch;
use super::protocol::Exec;

/// The container that a process is to run in.
pub struct Target<'a> {
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

fn built_in(exec: &Exec, target: &Target<'_>, streams: Option<[OwnedFd; 3]>, report: &OwnedFd) -> Result<(), String> {
    let spec = Spec::load(target.bundle.join("config.json")).map_err(|e| e.to_string())?;
    let plan = Plan::of(&spec)?;
    let pidfd = process::pidfd_open(target.pid).map_err(|e| format!("the container has ended: {e}"))?;
    set_oom_score(target.oom_score_adj);
    let own = std::process::id() as i32;
    Cgroups::detect()
        .and_then(|c| c.attach(target.cgroup, own))
        .map_err(|e| e.to_string())?;
    process::enter_namespaces(pidfd.as_fd(), plan.namespaces)
        .map_err(|e| format!("cannot enter the container: {}", launch::lower(&e)))?;
    drop(pidfd);
    let pid = process::fork_single_threaded(Parent::CallersParent, CloneFlags::empty(), || {
        let Err(error) = inside(exec, &plan, streams, report);
        launch::report_error(report.as_fd(), error);
        // What shells answer for a command that cannot be run.
        127
    })
    .map_err(|e| e.to_string())?;
    launch::report_pid(report.as_fd(), pid).map_err(|e| e.to_string())
}

/// What of the container's specification a process needs.
struct Plan {
    namespaces: CloneFlags,
    env: Vec<String>,
    cwd: std::path::PathBuf,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    umask: Option<u32>,
    capabilities: Capabilities,
    last_capability: u32,
    no_new_privileges: bool,
    seccomp: Option<LinuxSeccomp>,
}

impl Plan {
    fn of(spec: &Spec) -> Result<Plan, String> {
        let process = spec.process().as_ref().ok_or("no process in the specification")?;
        let linux = spec.linux().as_ref().ok_or("no linux part in the specification")?;
        let mut namespaces = CloneFlags::empty();
        for namespace in linux.namespaces().iter().flatten() {
            namespaces |= match namespace.typ() {
                LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
                LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
                LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
                LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
                LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
                LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
                LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
                LinuxNamespaceType::Time => CloneFlags::empty(),
            };
        }
        let sets = process.capabilities().clone().unwrap_or_default();
        let mask = |set: &Option<oci_spec::runtime::Capabilities>| {
            set.iter()
                .flatten()
                .filter_map(|c| crate::capability::number(&c.to_string()))
                .fold(0, |m, n| m | 1 << n)
        };
        let user = process.user();
        Ok(Plan {
            namespaces,
            env: process.env().clone().unwrap_or_default(),
            cwd: process.cwd().clone(),
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask(),
            capabilities: Capabilities {
                bounding: mask(sets.bounding()),
                effective: mask(sets.effective()),
                permitted: mask(sets.permitted()),
                inheritable: mask(sets.inheritable()),
                ambient: mask(sets.ambient()),
            },
            last_capability: process::last_capability(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            seccomp: linux.seccomp().clone(),
        })
    }
}

/// In the process itself; returns only on failure.
fn inside(
    exec: &Exec,
    plan: &Plan,
    streams: Option<[OwnedFd; 3]>,
    report: &OwnedFd,
) -> Result<std::convert::Infallible, String> {
    let step = |what: &'static str| move |e: io::Error| format!("cannot {what}: {}", launch::lower(&e));
    nix::unistd::setsid().map_err(|e| step("start a session")(e.into()))?;
    match streams {
        Some(streams) => {
            for (fd, target) in streams.iter().zip(0..) {
                process::dup_to(fd.as_fd(), target).map_err(step("set up the standard streams"))?;
            }
        }
        None => {
            let (master, end) = tty::open_pair().map_err(step("open a terminal"))?;
            nix::unistd::fchown(&end, Some(plan.uid.into()), None).map_err(|e| step("own the terminal")(e.into()))?;
            tty::set_controlling_terminal(end.as_fd()).map_err(step("set the controlling terminal"))?;
            for target in 0..=2 {
                process::dup_to(end.as_fd(), target).map_err(step("set up the standard streams"))?;
            }
            use std::os::fd::AsRawFd;
            let outcome = serde_json::to_vec(&launch::Outcome::default()).map_err(|e| e.to_string())?;
            process::send_with_fds(report.as_fd(), &outcome, &[master.as_raw_fd()])
                .map_err(step("hand over the terminal"))?;
        }
    }
    process::close_on_exec_from(3).map_err(step("close descriptors"))?;
    if let Some(umask) = plan.umask {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
    }
    // Before the user changes, as runc does: the user need not be able to enter the directory himself.
    let entered = nix::unistd::chdir(&plan.cwd);
    process::set_ids(plan.uid, plan.gid, &plan.groups).map_err(step("change the user"))?;
    if entered.is_err() {
        nix::unistd::chdir(&plan.cwd).map_err(|e| format!("chdir to cwd ({:?}): {}", plan.cwd, e.desc()))?;
    }
    // Without no-new-privileges the filter needs CAP_SYS_ADMIN, which goes next; with it, later is better, since
    // fewer of our own calls have to pass the filter.
    if !plan.no_new_privileges {
        restore_effective(plan).map_err(step("raise capabilities"))?;
        filter(plan)?;
    }
    process::set_capabilities(&plan.capabilities, plan.last_capability).map_err(step("set capabilities"))?;
    if plan.no_new_privileges {
        process::set_no_new_privileges().map_err(step("set no-new-privileges"))?;
        filter(plan)?;
    }
    let mut env = plan.env.clone();
    if exec.terminal {
        env.retain(|e| !e.starts_with("TERM="));
        env.push("TERM=xterm".to_owned());
    }
    let program = launch::find_program(exec.args.first().map_or("", String::as_str), &env)?;
    Err(launch::exec(&program, &exec.args, &env))
}

/// A change of user empties the effective set.
fn restore_effective(plan: &Plan) -> io::Result<()> {
    let all = process::own_bounding_set();
    let full = Capabilities {
        bounding: all,
        effective: all,
        permitted: all,
        inheritable: 0,
        ambient: 0,
    };
    process::set_capabilities(&full, plan.last_capability)
}

fn filter(plan: &Plan) -> Result<(), String> {
    let Some(seccomp) = &plan.seccomp else { return Ok(()) };
    libcontainer::seccomp::initialize_seccomp(seccomp)
        .map(drop)
        .map_err(|e| format!("cannot install the system call filter: {e}"))
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
