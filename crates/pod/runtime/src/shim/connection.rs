//! A server's connection to the shim.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use keelson_sys::process;

use super::protocol::{self, MAX_MESSAGE, Reply, Request};

/// What a connection is waiting for, beyond the reply to its next request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Plain,
    Subscriber,
    /// The process of an `Exec`.
    Exec {
        pid: i32,
    },
}

pub struct Connection {
    pub role: Role,
    stream: UnixStream,
    input: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Replies that the other side has not taken.
    output: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// Requests that arrived, and whether the other side is gone.
pub struct Arrived {
    pub requests: Vec<Request>,
    pub closed: bool,
}

impl Connection {
    pub fn new(stream: UnixStream) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        Ok(Connection {
            role: Role::Plain,
            stream,
            input: Vec::new(),
            descriptors: Vec::new(),
            output: VecDeque::new(),
        })
    }

    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub fn wants_to_write(&self) -> bool {
        !self.output.is_empty()
    }

    pub fn receive(&mut self, buffer: &mut [u8]) -> Arrived {
        let mut arrived = Arrived {
            requests: Vec::new(),
            closed: false,
        };
        loop {
            match process::receive_with_fds(self.stream.as_fd(), buffer) {
                Ok((0, _)) => arrived.closed = true,
                Ok((n, fds)) => {
                    self.input.extend_from_slice(&buffer[..n]);
                    self.descriptors.extend(fds);
                    if self.input.len() <= MAX_MESSAGE + 4 && self.descriptors.len() <= process::MAX_FDS {
                        continue;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => arrived.closed = true,
            }
            break;
        }
        loop {
            match protocol::decode(&mut self.input) {
                Ok(Some(request)) => arrived.requests.push(request),
                Ok(None) => break,
                Err(_) => {
                    arrived.closed = true;
                    break;
                }
            }
        }
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        arrived
    }

    /// The descriptors that came with the request.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// Fails when the other side is gone or takes nothing.
    pub fn send(&mut self, reply: &Reply, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        if self.output.iter().map(|(bytes, _)| bytes.len()).sum::<usize>() > MAX_MESSAGE {
            return Err(io::Error::other("the server reads no replies"));
        }
        self.output.push_back((protocol::encode(reply)?, descriptors));
        self.flush()
    }

    pub fn flush(&mut self) -> io::Result<()> {
        while let Some((bytes, descriptors)) = self.output.front_mut() {
            let sent = if descriptors.is_empty() {
                self.stream.write(bytes)
            } else {
                let fds: Vec<RawFd> = descriptors.iter().map(|d| d.as_raw_fd()).collect();
                process::send_with_fds(self.stream.as_fd(), bytes, &fds)
            };
            match sent {
                Ok(n) => {
                    descriptors.clear();
                    bytes.drain(..n);
                    if bytes.is_empty() {
                        self.output.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
