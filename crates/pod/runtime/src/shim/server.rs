//! The shim's loop: one `poll` over the socket, the connections, the containers' output and the death of children.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use keelson_sys::cgroup::Cgroups;
use keelson_sys::process::{self, Ended};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::connection::{Connection, Role};
use super::container::Container;
use super::log::Stream;
use super::making::Pending;
use super::namespaces::Held;
use super::protocol::{EXITS, Exited, Reply, Request, VERSION};

/// Most connections at once; a server uses one for events and one a running call.
const MAX_CONNECTIONS: usize = 512;

pub struct Server {
    pub(super) dir: PathBuf,
    pub(super) held: Held,
    listener: UnixListener,
    deaths: SignalFd,
    pub(super) cgroups: Cgroups,
    connections: HashMap<RawFd, Connection>,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) pending: Vec<Pending>,
    /// Children that ended before we learned what they were; only kept while something is pending.
    pub(super) unclaimed: HashMap<i32, i32>,
    buffer: Vec<u8>,
    shutdown: bool,
}

impl Server {
    pub fn new(dir: &Path, held: Held, listener: UnixListener) -> io::Result<Server> {
        listener.set_nonblocking(true)?;
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.thread_block()?;
        let deaths = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Server {
            dir: dir.to_path_buf(),
            held,
            listener,
            deaths,
            cgroups: Cgroups::detect()?,
            connections: HashMap::new(),
            containers: BTreeMap::new(),
            pending: Vec::new(),
            unclaimed: HashMap::new(),
            buffer: vec![0; 32 << 10],
            shutdown: false,
        })
    }

    pub fn run(mut self) -> io::Result<()> {
        while !self.shutdown {
            let ready = self.wait()?;
            let deaths = self.deaths.as_fd().as_raw_fd();
            let listener = self.listener.as_raw_fd();
            for fd in ready {
                match fd {
                    fd if fd == deaths => self.reap()?,
                    fd if fd == listener => self.accept(),
                    fd if self.connections.contains_key(&fd) => self.serve(fd),
                    fd if self.pending.iter().any(|p| p.report.as_raw_fd() == fd) => self.learn(fd),
                    fd => {
                        if let Some(container) = self.containers.values_mut().find(|c| c.owns(fd)) {
                            container.pump(&mut self.buffer);
                        }
                    }
                }
            }
        }
        self.end()
    }

    fn wait(&self) -> io::Result<Vec<RawFd>> {
        let mut polled = vec![
            PollFd::new(self.deaths.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        for connection in self.connections.values() {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, connection.wants_to_write());
            polled.push(PollFd::new(connection.as_fd(), events));
        }
        polled.extend(
            self.pending
                .iter()
                .map(|p| PollFd::new(p.report.as_fd(), PollFlags::POLLIN)),
        );
        for container in self.containers.values() {
            polled.extend(container.readable().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            polled.extend(container.writable().map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
        }
        loop {
            match poll(&mut polled, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result?,
            };
            let fired = |p: &&PollFd<'_>| p.revents().is_some_and(|r| !r.is_empty());
            return Ok(polled.iter().filter(fired).map(|p| p.as_fd().as_raw_fd()).collect());
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= MAX_CONNECTIONS {
                // Dropped: the server sees it closed and reports that.
                continue;
            }
            if let Ok(connection) = Connection::new(stream) {
                self.connections.insert(connection.fd(), connection);
            }
        }
    }

    fn serve(&mut self, fd: RawFd) {
        let Some(connection) = self.connections.get_mut(&fd) else {
            return;
        };
        if connection.flush().is_err() {
            self.connections.remove(&fd);
            return;
        }
        let arrived = connection.receive(&mut self.buffer);
        for request in arrived.requests {
            let Some(connection) = self.connections.get_mut(&fd) else {
                return;
            };
            let descriptors = connection.take_descriptors();
            match self.handle(fd, request, descriptors) {
                Ok(Some((reply, descriptors))) => self.reply(fd, &reply, descriptors),
                Ok(None) => {}
                Err(error) => self.reply(
                    fd,
                    &Reply::Failed {
                        error: error.to_string(),
                    },
                    Vec::new(),
                ),
            }
        }
        if arrived.closed {
            self.connections.remove(&fd);
        }
    }

    pub(super) fn reply(&mut self, fd: RawFd, reply: &Reply, descriptors: Vec<OwnedFd>) {
        let failed = self
            .connections
            .get_mut(&fd)
            .is_some_and(|c| c.send(reply, descriptors).is_err());
        if failed {
            self.connections.remove(&fd);
        }
    }

    /// `Ok(None)`: the reply comes later.
    fn handle(
        &mut self,
        fd: RawFd,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        let done = Ok(Some((Reply::Done, Vec::new())));
        match request {
            Request::Subscribe => {
                self.set_role(fd, Role::Subscriber);
                let containers = self.containers.values().map(Container::state).collect();
                let pid = std::process::id() as i32;
                return Ok(Some((
                    Reply::State {
                        version: VERSION,
                        pid,
                        containers,
                    },
                    Vec::new(),
                )));
            }
            Request::Start(start) => {
                self.start(fd, start)?;
                return Ok(None);
            }
            Request::Exec(exec) => {
                self.exec(fd, exec, descriptors)?;
                return Ok(None);
            }
            Request::KillExec { signal } => match self.connections.get(&fd).map(|c| c.role) {
                Some(Role::Exec { pid }) => {
                    // What it started goes with it. Those that an external runtime made need not lead a group.
                    process::kill_group(pid, signal).or_else(|_| process::kill(pid, signal))?;
                    return Ok(None);
                }
                _ => return Err(io::Error::other("no process belongs to this connection")),
            },
            Request::Signal { container, signal, all } => self.signal(&container, signal, all)?,
            Request::ReopenLog { container } => self.container(&container)?.reopen_log()?,
            Request::Attach {
                container,
                stdout,
                stderr,
                stdin,
            } => {
                return self.attach(&container, [stdout, stderr, stdin], descriptors).map(Some);
            }
            Request::CloseStdin { container } => self.container(&container)?.stdin = None,
            Request::Delete { container } => self.delete(&container)?,
            Request::Unknown => return Err(io::Error::other("the shim is older than this request")),
            Request::Shutdown => {
                self.reply(fd, &Reply::Done, Vec::new());
                self.shutdown = true;
                return Ok(None);
            }
        }
        done
    }

    pub(super) fn container(&mut self, id: &str) -> io::Result<&mut Container> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no container {id}")))
    }

    pub(super) fn set_role(&mut self, fd: RawFd, role: Role) {
        if let Some(connection) = self.connections.get_mut(&fd) {
            connection.role = role;
        }
    }

    fn signal(&mut self, id: &str, signal: i32, all: bool) -> io::Result<()> {
        let cgroups = self.cgroups.clone();
        let container = self.container(id)?;
        if container.exited.is_some() {
            return Ok(());
        }
        if !all {
            return process::kill(container.pid, signal);
        }
        if signal == libc::SIGKILL {
            return cgroups.kill(&container.start.cgroup);
        }
        cgroups
            .processes(&container.start.cgroup)?
            .into_iter()
            .try_for_each(|pid| process::kill(pid, signal))
    }

    fn attach(
        &mut self,
        id: &str,
        [stdout, stderr, stdin]: [bool; 3],
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let container = self.container(id)?;
        if container.exited.is_some() {
            return Err(io::Error::other(format!("container {id} is not running")));
        }
        let mut descriptors = descriptors.into_iter();
        for (wanted, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            if wanted {
                let to = descriptors
                    .next()
                    .ok_or_else(|| io::Error::other("attach needs a descriptor a stream"))?;
                container.attach(to, stream)?;
            }
        }
        let mut back = Vec::new();
        match (&container.terminal, &container.stdin) {
            (Some(master), _) => back.push(master.try_clone()?.into()),
            (None, Some(input)) if stdin => back.push(input.try_clone()?.into()),
            _ => {}
        }
        Ok((
            Reply::Attached {
                terminal: container.start.terminal,
            },
            back,
        ))
    }

    fn delete(&mut self, id: &str) -> io::Result<()> {
        match self.containers.get(id) {
            Some(container) if container.exited.is_none() => {
                return Err(io::Error::other(format!("container {id} still runs")));
            }
            Some(container) => self.forget(&container.start)?,
            None => {}
        }
        self.containers.remove(id);
        match std::fs::remove_file(self.dir.join(EXITS).join(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        while self.deaths.read_signal()?.is_some() {}
        while let Some(Ended { pid, code }) = process::reap()? {
            let container = self.containers.iter().find(|(_, c)| c.pid == pid && c.exited.is_none());
            match container.map(|(id, _)| id.clone()) {
                Some(id) => self.container_ended(&id, code),
                None if self.exec_ended(pid, code) => {}
                None if self.pending.is_empty() => {}
                None => drop(self.unclaimed.insert(pid, code)),
            }
        }
        Ok(())
    }

    pub(super) fn exec_ended(&mut self, pid: i32, code: i32) -> bool {
        let waiting = self
            .connections
            .iter()
            .find(|(_, c)| c.role == Role::Exec { pid })
            .map(|(fd, _)| *fd);
        if let Some(fd) = waiting {
            self.reply(fd, &Reply::ExecEnded { code }, Vec::new());
            self.set_role(fd, Role::Plain);
        }
        waiting.is_some()
    }

    pub(super) fn container_ended(&mut self, id: &str, code: i32) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        // With a process namespace of its own the kernel has ended the others already.
        if !container.start.own_pid_namespace
            && let Err(error) = self.cgroups.kill(&container.start.cgroup)
        {
            eprintln!("{}: {error}", container.start.cgroup);
        }
        let exited = Exited {
            container: id.to_owned(),
            pid: container.pid,
            code,
            at: nanoseconds(),
            started_at: container.started_at,
            oom_killed: self.cgroups.oom_kills(&container.start.cgroup) > 0,
        };
        container.finish(exited.clone(), &mut self.buffer);
        if let Err(error) = note(&self.dir, &exited) {
            eprintln!("exit of {id}: {error}");
        }
        let subscribers: Vec<RawFd> = self
            .connections
            .iter()
            .filter(|(_, c)| c.role == Role::Subscriber)
            .map(|(fd, _)| *fd)
            .collect();
        for fd in subscribers {
            self.reply(fd, &Reply::Exited(exited.clone()), Vec::new());
        }
    }

    /// Nothing of the pod may outlive its shim.
    fn end(self) -> io::Result<()> {
        for container in self.containers.values().filter(|c| c.exited.is_none()) {
            self.cgroups.kill(&container.start.cgroup)?;
        }
        if let Some(reaper) = self.held.reaper {
            process::kill(reaper, libc::SIGKILL)?;
        }
        std::fs::remove_file(self.dir.join(super::protocol::SOCKET))
    }
}

/// For a server that is not there to hear of it.
fn note(dir: &Path, exited: &Exited) -> io::Result<()> {
    let path = dir.join(EXITS).join(&exited.container);
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(&serde_json::to_vec(exited)?)?;
    std::fs::rename(new, path)
}

pub(super) fn nanoseconds() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
