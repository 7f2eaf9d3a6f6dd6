//! Sockets that outlive their process: whoever starts services keeps them (`sd_notify(3)`'s FDSTORE), and hands them to the next
//! process of the same service. Meanwhile connections wait in the kernel's queue, where they would have been refused.
//!
//! Who isn't started by such a one keeps nothing, and nothing changes for it. What it said to this process alone is taken out of the
//! environment: no program that is started here is to speak in this one's name.

use nix::sys::socket::sockopt::AcceptConn;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, UnixAddr, getsockname, getsockopt,
    sendmsg, socket, sockopt,
};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The first descriptor that is handed over; see sd_listen_fds(3).
const FIRST: RawFd = 3;
/// More than any of our processes has.
const MOST: usize = 64;

/// What whoever starts services says to one process, as systemd.exec(5) has it; of sockets, of words to it, and of which process it is.
const SAID: [&str; 12] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    NOTIFY,
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
    "MAINPID",
    "MANAGERPID",
    "SYSTEMD_EXEC_PID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
];
const NOTIFY: &str = "NOTIFY_SOCKET";

struct Sockets {
    /// Of those that it said, and that go on to this program begun anew.
    said: BTreeMap<&'static str, OsString>,
    /// By name. One that a component has taken stays, for when that component starts again: its keeper has the port.
    known: Mutex<BTreeMap<String, Socket>>,
}

struct Socket {
    fd: OwnedFd,
    used: bool,
}

static SOCKETS: OnceLock<Sockets> = OnceLock::new();

/// Takes what this process was started with. To be called first of all, while it has one thread: children are to know nothing of it.
pub fn take() {
    let environment = |name: &str| std::env::var(name).unwrap_or_default();
    let for_us = environment("LISTEN_PID").parse() == Ok(std::process::id());
    let count = environment("LISTEN_FDS").parse().unwrap_or(0).min(MOST);
    let (names, mut known) = (environment("LISTEN_FDNAMES"), BTreeMap::new());
    for (at, name) in names.split(':').take(count).enumerate().filter(|_| for_us) {
        let fd = FIRST + at as RawFd;
        // SAFETY: whoever started this process says that these descriptors are open and meant for it, and nothing has run that
        // could have opened or closed any; those that aren't open are passed over.
        let fd = unsafe {
            if libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) != 0 {
                continue;
            }
            OwnedFd::from_raw_fd(fd)
        };
        known.insert(name.to_owned(), Socket { fd, used: false });
    }
    let mut said = BTreeMap::new();
    for name in SAID {
        said.extend(
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(|value| (name, value)),
        );
        // SAFETY: this process has one thread (the caller's promise), so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    let _twice = SOCKETS.set(Sockets {
        said,
        known: Mutex::new(known),
    });
}

/// What this process was told by whoever started it as a service, under a name such as `NOTIFY_SOCKET`.
pub fn said(name: &str) -> Option<&'static OsString> {
    SOCKETS.get()?.said.get(name)
}

/// The listening socket of this name, if there is one and it has this address.
pub fn listener(name: &str, address: SocketAddr) -> Option<TcpListener> {
    let fd = find(name, SockType::Stream, address)?;
    getsockopt(&fd, AcceptConn).ok().filter(|listens| *listens)?;
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(true).ok()?;
    Some(listener)
}

/// The same for datagrams: those that came meanwhile wait in it.
pub fn datagrams(name: &str, address: SocketAddr) -> Option<UdpSocket> {
    let socket = UdpSocket::from(find(name, SockType::Datagram, address)?);
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

fn find(name: &str, kind: SockType, address: SocketAddr) -> Option<OwnedFd> {
    let mut known = SOCKETS.get()?.known.lock().unwrap_or_else(PoisonError::into_inner);
    let socket = known.get_mut(name)?;
    if !is(&socket.fd, kind, address) {
        return None;
    }
    socket.used = true;
    socket.fd.try_clone().ok()
}

fn is(fd: &OwnedFd, kind: SockType, address: SocketAddr) -> bool {
    let bound = getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok();
    let bound = bound.and_then(|bound| match (bound.as_sockaddr_in(), bound.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddr::from(std::net::SocketAddrV4::from(*v4))),
        (_, Some(v6)) => Some(SocketAddr::from(std::net::SocketAddrV6::from(*v6))),
        _ => None,
    });
    let same = bound.is_some_and(|bound| (bound.ip(), bound.port()) == (address.ip(), address.port()));
    same && getsockopt(fd, sockopt::SockType).is_ok_and(|of| of == kind)
}

/// Has a new socket kept for the process after this one, in place of any of this name. Tells whether there is somebody who does.
pub fn keep(name: &str, socket: BorrowedFd<'_>) -> io::Result<bool> {
    let Some(sockets) = SOCKETS.get() else { return Ok(false) };
    let Some(keeper) = said(NOTIFY) else {
        return Ok(false);
    };
    let fd = socket.try_clone_to_owned()?;
    let mut known = sockets.known.lock().unwrap_or_else(PoisonError::into_inner);
    known.remove(name);
    tell(keeper, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)?;
    tell(keeper, &format!("FDSTORE=1\nFDNAME={name}"), Some(fd.as_fd()))?;
    known.insert(name.to_owned(), Socket { fd, used: true });
    Ok(true)
}

/// Closes those that nobody has taken: their components don't run any more, or listen elsewhere. Tells which.
pub fn release() -> Vec<String> {
    let Some(sockets) = SOCKETS.get() else {
        return Vec::new();
    };
    let mut known = sockets.known.lock().unwrap_or_else(PoisonError::into_inner);
    let unused: Vec<String> = known
        .iter()
        .filter(|(_, s)| !s.used)
        .map(|(name, _)| name.clone())
        .collect();
    for name in &unused {
        known.remove(name);
        if let Some(keeper) = said(NOTIFY) {
            // One that is kept in vain costs its keeper a descriptor.
            let _told = tell(keeper, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        }
    }
    unused
}

/// Has this program, which is to be executed anew in this process, begin with what it was told and the sockets that it has now: their keeper
/// hands them to another process only, and has their ports.
pub fn pass_on(next: &mut Command) -> io::Result<()> {
    let Some(sockets) = SOCKETS.get() else { return Ok(()) };
    next.envs(sockets.said.iter().filter(|(name, _)| !name.starts_with("LISTEN_")));
    let known = sockets.known.lock().unwrap_or_else(PoisonError::into_inner);
    put(next, &known)
}

fn put(next: &mut Command, known: &BTreeMap<String, Socket>) -> io::Result<()> {
    let (mut names, mut fds) = (Vec::new(), Vec::new());
    for (name, socket) in known.iter().take(MOST) {
        // SAFETY: the descriptor is open; the new one is nobody's yet, and lies beyond the places that they are put in.
        let fd = unsafe {
            let fd = libc::fcntl(socket.fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST + MOST as RawFd);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        names.push(name.as_str());
        fds.push(fd);
    }
    if fds.is_empty() {
        return Ok(());
    }
    next.env("LISTEN_PID", std::process::id().to_string())
        .env("LISTEN_FDS", fds.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    let place = move || {
        for (at, fd) in fds.iter().enumerate() {
            // SAFETY: the source is open; what has the other number goes with the program, in the next moment.
            if unsafe { libc::dup2(fd.as_raw_fd(), FIRST + at as RawFd) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: it makes system calls only, and allocates nothing.
    unsafe { next.pre_exec(place) };
    Ok(())
}

fn tell(keeper: &OsString, message: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let address = match keeper.as_bytes() {
        [b'@', name @ ..] => UnixAddr::new_abstract(name)?,
        path => UnixAddr::new(path)?,
    };
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let fds: Vec<RawFd> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let text = [io::IoSlice::new(message.as_bytes())];
    sendmsg(
        socket.as_raw_fd(),
        &text,
        rights,
        MsgFlags::MSG_NOSIGNAL,
        Some(&address),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_known_by_its_kind_and_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, fd) = (listener.local_addr().unwrap(), OwnedFd::from(listener));
        assert!(is(&fd, SockType::Stream, address));
        assert!(!is(&fd, SockType::Datagram, address));
        assert!(!is(
            &fd,
            SockType::Stream,
            SocketAddr::from(([127, 0, 0, 2], address.port()))
        ));
        let other = address.port().wrapping_add(1);
        assert!(!is(&fd, SockType::Stream, SocketAddr::from(([127, 0, 0, 1], other))));
        let six = TcpListener::bind("[::1]:0");
        if let Ok(six) = six {
            let (address, fd) = (six.local_addr().unwrap(), OwnedFd::from(six));
            assert!(is(&fd, SockType::Stream, address));
        }
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(!is(&file, SockType::Stream, address));
    }

    /// As a service's manager would: the message, and the socket with it.
    #[test]
    fn a_keeper_gets_the_socket() {
        let path = std::env::temp_dir().join(format!("keelson-handed-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let keeper = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let text = "FDSTORE=1\nFDNAME=api";
        tell(&path.clone().into_os_string(), text, Some(listener.as_fd())).unwrap();
        let mut buffer = [0; 100];
        let (read, fds) = crate::process::receive_with_fds(keeper.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..read], text.as_bytes());
        drop(listener);
        // What comes while nobody has it open but the keeper waits.
        let client = std::net::TcpStream::connect(address).unwrap();
        let fd = fds.into_iter().next().unwrap();
        assert!(is(&fd, SockType::Stream, address));
        let (_, from) = TcpListener::from(fd).accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        std::fs::remove_file(&path).unwrap();
    }

    /// This test once more, as a service of a manager's.
    #[test]
    fn children_hear_nothing_of_what_the_manager_said_but_for_this_program_begun_anew() {
        const SERVICE: &str = "KEELSON_TEST_SERVICE";
        let env = |command: &mut Command| String::from_utf8(command.output().unwrap().stdout).unwrap();
        if std::env::var_os(SERVICE).is_some() {
            take();
            assert_eq!(said(NOTIFY), Some(&"/run/manager".into()));
            assert_eq!(said("WATCHDOG_USEC"), Some(&"7".into()));
            let mut next = Command::new("/usr/bin/env");
            println!("child<{}>", env(&mut next));
            pass_on(&mut next).unwrap();
            println!("next<{}>", env(&mut next));
            return;
        }
        let name = "handed::tests::children_hear_nothing_of_what_the_manager_said_but_for_this_program_begun_anew";
        let mut service = Command::new(std::env::current_exe().unwrap());
        service.args(["--exact", name, "--test-threads=1", "--nocapture"]);
        service
            .envs(SAID.map(|name| (name, "7")))
            .env(NOTIFY, "/run/manager")
            .env(SERVICE, "1");
        let output = env(&mut service);
        let part = |name: &str| {
            output
                .split(&format!("{name}<"))
                .nth(1)
                .unwrap()
                .split('>')
                .next()
                .unwrap()
        };
        let has = |part: &str, name: &str| part.lines().any(|line| line.starts_with(&format!("{name}=")));
        assert!(has(part("child"), SERVICE), "{output}");
        for name in SAID {
            assert!(!has(part("child"), name), "{name}: {output}");
            assert_eq!(
                has(part("next"), name),
                !name.starts_with("LISTEN_"),
                "{name}: {output}"
            );
        }
    }

    #[test]
    fn a_program_that_follows_in_this_process_has_the_sockets() {
        let place = |fd: RawFd| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        let mut known = BTreeMap::new();
        let mut wanted = format!("{} 2 api:dns\n", std::process::id());
        for name in ["api", "dns"] {
            let fd = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
            wanted += &format!("{}\n", place(fd.as_raw_fd()).display());
            known.insert(name.to_owned(), Socket { fd, used: true });
        }
        let mut next = Command::new("/bin/sh");
        next.args([
            "-c",
            "echo $LISTEN_PID $LISTEN_FDS $LISTEN_FDNAMES; readlink /proc/self/fd/3 /proc/self/fd/4",
        ]);
        put(&mut next, &known).unwrap();
        let said = next.output().unwrap().stdout;
        assert_eq!(String::from_utf8(said).unwrap(), wanted);
        let mut alone = Command::new("/bin/sh");
        put(&mut alone, &BTreeMap::new()).unwrap();
        assert_eq!(alone.get_envs().count(), 0);
    }
}
