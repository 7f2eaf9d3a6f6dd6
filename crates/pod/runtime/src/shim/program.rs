//! From a process of ours to a program in a container: user, capabilities, filter, and a clone as the last step.
//!
//! Whoever shares the container's process namespace and has CAP_SYS_PTRACE can look into a process as soon as it is
//! in there, and change it. So a process gives up everything *before* it clones the one that will be in the namespace:
//! that one has the container's root and directory, its user, its capabilities, its filter and its streams, and only
//! becomes the program. This holds for the first process of a container that joins a namespace, and for all that
//! come later (`exec`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use keelson_sys::process::{self, Capabilities, Parent};
use keelson_sys::tty;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::CloneFlags;
use nix::sys::stat::fstat;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator, Spec};

use super::launch;

/// What of a container's specification a process needs.
pub struct Plan {
    pub namespaces: CloneFlags,
    pub uid: u32,
    args: Vec<String>,
    env: Vec<String>,
    cwd: PathBuf,
    gid: u32,
    groups: Vec<u32>,
    umask: Option<u32>,
    capabilities: Capabilities,
    last_capability: u32,
    no_new_privileges: bool,
    seccomp: Option<LinuxSeccomp>,
    apparmor: Option<String>,
    selinux: Option<String>,
}

impl Plan {
    pub fn of(spec: &Spec) -> Result<Plan, String> {
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
            args: process.args().clone().unwrap_or_default(),
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
            apparmor: process.apparmor_profile().clone().filter(|p| !p.is_empty()),
            selinux: label_of(spec),
        })
    }

    /// Runs another command with everything else as it is for the container's own.
    pub fn for_command(mut self, args: &[String], terminal: bool) -> Plan {
        self.args = args.to_vec();
        if terminal {
            self.env.retain(|e| !e.starts_with("TERM="));
            self.env.push("TERM=xterm".to_owned());
        }
        self
    }

    fn filter_comes(&self) -> Filter {
        match &self.seccomp {
            None => Filter::Never,
            // Then it needs no capability, and fewer of our own calls have to pass it.
            Some(_) if self.no_new_privileges => Filter::Last,
            Some(seccomp) if self.own_calls().all(|call| permits(seccomp, call)) => Filter::First,
            // The process is in the namespace with CAP_SYS_ADMIN for as long as it takes to load the filter.
            Some(_) => Filter::Privileged,
        }
    }

    fn own_calls(&self) -> impl Iterator<Item = &'static str> {
        let is_labelled = self.apparmor.is_some() || self.selinux.is_some();
        let more = is_labelled.then_some(LABELS_CALLS);
        OWN_CALLS.into_iter().chain(more.into_iter().flatten())
    }
}

/// When the filter is loaded. Without no-new-privileges that takes CAP_SYS_ADMIN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Filter {
    Never,
    First,
    Privileged,
    Last,
}

/// What we call behind a filter that comes first, beyond what every program does.
const OWN_CALLS: [&str; 6] = ["clone", "sendmsg", "capget", "capset", "prctl", "setsid"];
/// And for a profile or label of the program's.
const LABELS_CALLS: [&str; 2] = ["openat2", "fstatfs"];

/// Makes the process, reports its pid or why there is none, and ends. To be called in all of the container's namespaces,
/// and with the process namespace set for children; standard streams are in place, with a terminal that the process
/// is to control if `terminal`. Every other descriptor is closed, whatever object it belongs to: so this never returns.
pub fn start(plan: &Plan, terminal: bool, report: BorrowedFd<'_>) -> ! {
    match clone_process(plan, terminal, report) {
        Ok(()) => process::exit_now(0),
        Err(error) => {
            launch::report_error(report, error);
            process::exit_now(1)
        }
    }
}

fn clone_process(plan: &Plan, terminal: bool, report: BorrowedFd<'_>) -> Result<(), String> {
    let step = |what: &'static str| move |e: io::Error| format!("cannot {what}: {}", launch::lower(&e));
    process::close_all_but(&[0, 1, 2, report.as_raw_fd()]).map_err(step("close descriptors"))?;
    if let Some(umask) = plan.umask {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
    }
    // Before the user changes, as runc does: the user need not be able to enter the directory himself.
    let entered = nix::unistd::chdir(&plan.cwd);
    process::set_ids(plan.uid, plan.gid, &plan.groups).map_err(step("change the user"))?;
    if entered.is_err() {
        nix::unistd::chdir(&plan.cwd).map_err(|e| format!("chdir to cwd ({:?}): {}", plan.cwd, e.desc()))?;
    }
    // The kernel has no name for a directory outside of the root.
    std::env::current_dir().map_err(|e| {
        format!(
            "current working directory is outside of container mount namespace root -- possible container breakout \
             detected: {}",
            launch::lower(&e)
        )
    })?;
    let filter = plan.filter_comes();
    if matches!(filter, Filter::First | Filter::Privileged) {
        restore_effective(plan).map_err(step("raise capabilities"))?;
    }
    if filter == Filter::First {
        load(plan)?;
    }
    if filter != Filter::Privileged {
        process::set_capabilities(&plan.capabilities, plan.last_capability).map_err(step("set capabilities"))?;
    }
    if plan.no_new_privileges {
        process::set_no_new_privileges().map_err(step("set no-new-privileges"))?;
    }
    // A change of user has set it to what the machine's administrator chose for programs that change theirs.
    process::make_undumpable().map_err(step("hide"))?;
    let pid = process::fork_single_threaded(Parent::CallersParent, CloneFlags::empty(), || {
        let Err(error) = become_program(plan, filter, terminal);
        launch::report_error(report, error);
        // What shells answer for a command that cannot be run.
        127
    })
    .map_err(step("clone"))?;
    launch::report_pid(report, pid).map_err(step("report"))
}

/// In the process itself; returns only on failure.
fn become_program(plan: &Plan, filter: Filter, terminal: bool) -> Result<std::convert::Infallible, String> {
    let step = |what: &'static str| move |e: io::Error| format!("cannot {what}: {}", launch::lower(&e));
    nix::unistd::setsid().map_err(|e| step("start a session")(e.into()))?;
    if terminal {
        let stdin = process::duplicate(0).map_err(step("find the terminal"))?;
        tty::set_controlling_terminal(std::os::fd::AsFd::as_fd(&stdin))
            .map_err(step("set the controlling terminal"))?;
    }
    // Both hold from the exec on. A filter that comes now may not let us say so.
    if let Some(profile) = &plan.apparmor {
        confine(profile).map_err(step("confine by the apparmor profile"))?;
    }
    if let Some(label) = &plan.selinux {
        label_next(label).map_err(step("set the SELinux label"))?;
    }
    if filter == Filter::Privileged {
        load(plan)?;
        process::set_capabilities(&plan.capabilities, plan.last_capability).map_err(step("set capabilities"))?;
    }
    if filter == Filter::Last {
        load(plan)?;
    }
    let program = launch::find_program(plan.args.first().map_or("", String::as_str), &plan.env)?;
    process::close_on_exec_from(3).map_err(step("close descriptors"))?;
    Err(launch::exec(&program, &plan.args, &plan.env))
}

/// From the exec that comes next. The second file is what kernels before 5.8 have.
fn confine(profile: &str) -> io::Result<()> {
    let file = attribute("apparmor/exec").or_else(|_| attribute("exec"));
    io::Write::write_all(&mut file?, format!("exec {profile}").as_bytes())
}

/// What a specification says that its processes are to be.
pub fn label_of(spec: &Spec) -> Option<String> {
    let process = spec.process().as_ref()?;
    process.selinux_label().clone().filter(|label| !label.is_empty())
}

/// Gives the program of the exec that comes next a label. There is none to give to keys: no keyring is made.
pub fn label_next(label: &str) -> io::Result<()> {
    io::Write::write_all(&mut attribute("exec")?, label.as_bytes())
}

/// What only a process itself can say of its next program, in a /proc that is one: what a container has mounted there, or over
/// a part of it, may be anything.
fn attribute(name: &str) -> io::Result<std::fs::File> {
    let proc = std::fs::File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open("/proc")?;
    let is_proc = fstatfs(&proc)?.filesystem_type() == PROC_SUPER_MAGIC;
    if !is_proc || fstat(&proc)?.st_ino != PROC_ROOT {
        return Err(io::Error::other("/proc is something else"));
    }
    let path = format!("thread-self/attr/{name}");
    let how = OpenHow::new()
        .flags(OFlag::O_WRONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_BENEATH);
    match openat2(&proc, path.as_str(), how) {
        Ok(file) => Ok(file.into()),
        // A kernel before 5.6, or a filter that doesn't know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let file = std::fs::File::options().write(true).open(format!("/proc/{path}"))?;
            // Of this very /proc, not of another one that lies over a part of it.
            match fstat(&file)?.st_dev == fstat(&proc)?.st_dev {
                true => Ok(file),
                false => Err(io::Error::other("a part of /proc is something else")),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// The number of the root directory of any /proc.
const PROC_ROOT: u64 = 1;

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

fn load(plan: &Plan) -> Result<(), String> {
    let Some(seccomp) = &plan.seccomp else { return Ok(()) };
    libcontainer::seccomp::initialize_seccomp(seccomp)
        .map(drop)
        .map_err(|e| format!("cannot install the system call filter: {e}"))
}

/// Whether a filter surely lets a call pass whose first argument is 0. (`CLONE_PARENT` aside, which no profile
/// asks about.) Of the kinds of conditions, only the one that profiles have for `clone` is understood.
fn permits(filter: &LinuxSeccomp, call: &str) -> bool {
    let mut allowed = filter.default_action() == LinuxSeccompAction::ScmpActAllow;
    for rule in filter.syscalls().iter().flatten() {
        if !rule.names().iter().any(|n| n == call) {
            continue;
        }
        let conditions = rule.args().as_deref().unwrap_or_default();
        let holds = conditions
            .iter()
            .all(|c| c.op() == LinuxSeccompOperator::ScmpCmpMaskedEq && c.index() == 0 && c.value() == 0);
        match rule.action() {
            LinuxSeccompAction::ScmpActAllow => allowed |= holds,
            _ => return false,
        }
    }
    allowed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(profile: serde_json::Value, no_new_privileges: bool) -> Plan {
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0}, "noNewPrivileges": no_new_privileges},
            "linux": {"seccomp": profile},
        });
        let spec = crate::containers::for_built_in(spec);
        Plan::of(&serde_json::from_value(spec).unwrap()).unwrap()
    }

    #[test]
    fn the_filter_is_in_force_before_a_process_can_be_seen() {
        let default = crate::containers::default_profile(&[]);
        assert_eq!(plan(default.clone(), false).filter_comes(), Filter::First);
        assert_eq!(plan(default, true).filter_comes(), Filter::Last);
        let admin = crate::containers::default_profile(&["CAP_SYS_ADMIN".to_owned()]);
        assert_eq!(plan(admin, false).filter_comes(), Filter::First);
        let all = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        assert_eq!(plan(all, false).filter_comes(), Filter::First);
    }

    /// Of this process: without a security module the kernel takes nothing, but the file is the right one.
    #[test]
    fn the_file_of_the_next_program_is_found_in_proc_itself() {
        let file = attribute("exec").unwrap();
        assert!(fstatfs(&file).unwrap().filesystem_type() == PROC_SUPER_MAGIC);
        assert!(attribute("../comm").is_ok() && attribute("../../../etc/passwd").is_err());
    }

    #[test]
    fn labels_are_the_specifications() {
        let spec = |label: &str| {
            let spec = json!({"ociVersion": "1.2.0", "process": {"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0},
                "selinuxLabel": label}, "linux": {}});
            serde_json::from_value::<Spec>(spec).unwrap()
        };
        let plan = Plan::of(&spec("u:r:container_t:s0:c1,c2")).unwrap();
        assert_eq!(plan.selinux.as_deref(), Some("u:r:container_t:s0:c1,c2"));
        assert_eq!(label_of(&spec("")), None);
    }

    #[test]
    fn a_profile_that_forbids_our_own_calls_comes_later() {
        let no_clone = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_ERRNO"}],
        });
        assert_eq!(plan(no_clone, false).filter_comes(), Filter::Privileged);
        let few = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_ALLOW"}],
        });
        assert_eq!(plan(few, false).filter_comes(), Filter::Privileged);
        let no_openat2 = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["openat2"], "action": "SCMP_ACT_KILL"}],
        });
        let mut strict = plan(no_openat2, false);
        assert_eq!(strict.filter_comes(), Filter::First);
        strict.selinux = Some("u:r:container_t:s0".into());
        assert_eq!(strict.filter_comes(), Filter::Privileged);
    }
}
