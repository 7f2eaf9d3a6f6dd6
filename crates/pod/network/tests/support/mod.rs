//! Network namespaces of threads, for tests that need real links. Needs root; each dies with its thread.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own that runs what it is given.
pub struct Namespace {
    pub path: PathBuf,
    jobs: Sender<Job>,
}

impl Namespace {
    pub fn new() -> Namespace {
        let (jobs, inbox): (Sender<Job>, Receiver<Job>) = channel();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let tid = nix::unistd::gettid();
            tell.send(PathBuf::from(format!("/proc/{}/task/{tid}/ns/net", std::process::id())))
                .unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        Namespace {
            path: told.recv().unwrap(),
            jobs,
        }
    }
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tx, rx) = channel();
        self.jobs.send(Box::new(move || tx.send(job()).unwrap())).unwrap();
        rx.recv_timeout(Duration::from_secs(20)).expect("the job answered")
    }
    /// Answers each connection with the caller's address, from a thread in the namespace.
    pub fn serve(&self, port: u16) {
        self.serve_on("0.0.0.0", port);
    }
    /// The same by both families.
    pub fn serve_both(&self, port: u16) {
        self.serve_on("::", port);
    }
    fn serve_on(&self, address: &'static str, port: u16) {
        self.run(move || {
            let listener = TcpListener::bind((address, port)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming().take(32) {
                    let mut stream = stream.unwrap();
                    let peer = stream.peer_addr().unwrap().ip().to_canonical().to_string();
                    stream.write_all(peer.as_bytes()).unwrap();
                }
            });
        });
    }
    pub fn ask(&self, to: SocketAddr) -> Result<String, String> {
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(1500)).map_err(|e| e.to_string())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
            Ok(answer)
        })
    }
}

pub fn block_on<T>(f: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(f)
}

/// What a datagram from an address, this namespace's or not, to `to` arrives as. `None`: it doesn't.
pub fn datagram(from: &Namespace, source: SocketAddr, at: &Namespace, to: SocketAddr) -> Option<SocketAddr> {
    let listener = at.run(move || {
        // On any address, so that what should never come is seen when it does.
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind((any, to.port())).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    });
    from.run(move || {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, sendto, setsockopt, socket, sockopt,
        };
        let family = if source.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let socket = socket(family, SockType::Datagram, SockFlag::empty(), None).unwrap();
        use std::os::fd::AsRawFd;
        match source {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::IpTransparent, &true).unwrap(),
            // Whoever would send with another's address has given it to a link.
            SocketAddr::V6(_) => {}
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(source)).unwrap();
        let flags = nix::sys::socket::MsgFlags::empty();
        sendto(socket.as_raw_fd(), b"x", &SockaddrStorage::from(to), flags).unwrap();
    });
    let mut buffer = [0; 8];
    listener.recv_from(&mut buffer).ok().map(|(_, peer)| peer)
}
