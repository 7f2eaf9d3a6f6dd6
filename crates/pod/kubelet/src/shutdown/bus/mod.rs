//! A connection to the system's D-Bus, by which systemd's services are spoken to: calls one after the other, and signals. Written
//! here since what there is costs more than it spares: the kept crate (zbus) brings seventeen packages and switches on the tracing of
//! every task of the whole program, for five calls of fixed form.

pub mod wire;

use keelson_sys::process::receive_with_fds;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use wire::{Arg, Head, Kind, Message};

/// How long an answer may take: as libdbus has it.
const ANSWER: Duration = Duration::from_secs(25);
/// Signals that are kept while an answer is waited for; of more the oldest are given up.
const WAITING: usize = 64;
/// Descriptors that may be there without their message.
const DESCRIPTORS: usize = 8;

/// The bus itself, as one of those that are spoken to.
pub const DAEMON: Place = Place {
    name: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
};

#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub name: &'static str,
    pub path: &'static str,
}

#[derive(Debug)]
pub enum Failure {
    /// The other side says no: the name of the error, and what it says.
    Refused(String, String),
    /// The connection is of no use any more.
    Broken(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(name, text) if text.is_empty() => write!(f, "{name}"),
            Failure::Refused(_, text) => write!(f, "{text}"),
            Failure::Broken(e) => write!(f, "{e}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        Failure::Broken(e)
    }
}

pub struct Bus {
    stream: UnixStream,
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    serial: u32,
    signals: VecDeque<Message>,
}

fn broken(why: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

impl Bus {
    /// Connects to a bus, as whom this process runs.
    pub async fn connect(socket: &Path) -> Result<Bus, Failure> {
        let connecting = async {
            let mut stream = UnixStream::connect(socket).await?;
            greet(&mut stream).await?;
            let mut bus = Bus {
                stream,
                bytes: Vec::new(),
                descriptors: VecDeque::new(),
                serial: 0,
                signals: VecDeque::new(),
            };
            bus.call(DAEMON, DAEMON.name, "Hello", &[]).await?;
            Ok(bus)
        };
        tokio::time::timeout(ANSWER, connecting)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    /// Calls a method, and returns its answer with the descriptors in it.
    pub async fn call(
        &mut self,
        of: Place,
        interface: &str,
        member: &str,
        args: &[Arg<'_>],
    ) -> Result<(Message, Vec<OwnedFd>), Failure> {
        let head = Head {
            path: of.path,
            interface,
            member,
            destination: of.name,
            ..Head::default()
        };
        // Taking the call is part of it: who doesn't read isn't waited for either.
        let answer = async {
            let serial = self.send(Kind::Call, &head, args).await?;
            loop {
                let (message, descriptors) = self.receive().await?;
                match message.kind {
                    Kind::Return | Kind::Error if message.reply_to == Some(serial) => {
                        return Ok((message, descriptors));
                    }
                    Kind::Signal => self.keep(message),
                    _ => {}
                }
            }
        };
        let answer = tokio::time::timeout(ANSWER, answer).await;
        let answer: io::Result<_> = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let (message, descriptors) = answer?;
        match message.kind {
            Kind::Error => Err(Failure::Refused(message.error.clone(), message.first_text())),
            _ => Ok((message, descriptors)),
        }
    }

    /// The next signal. Whoever stops waiting loses none.
    pub async fn signal(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.signals.pop_front() {
                return Ok(message);
            }
            let (message, _) = self.receive().await?;
            if message.kind == Kind::Signal {
                return Ok(message);
            }
        }
    }

    /// Sends a message; returns its number.
    pub async fn send(&mut self, kind: Kind, head: &Head<'_>, args: &[Arg<'_>]) -> io::Result<u32> {
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        let bytes = wire::encode(kind, self.serial, head, args);
        self.stream.write_all(&bytes).await?;
        Ok(self.serial)
    }

    fn keep(&mut self, signal: Message) {
        if self.signals.len() >= WAITING {
            self.signals.pop_front();
        }
        self.signals.push_back(signal);
    }

    /// The next message of any kind.
    pub async fn receive(&mut self) -> io::Result<(Message, Vec<OwnedFd>)> {
        loop {
            if let Some((message, length)) = wire::decode(&self.bytes).map_err(broken)? {
                self.bytes.drain(..length);
                let count = message.descriptors as usize;
                if count > self.descriptors.len() {
                    return Err(broken("a descriptor is missing"));
                }
                let descriptors = self.descriptors.drain(..count).collect();
                return Ok((message, descriptors));
            }
            self.stream.readable().await?;
            let mut part = [0; 4096];
            let stream = &self.stream;
            let read = stream.try_io(Interest::READABLE, || receive_with_fds(stream.as_fd(), &mut part));
            match read {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((count, descriptors)) => {
                    self.bytes.extend_from_slice(&part[..count]);
                    self.descriptors.extend(descriptors);
                    if self.descriptors.len() > DESCRIPTORS {
                        return Err(broken("descriptors that nothing was said of"));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Says who we are, which the kernel vouches for.
async fn greet(stream: &mut UnixStream) -> io::Result<()> {
    let user = nix::unistd::geteuid().to_string();
    say(stream, &format!("\0AUTH EXTERNAL {}\r\n", hex::encode(user)), "OK ").await?;
    say(stream, "NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD").await?;
    stream.write_all(b"BEGIN\r\n").await
}

async fn say(stream: &mut UnixStream, line: &str, wanted: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        if answer.len() > 512 {
            return Err(broken("the bus doesn't answer in lines"));
        }
        // By bytes: what follows isn't lines any more.
        answer.push(stream.read_u8().await?);
    }
    let answer = String::from_utf8_lossy(&answer).trim_end().to_owned();
    match answer.starts_with(wanted) {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("the bus refuses us: {answer}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bus_that_reads_nothing_is_not_waited_for() {
        let (stream, _theirs) = UnixStream::pair().unwrap();
        let mut bus = Bus {
            stream,
            bytes: Vec::new(),
            descriptors: VecDeque::new(),
            serial: 0,
            signals: VecDeque::new(),
        };
        let long = "x".repeat(16 << 20);
        let args = [Arg::Text(&long)];
        let call = bus.call(DAEMON, DAEMON.name, "AddMatch", &args);
        let ended = tokio::time::timeout(ANSWER * 2, call).await.unwrap();
        assert!(matches!(ended, Err(Failure::Broken(e)) if e.kind() == io::ErrorKind::TimedOut));
    }
}
