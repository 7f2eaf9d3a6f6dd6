//! A container as its shim sees it: its first process, its streams, its log and who is attached.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::log::{self, Lines, LogFile, Stream};
use super::protocol::{ContainerState, Exited, Start};

/// Output that an attached client has not taken yet; a client further behind is cut off, the container never waits.
const MAX_BEHIND: usize = 4 << 20;

pub struct Container {
    pub start: Start,
    pub pid: i32,
    pub started_at: i64,
    pub exited: Option<Exited>,
    pub stdin: Option<File>,
    pub terminal: Option<File>,
    outputs: Vec<Output>,
    log: Option<LogFile>,
    attached: Vec<Attached>,
}

/// One of the container's output streams.
struct Output {
    from: File,
    stream: Stream,
    lines: Lines,
}

struct Attached {
    to: File,
    stream: Stream,
    behind: Vec<u8>,
}

/// The container's ends of its standard streams.
pub type ChildStreams = [OwnedFd; 3];

/// Gives pipes to the user that a process runs as: programs open /dev/stdout and the like again. Whatever else there is,
/// /dev/null, is everybody's.
pub fn own(streams: &ChildStreams, uid: u32, gid: u32) -> io::Result<()> {
    for fd in streams {
        if nix::sys::stat::fstat(fd)?.st_mode & libc::S_IFMT == libc::S_IFIFO {
            nix::unistd::fchown(fd, Some(uid.into()), Some(gid.into()))?;
        }
    }
    Ok(())
}

impl Container {
    /// Opens the log and makes the streams. With a terminal there are none to pass on: its master comes later.
    pub fn prepare(start: Start) -> io::Result<(Container, Option<ChildStreams>)> {
        let log = start
            .log
            .as_deref()
            .map(|path| LogFile::open(Path::new(path)))
            .transpose()?;
        let mut container = Container {
            pid: 0,
            started_at: 0,
            exited: None,
            stdin: None,
            terminal: None,
            outputs: Vec::new(),
            log,
            attached: Vec::new(),
            start,
        };
        if container.start.terminal {
            return Ok((container, None));
        }
        let stdin = if container.start.stdin {
            let (read, write) = pipe()?;
            container.stdin = Some(write.into());
            read
        } else {
            File::open("/dev/null")?.into()
        };
        let (stdout, stderr) = (pipe()?, pipe()?);
        let streams = [stdin, stdout.1, stderr.1];
        own(&streams, container.start.uid, container.start.gid)?;
        container.add_output(stdout.0, Stream::Stdout)?;
        container.add_output(stderr.0, Stream::Stderr)?;
        Ok((container, Some(streams)))
    }

    pub fn set_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        self.terminal = Some(File::from(master.try_clone()?));
        self.add_output(master, Stream::Stdout)
    }

    fn add_output(&mut self, from: OwnedFd, stream: Stream) -> io::Result<()> {
        set_nonblocking(from.as_fd())?;
        self.outputs.push(Output {
            from: from.into(),
            stream,
            lines: Lines::new(stream),
        });
        Ok(())
    }

    pub fn state(&self) -> ContainerState {
        ContainerState {
            container: self.start.container.clone(),
            pid: self.pid,
            started_at: self.started_at,
            exited: self.exited.clone(),
        }
    }

    /// Descriptors to wait on: output to read.
    pub fn readable(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.outputs.iter().map(|o| o.from.as_fd())
    }

    /// Descriptors to wait on: clients with output left to take.
    pub fn writable(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.attached
            .iter()
            .filter(|a| !a.behind.is_empty())
            .map(|a| a.to.as_fd())
    }

    pub fn owns(&self, fd: i32) -> bool {
        self.outputs.iter().any(|o| o.from.as_raw_fd() == fd) || self.attached.iter().any(|a| a.to.as_raw_fd() == fd)
    }

    /// Moves what has come to the log and to those attached; once per stream, so that one container cannot keep the
    /// shim from the others.
    pub fn pump(&mut self, buffer: &mut [u8]) {
        self.flush_attached();
        self.copy(buffer);
    }

    /// Returns whether anything was read.
    fn copy(&mut self, buffer: &mut [u8]) -> bool {
        let mut any = false;
        let mut index = 0;
        while index < self.outputs.len() {
            let output = &mut self.outputs[index];
            let stream = output.stream;
            let (read, ended) = match output.from.read(buffer) {
                Ok(0) => (0, true),
                Ok(n) => (n, false),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => (0, false),
                // A terminal that nobody has open any more answers EIO.
                Err(_) => (0, true),
            };
            any |= read > 0;
            let mut lines = Vec::new();
            if self.log.is_some() && (read > 0 || ended) {
                let now = log::now();
                output.lines.push(&buffer[..read], &now, &mut lines);
                if ended {
                    output.lines.finish(&now, &mut lines);
                }
            }
            self.write_log(&lines);
            self.hand_out(stream, &buffer[..read]);
            if ended {
                self.outputs.remove(index);
                if !self.outputs.iter().any(|o| o.stream == stream) {
                    self.attached.retain(|a| a.stream != stream || !a.behind.is_empty());
                }
            } else {
                index += 1;
            }
        }
        any
    }

    fn write_log(&mut self, lines: &[u8]) {
        if let Some(log) = self.log.as_mut().filter(|_| !lines.is_empty()) {
            // A full disk loses lines; it must not stop the container.
            if let Err(error) = log.write(lines) {
                eprintln!("log of {}: {error}", self.start.container);
            }
        }
    }

    fn hand_out(&mut self, stream: Stream, output: &[u8]) {
        if output.is_empty() {
            return;
        }
        for attached in self.attached.iter_mut().filter(|a| a.stream == stream) {
            attached.behind.extend_from_slice(output);
        }
        self.flush_attached();
    }

    fn flush_attached(&mut self) {
        let open: Vec<Stream> = self.outputs.iter().map(|o| o.stream).collect();
        self.attached.retain_mut(|a| {
            while !a.behind.is_empty() {
                match a.to.write(&a.behind) {
                    Ok(n) => drop(a.behind.drain(..n)),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return false,
                }
            }
            if a.behind.is_empty() {
                a.behind = Vec::new();
            }
            a.behind.len() <= MAX_BEHIND && (open.contains(&a.stream) || !a.behind.is_empty())
        });
    }

    /// Copies output to `to` from now on.
    pub fn attach(&mut self, to: OwnedFd, stream: Stream) -> io::Result<()> {
        set_nonblocking(to.as_fd())?;
        self.attached.push(Attached {
            to: to.into(),
            stream,
            behind: Vec::new(),
        });
        Ok(())
    }

    pub fn reopen_log(&mut self) -> io::Result<()> {
        self.log.as_mut().map_or(Ok(()), LogFile::reopen)
    }

    /// After the last process: what is still in the pipes goes out, and everything is closed.
    pub fn finish(&mut self, exited: Exited, buffer: &mut [u8]) {
        while self.copy(buffer) {}
        let now = log::now();
        let mut lines = Vec::new();
        for output in &mut self.outputs {
            output.lines.finish(&now, &mut lines);
        }
        self.write_log(&lines);
        self.outputs.clear();
        self.stdin = None;
        self.terminal = None;
        self.log = None;
        self.flush_attached();
        self.exited = Some(exited);
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)
}

pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
