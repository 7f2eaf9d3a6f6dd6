//! Containers and processes in them, from the request until they run or have failed to.
//!
//! A child of the shim makes each one and reports on a socket; the shim serves others meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use keelson_sys::process::{self, Parent};
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::connection::Role;
use super::container::{ChildStreams, Container};
use super::create::{Joined, Proc};
use super::launch::{self, MAX_OUTCOME, Outcome};
use super::protocol::{Exec, Joins, Reply, Start};
use super::server::{Server, nanoseconds};
use super::{create, exec, namespaces};

/// A process being made by a child.
pub(super) struct Pending {
    pub report: OwnedFd,
    connection: RawFd,
    what: Making,
    outcome: Outcome,
    terminal: Option<OwnedFd>,
}

pub(super) enum Making {
    Container(Box<Container>),
    Exec,
}

impl Server {
    pub(super) fn start(&mut self, fd: RawFd, start: Start) -> io::Result<()> {
        let id = start.container.clone();
        let being_made = |p: &Pending| matches!(&p.what, Making::Container(c) if c.start.container == id);
        if self.containers.contains_key(&id) || self.pending.iter().any(being_made) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("container {id} was started before"),
            ));
        }
        let joined = start.joins.clone().map(|joins| self.joined(joins)).transpose()?;
        let (container, streams) = Container::prepare(start)?;
        let dir = self.dir.clone();
        let start = container.start.clone();
        let kept = joined.iter().flat_map(Joined::descriptors).collect();
        let report = child(streams, kept, move |streams, report| {
            create::run(&dir, &start, joined, streams, report)
        })?;
        self.push(report, fd, Making::Container(Box::new(container)));
        Ok(())
    }

    pub(super) fn exec(&mut self, fd: RawFd, exec: Exec, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let container = self.container(&exec.container)?;
        if container.exited.is_some() {
            return Err(io::Error::other(format!("container {} is not running", exec.container)));
        }
        // Here, where nobody else reaps it: the number cannot have become another process's.
        let (pid, process) = (container.pid, process::pidfd_open(container.pid)?);
        let start = container.start.clone();
        let streams: Option<ChildStreams> = if exec.terminal {
            None
        } else {
            let three = descriptors.try_into();
            let three: ChildStreams =
                three.map_err(|_| io::Error::other("exec without terminal needs three descriptors"))?;
            super::container::own(&three, start.uid, start.gid)?;
            Some(three)
        };
        let dir = self.dir.clone();
        let kept = vec![process.as_raw_fd()];
        let report = child(streams, kept, move |streams, report| {
            let target = exec::Target {
                process,
                pid,
                bundle: Path::new(&start.bundle),
                cgroup: &start.cgroup,
                oom_score_adj: start.oom_score_adj,
                external: start.external.as_deref(),
            };
            exec::run(&dir, &exec, &target, streams, report)
        })?;
        self.push(report, fd, Making::Exec);
        Ok(())
    }

    /// The namespace by descriptors, opened while the process that stands for it cannot be another one.
    fn joined(&mut self, joins: Joins) -> io::Result<Joined> {
        match joins {
            Joins::Pods => Ok(Joined {
                namespace: self.held.open("pid")?,
                proc: Proc::At(self.dir.join(namespaces::PROC)),
            }),
            Joins::Container(id) => {
                let container = self.container(&id)?;
                if container.exited.is_some() {
                    return Err(io::Error::other(format!("container {id} is not running")));
                }
                let pid = container.pid;
                let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from);
                Ok(Joined {
                    namespace: open("pid")?,
                    proc: Proc::In(open("mnt")?),
                })
            }
        }
    }

    fn push(&mut self, report: OwnedFd, connection: RawFd, what: Making) {
        self.pending.push(Pending {
            report,
            connection,
            what,
            outcome: Outcome::default(),
            terminal: None,
        });
    }

    /// A report of a process being made; its end means that the process runs or never will.
    pub(super) fn learn(&mut self, fd: RawFd) {
        let Some(index) = self.pending.iter().position(|p| p.report.as_raw_fd() == fd) else {
            return;
        };
        let pending = &mut self.pending[index];
        let mut message = [0; MAX_OUTCOME];
        match process::receive_with_fds(pending.report.as_fd(), &mut message) {
            Ok((0, _)) => {}
            Ok((n, mut fds)) => {
                pending.terminal = fds.pop().or(pending.terminal.take());
                match serde_json::from_slice::<Outcome>(&message[..n]) {
                    Ok(news) => {
                        // Who reports may be in a container's hands; signals go to our own children only.
                        let ours = news
                            .pid
                            .filter(|pid| process::is_child(*pid) || self.unclaimed.contains_key(pid));
                        pending.outcome.pid = ours.or(pending.outcome.pid);
                        pending.outcome.error = pending.outcome.error.take().or(news.error);
                    }
                    Err(error) => pending.outcome.error = Some(error.to_string()),
                }
                // What waits for the word to start would hold the socket open for ever.
                if pending.outcome.error.is_none() {
                    return;
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(e) => pending.outcome.error = Some(e.to_string()),
        }
        let Pending {
            connection,
            what,
            outcome,
            terminal,
            ..
        } = self.pending.remove(index);
        let ended = outcome.pid.and_then(|pid| self.unclaimed.remove(&pid));
        let result = match (outcome.pid, outcome.error) {
            (Some(pid), None) => Ok(pid),
            (Some(pid), Some(error)) => {
                let _may_be_gone = process::kill(pid, libc::SIGKILL);
                Err(error)
            }
            (None, Some(error)) => Err(error),
            (None, None) => Err("the process that was to make it ended without a word".to_owned()),
        };
        match (result, what) {
            (Ok(pid), Making::Container(container)) => self.started(connection, *container, pid, terminal, ended),
            (Ok(pid), Making::Exec) => {
                self.set_role(connection, Role::Exec { pid });
                self.reply(connection, &Reply::Started { pid }, terminal.into_iter().collect());
                if let Some(code) = ended {
                    self.exec_ended(pid, code);
                }
            }
            (Err(error), making) => {
                if let Making::Container(container) = making {
                    self.discard(&container);
                }
                self.reply(connection, &Reply::Failed { error }, Vec::new());
            }
        }
        if self.pending.is_empty() {
            self.unclaimed.clear();
        }
    }

    fn started(&mut self, fd: RawFd, mut made: Container, pid: i32, terminal: Option<OwnedFd>, ended: Option<i32>) {
        let id = made.start.container.clone();
        made.pid = pid;
        made.started_at = nanoseconds();
        if let Some(Err(error)) = terminal.map(|master| made.set_terminal(master)) {
            eprintln!("terminal of {id}: {error}");
        }
        self.containers.insert(id.clone(), made);
        self.reply(fd, &Reply::Started { pid }, Vec::new());
        if let Some(code) = ended {
            self.container_ended(&id, code);
        }
    }

    /// A container that did not start leaves nothing behind but its control group, which the server removes.
    fn discard(&mut self, container: &Container) {
        if let Err(error) = self.cgroups.kill(&container.start.cgroup) {
            eprintln!("{}: {error}", container.start.cgroup);
        }
        if let Err(error) = self.forget(&container.start) {
            eprintln!("{}: {error}", container.start.container);
        }
    }

    pub(super) fn forget(&self, start: &Start) -> io::Result<()> {
        if let Some(program) = &start.external {
            let log = Path::new(&start.bundle).join("runtime.log");
            let mut command = create::external_command(program, &self.dir, &log);
            command.args(["delete", "--force", &start.container]);
            // Runtimes refuse to delete what they never made; nothing is lost then.
            let _unknown = command.status()?;
        }
        match std::fs::remove_dir_all(self.dir.join(create::OCI_ROOT).join(&start.container)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Forks a child that reports on the returned socket. It has no descriptors but this, its streams, those named, and the
/// shim's own standard ones.
fn child(
    streams: Option<ChildStreams>,
    kept: Vec<RawFd>,
    body: impl FnOnce(Option<ChildStreams>, OwnedFd) -> i32,
) -> io::Result<OwnedFd> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(io::Error::from)?;
    super::container::set_nonblocking(ours.as_fd())?;
    process::fork(Parent::Caller, CloneFlags::empty(), move || {
        let own = streams.iter().flatten().map(AsRawFd::as_raw_fd);
        let keep: Vec<RawFd> = (0..=2).chain(own).chain(kept).chain([theirs.as_raw_fd()]).collect();
        if let Err(error) = process::close_all_but(&keep)
            .and_then(|()| process::make_undumpable())
            .and_then(|()| process::set_file_limits(launch::FILES.0, launch::FILES.1))
        {
            launch::report_error(theirs.as_fd(), error.to_string());
            return 1;
        }
        body(streams, theirs)
    })?;
    Ok(ours)
}
