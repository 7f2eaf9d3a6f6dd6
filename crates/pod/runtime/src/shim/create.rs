//! Makes a container and starts it, in a process of its own that ends right after.
//!
//! `libcontainer` clones and then allocates, changes its process's dumpability and OOM score, and leaves memory behind:
//! a throw-away child keeps all of that out of the shim. With `as_sibling` the container's first process becomes a
//! child of the shim nevertheless.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use keelson_sys::cgroup::Cgroups;
use keelson_sys::detached;
use keelson_sys::mount::{Propagation, set_propagation};
use keelson_sys::path::set_xattr;
use keelson_sys::process;
use keelson_sys::tty;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::notify_socket::NOTIFY_FILE;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::sched::CloneFlags;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::launch;
use super::program::{self, Plan};
use super::protocol::{MountPropagation, Start};
use super::staging;
use crate::selinux::kernel::ATTRIBUTE;

/// `libcontainer`'s and external runtimes' own state, in the sandbox's state directory.
pub const OCI_ROOT: &str = "oci";
/// The specification in a bundle.
const SPEC: &str = "config.json";

/// A process namespace that the container joins.
pub struct Joined {
    pub namespace: OwnedFd,
    pub proc: Proc,
}

/// Where there is a /proc of the namespace.
pub enum Proc {
    /// Mounted at a path.
    At(PathBuf),
    /// In the mount namespace of a container, where that has it.
    In(OwnedFd),
}

impl Joined {
    pub fn descriptors(&self) -> Vec<RawFd> {
        let of_proc = match &self.proc {
            Proc::At(_) => None,
            Proc::In(namespace) => Some(namespace.as_raw_fd()),
        };
        of_proc.into_iter().chain([self.namespace.as_raw_fd()]).collect()
    }
}

/// The body of the child. `streams` are the container's standard streams unless it has a terminal.
pub fn run(dir: &Path, start: &Start, joined: Option<Joined>, streams: Option<[OwnedFd; 3]>, report: OwnedFd) -> i32 {
    let result = match &start.external {
        None => built_in(dir, start, joined, streams, &report),
        Some(program) => external(dir, start, streams, &report, program),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            launch::report_error(report.as_fd(), error);
            1
        }
    }
}

fn built_in(
    dir: &Path,
    start: &Start,
    joined: Option<Joined>,
    streams: Option<[OwnedFd; 3]>,
    report: &OwnedFd,
) -> Result<(), String> {
    set_oom_score(start.oom_score_adj);
    let mut bundle = PathBuf::from(&start.bundle);
    let mut late = None;
    if let Some(joined) = &joined {
        let proc = proc_of(joined, &bundle).map_err(|e| format!("cannot find /proc of the joined namespace: {e}"))?;
        let spec = Spec::load(bundle.join(SPEC)).map_err(chain)?;
        late = Some(Late {
            plan: Arc::new(Plan::of(&spec)?),
            namespace: joined.namespace.as_raw_fd(),
            terminal: start.terminal,
        });
        bundle = setup_bundle(&bundle, &proc).map_err(text)?;
    }
    let root = dir.join(OCI_ROOT);
    let mut stage = None;
    let spec = read_spec(&bundle).map_err(text)?;
    if staging::is_for(&spec) {
        stage = Some(staged(spec, &mut bundle, dir)?);
    }
    let console = start
        .terminal
        .then(|| Console::listen(dir, &start.container))
        .transpose()
        .map_err(text)?;
    let mut builder = ContainerBuilder::new(start.container.clone(), SyscallType::Linux)
        .with_executor(Payload {
            report: report.as_raw_fd(),
            late,
        })
        .with_root_path(&root)
        .map_err(chain)?
        .with_console_socket(console.as_ref().map(|c| c.path.clone()));
    if let Some([stdin, stdout, stderr]) = streams {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let container = builder
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(|e| clean(chain(e)))?;
    drop(stage);
    let pid = container.pid().ok_or("the container has no process")?.as_raw();
    let master = console.map(Console::accept).transpose().map_err(text)?;
    tell(report, pid, master.as_ref()).map_err(text)?;
    // Also where `libcontainer` knows no controller: named hierarchies of version 1.
    Cgroups::detect()
        .and_then(|c| c.attach(&start.cgroup, pid))
        .map_err(text)?;
    // The socket lies outside of the mount namespace that comes next; the container starts when it is closed.
    let go = connect(&root.join(&start.container), NOTIFY_FILE).map_err(|e| format!("cannot start it: {e}"))?;
    if let Err(error) = finish_mounts(pid, start) {
        // Before the socket is closed, which would start it.
        let _may_be_gone = process::kill(pid, nix::libc::SIGKILL);
        return Err(format!("cannot set mount propagation and labels: {error}"));
    }
    drop(go);
    Ok(())
}

/// Connects to a socket whose whole path may be too long for an address.
fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    std::env::set_current_dir(dir)?;
    UnixStream::connect(name)
}

/// The shim gets the pid and, if there is one, the master of the terminal.
fn tell(report: &OwnedFd, pid: i32, master: Option<&OwnedFd>) -> io::Result<()> {
    let bytes = serde_json::to_vec(&launch::Outcome {
        pid: Some(pid),
        error: None,
    })?;
    let fds: Vec<RawFd> = master.iter().map(|m| m.as_raw_fd()).collect();
    process::send_with_fds(report.as_fd(), &bytes, &fds).map(drop)
}

/// `libcontainer` leaves every mount a slave of the host's (or its peer), so what a volume asked for is set here:
/// the child is at its end and may enter the container's mount namespace for good.
fn finish_mounts(pid: i32, start: &Start) -> io::Result<()> {
    if start.propagation.is_empty() && start.labels.is_empty() {
        return Ok(());
    }
    let pidfd = process::pidfd_open(pid)?;
    process::enter_namespaces(pidfd.as_fd(), CloneFlags::CLONE_NEWNS)?;
    for (path, label) in &start.labels {
        set_xattr(Path::new(path), OsStr::new(ATTRIBUTE), label.as_bytes())?;
    }
    for (target, propagation) in &start.propagation {
        let propagation = match propagation {
            MountPropagation::Private => Propagation::Private,
            MountPropagation::Slave => Propagation::Slave,
            MountPropagation::Shared => Propagation::Shared,
        };
        match set_propagation(Path::new(target), propagation) {
            // A later mount of the same container covers this one.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
            done => done?,
        }
    }
    Ok(())
}

/// Without CAP_SYS_RESOURCE the score can only be raised; a lower wish is then left unfulfilled, as upstream's
/// `restrict_oom_score_adj` does.
pub fn set_oom_score(score: Option<i32>) {
    if let Some(score) = score {
        let _not_allowed = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    }
}

/// /proc of a namespace that the container joins, where it can be bound from.
fn proc_of(joined: &Joined, bundle: &Path) -> io::Result<PathBuf> {
    let Proc::In(namespace) = &joined.proc else {
        let Proc::At(path) = &joined.proc else { unreachable!() };
        return Ok(path.clone());
    };
    let proc = process::in_mount_namespace(namespace.as_fd(), || detached::clone_of(c"/proc"))?;
    // The other container may have put anything there.
    let is_proc = nix::sys::statfs::fstatfs(&proc)?.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC;
    let of = nix::fcntl::readlinkat(&proc, "1/ns/pid")?;
    let wanted = std::fs::read_link(format!("/proc/self/fd/{}", joined.namespace.as_raw_fd()))?;
    if !is_proc || of != wanted.as_os_str() {
        return Err(io::Error::other("the container has something else there"));
    }
    let at = bundle.join("proc");
    std::fs::create_dir_all(&at)?;
    detached::attach(proc.as_fd(), &at)?;
    Ok(at)
}

/// A bundle whose process stays outside of the process namespace, with full capabilities and without a filter: what
/// has to be set up is, and the process namespace is entered as the last thing. See [`program`].
fn setup_bundle(bundle: &Path, proc: &Path) -> io::Result<PathBuf> {
    sub_bundle(bundle, "setup", &outside(read_spec(bundle)?, proc))
}

/// A bundle of what is laid out for users of the pod's own, who can't reach what the other one names.
fn staged(mut spec: Value, bundle: &mut PathBuf, dir: &Path) -> Result<staging::Held, String> {
    let needed = bundle.canonicalize().map_err(text)?;
    let held = staging::set(&mut spec, &[dir, &needed])?;
    *bundle = sub_bundle(bundle, "staged", &spec).map_err(text)?;
    Ok(held)
}

fn read_spec(bundle: &Path) -> io::Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(bundle.join(SPEC))?)?)
}

fn sub_bundle(bundle: &Path, name: &str, spec: &Value) -> io::Result<PathBuf> {
    let sub = bundle.join(name);
    std::fs::create_dir_all(&sub)?;
    std::fs::write(sub.join(SPEC), serde_json::to_vec(spec)?)?;
    Ok(sub)
}

fn outside(mut spec: Value, proc: &Path) -> Value {
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|n| n["type"] != "pid");
    }
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["type"] == "proc" {
            mount["type"] = json!("bind");
            mount["source"] = json!(proc);
            if let Some(options) = mount["options"].as_array_mut() {
                options.push(json!("bind"));
            }
        }
    }
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("seccomp");
    }
    if let Some(process) = spec["process"].as_object_mut() {
        process.remove("noNewPrivileges");
        process.remove("apparmorProfile");
        process.remove("selinuxLabel");
        process.remove("capabilities");
        process.insert("user".to_owned(), json!({"uid": 0, "gid": 0}));
    }
    spec
}

/// Runs in the container's first process.
#[derive(Clone)]
struct Payload {
    report: RawFd,
    /// For a container that joins a process namespace.
    late: Option<Late>,
}

/// What is left to do when everything but the process itself is set up.
#[derive(Clone)]
struct Late {
    plan: Arc<Plan>,
    namespace: RawFd,
    terminal: bool,
}

impl Late {
    /// Enters the namespace, which is for children, and makes the program one. Returns only the reason why not.
    fn start(&self, report: RawFd) -> Result<std::convert::Infallible, String> {
        let step = |what: &'static str| move |e: io::Error| format!("cannot {what}: {}", launch::lower(&e));
        let namespace = process::duplicate(self.namespace).map_err(step("find the process namespace"))?;
        let report = process::duplicate(report).map_err(step("find the shim"))?;
        nix::sched::setns(&namespace, CloneFlags::CLONE_NEWPID)
            .map_err(|e| step("enter the process namespace")(e.into()))?;
        if self.terminal {
            let stdin = process::duplicate(0).map_err(step("find the terminal"))?;
            tty::release_controlling_terminal(stdin.as_fd()).map_err(step("pass on the terminal"))?;
        }
        program::start(&self.plan, self.terminal, report.as_fd())
    }
}

impl Payload {
    fn fail(&self, error: String) -> String {
        if let Ok(report) = process::duplicate(self.report) {
            launch::report_error(report.as_fd(), error.clone());
        }
        error
    }
}

impl Executor for Payload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if let Some(late) = &self.late {
            let Err(error) = late.start(self.report);
            return Err(ExecutorError::Other(self.fail(error)));
        }
        let (args, env) = arguments(spec).map_err(ExecutorError::Other)?;
        if let Some(label) = program::label_of(spec)
            && let Err(error) = program::label_next(&label)
        {
            let error = format!("cannot set the SELinux label {label}: {}", launch::lower(&error));
            return Err(ExecutorError::Other(self.fail(error)));
        }
        let error = match launch::find_program(&args[0], &env) {
            Ok(program) => launch::exec(&program, &args, &env),
            Err(error) => error,
        };
        Err(ExecutorError::Other(self.fail(error)))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let found = arguments(spec).and_then(|(args, env)| launch::find_program(&args[0], &env));
        found
            .map(drop)
            .map_err(|e| ExecutorValidationError::ArgValidationError(self.fail(e)))
    }

    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // `exec` hands on the specification's list as it is; names need not be what a shell accepts.
        Ok(())
    }
}

fn arguments(spec: &Spec) -> Result<(Vec<String>, Vec<String>), String> {
    let process = spec.process().as_ref().ok_or("no process in the specification")?;
    let args = process
        .args()
        .clone()
        .filter(|a| !a.is_empty())
        .ok_or("no command in the specification")?;
    Ok((args, process.env().clone().unwrap_or_default()))
}

/// A socket on which a runtime hands over the master of a container's terminal.
struct Console {
    listener: UnixListener,
    path: std::path::PathBuf,
}

impl Console {
    fn listen(dir: &Path, container: &str) -> io::Result<Console> {
        // The whole path may be too long for a socket's name; the name alone, from within, is not.
        let name = format!("c-{}", &container[..container.len().min(16)]);
        let path = dir.join(&name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::env::set_current_dir(dir)?;
        let listener = UnixListener::bind(&name)?;
        Ok(Console { listener, path })
    }

    fn accept(self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        let mut byte = [0; 64];
        let (_, mut fds) = process::receive_with_fds(stream.as_fd(), &mut byte)?;
        std::fs::remove_file(&self.path)?;
        fds.pop()
            .ok_or_else(|| io::Error::other("the container sent no terminal"))
    }
}

/// `create` and `start` of an OCI runtime such as runc; its processes become ours, since the shim is a subreaper.
fn external(
    dir: &Path,
    start: &Start,
    streams: Option<[OwnedFd; 3]>,
    report: &OwnedFd,
    program: &str,
) -> Result<(), String> {
    set_oom_score(start.oom_score_adj);
    let console = start
        .terminal
        .then(|| Console::listen(dir, &start.container))
        .transpose()
        .map_err(text)?;
    let pid_file = Path::new(&start.bundle).join("pid");
    let log = Path::new(&start.bundle).join("runtime.log");
    let mut create = external_command(program, dir, &log);
    create
        .arg("create")
        .arg("--bundle")
        .arg(&start.bundle)
        .arg("--pid-file")
        .arg(&pid_file);
    if let Some(console) = &console {
        create.arg("--console-socket").arg(&console.path);
    }
    create.arg(&start.container);
    if let Some([stdin, stdout, stderr]) = streams {
        create.stdin(stdin).stdout(stdout).stderr(stderr);
    }
    run_external(&mut create, &log)?;
    let master = console.map(Console::accept).transpose().map_err(text)?;
    let pid = std::fs::read_to_string(&pid_file).map_err(text)?;
    let pid: i32 = pid
        .trim()
        .parse()
        .map_err(|_| format!("{program} wrote {pid:?} as pid"))?;
    tell(report, pid, master.as_ref()).map_err(text)?;
    let mut run = external_command(program, dir, &log);
    run.arg("start").arg(&start.container);
    run_external(&mut run, &log)
}

/// A call of an OCI runtime, in a child that has nothing else to do.
pub fn external_command(program: &str, dir: &Path, log: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--root").arg(dir.join(OCI_ROOT)).arg("--log").arg(log);
    command
}

pub fn run_external(command: &mut Command, log: &Path) -> Result<(), String> {
    process::allow_huge_pages(true).map_err(text)?;
    let status = command
        .status()
        .map_err(|e| format!("cannot run {:?}: {e}", command.get_program()))?;
    if status.success() {
        return Ok(());
    }
    let said = std::fs::read_to_string(log).unwrap_or_default();
    let last = said
        .lines()
        .rev()
        .find(|l| l.contains("error"))
        .unwrap_or("it gave no reason");
    Err(format!("{:?} failed ({status}): {last}", command.get_program()))
}

fn text(error: io::Error) -> String {
    error.to_string()
}

/// An error with its causes: `libcontainer`'s outermost ones say little.
fn chain(error: impl std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !out.contains(&next) {
            out = format!("{out}: {next}");
        }
        cause = error.source();
    }
    out
}

/// The reason inside what `libcontainer` wraps around it.
fn clean(error: String) -> String {
    match error.find("exec: \"") {
        Some(at) => error[at..].to_owned(),
        None => error,
    }
}
