//! The way to logind over a real dbus-daemon, where this machine has one: only logind is played.

use keelson_kubelet::shutdown::bus::wire::{Arg, Head, Kind, Message, decode, encode};
use keelson_kubelet::shutdown::logind::{Logind, Problem};
use keelson_kubelet::shutdown::{Power, Sources};
use keelson_sys::process::send_with_fds;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const MANAGER: &str = "org.freedesktop.login1.Manager";

struct Daemon {
    child: Child,
    dir: PathBuf,
}

impl Daemon {
    /// `None`: this machine has none.
    fn start(name: &str) -> Option<Daemon> {
        let dir = std::env::temp_dir().join(format!("keelson-bus-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let config = format!(
            "<busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
            dir.join("bus").display()
        );
        fs::write(dir.join("config"), config).unwrap();
        let started = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", dir.join("config").display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = started else {
            eprintln!("skipped: there is no dbus-daemon");
            return None;
        };
        // It listens once it says where.
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut String::new())
            .unwrap();
        Some(Daemon { child, dir })
    }

    fn sources(&self) -> Sources {
        Sources {
            bus: self.dir.join("bus"),
            settings: self.dir.join("logind.conf.d"),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// Somebody else on the bus.
struct Peer {
    stream: UnixStream,
    bytes: Vec<u8>,
    serial: u32,
}

impl Peer {
    fn join(socket: &Path, names: &[&str]) -> Peer {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let user = hex::encode(nix::unistd::geteuid().to_string());
        for line in [format!("\0AUTH EXTERNAL {user}\r\n"), "NEGOTIATE_UNIX_FD\r\n".into()] {
            stream.write_all(line.as_bytes()).unwrap();
            let mut byte = [0];
            while byte != [b'\n'] {
                stream.read_exact(&mut byte).unwrap();
            }
        }
        stream.write_all(b"BEGIN\r\n").unwrap();
        let mut peer = Peer {
            stream,
            bytes: Vec::new(),
            serial: 0,
        };
        peer.ask("Hello", &[]);
        for name in names {
            peer.ask("RequestName", &[Arg::Text(name), Arg::U32(4)]);
        }
        peer
    }

    fn ask(&mut self, member: &str, args: &[Arg]) {
        let bus = "org.freedesktop.DBus";
        let head = Head {
            path: "/org/freedesktop/DBus",
            interface: bus,
            member,
            destination: bus,
            ..Head::default()
        };
        self.send(Kind::Call, &head, args, None);
        while self.receive().unwrap().kind != Kind::Return {}
    }

    fn send(&mut self, kind: Kind, head: &Head, args: &[Arg], descriptor: Option<&dyn AsRawFd>) {
        self.serial += 1;
        let bytes = encode(kind, self.serial, head, args);
        let descriptors: Vec<i32> = descriptor.iter().map(|d| d.as_raw_fd()).collect();
        send_with_fds(self.stream.as_fd(), &bytes, &descriptors).unwrap();
    }

    fn receive(&mut self) -> Option<Message> {
        loop {
            if let Some((message, length)) = decode(&self.bytes).unwrap() {
                self.bytes.drain(..length);
                return Some(message);
            }
            let mut part = [0; 1024];
            match self.stream.read(&mut part) {
                Ok(count) if count > 0 => self.bytes.extend_from_slice(&part[..count]),
                _ => return None,
            }
        }
    }

    fn says(&mut self, stops: bool, destination: &str) {
        let head = Head {
            path: "/org/freedesktop/login1",
            interface: MANAGER,
            member: "PrepareForShutdown",
            destination,
            ..Head::default()
        };
        self.send(Kind::Signal, &head, &[Arg::Bool(stops)], None);
    }
}

/// Plays logind: answers calls, passes on the other ends of locks, and says that the machine stops when the test asks it to, by a
/// method of its own.
fn logind(socket: PathBuf, settings: PathBuf, locks: mpsc::Sender<(UnixStream, String)>) {
    // The name by which it is called first comes last: what is asked while it takes another would be passed over.
    let mut peer = Peer::join(&socket, &["org.freedesktop.systemd1", "org.freedesktop.login1"]);
    let mut delay = 5_000_000;
    while let Some(call) = peer.receive() {
        if call.kind != Kind::Call {
            continue;
        }
        let head = Head {
            destination: &call.sender,
            reply_to: Some(call.serial),
            ..Head::default()
        };
        match call.member.as_str() {
            "Get" => peer.send(Kind::Return, &head, &[Arg::Count(delay)], None),
            "KillUnit" => {
                let mut body = call.body();
                assert_eq!(call.signature, "ssi");
                assert_eq!(body.text().unwrap(), "systemd-logind.service");
                assert_eq!((body.text().unwrap().as_str(), body.u32().unwrap()), ("all", 1));
                let text = fs::read_to_string(settings.join("99-kubelet.conf")).unwrap();
                let seconds = text.trim().rsplit_once("InhibitDelayMaxSec=").unwrap().1;
                delay = seconds.parse::<u64>().unwrap() * 1_000_000;
                peer.send(Kind::Return, &head, &[], None);
            }
            "Inhibit" => {
                let mut body = call.body();
                assert_eq!(
                    (call.signature.as_str(), body.text().unwrap().as_str()),
                    ("ssss", "shutdown")
                );
                let (lock, other) = UnixStream::pair().unwrap();
                peer.send(Kind::Return, &head, &[Arg::Descriptor(0)], Some(&lock));
                locks.send((other, call.sender.clone())).unwrap();
            }
            "Say" => {
                let stops = call.body().u32().unwrap() != 0;
                peer.says(stops, "");
            }
            other => panic!("logind was asked {other}"),
        }
    }
}

fn tell(peer: &mut Peer, stops: bool) {
    let head = Head {
        path: "/org/freedesktop/login1",
        interface: MANAGER,
        member: "Say",
        destination: "org.freedesktop.login1",
        ..Head::default()
    };
    peer.send(Kind::Call, &head, &[Arg::Bool(stops)], None);
}

/// Whether the lock that this is the other end of is held.
fn is_held(other: &UnixStream) -> bool {
    other.set_nonblocking(true).unwrap();
    let mut other = other;
    !matches!(other.read(&mut [0]), Ok(0))
}

#[tokio::test]
async fn logind_waits_for_the_kubelet_and_nobody_else_speaks_for_it() {
    let Some(daemon) = Daemon::start("logind") else { return };
    let sources = daemon.sources();
    assert!(matches!(
        Logind::connect(&sources, Duration::from_secs(30)).await,
        Err(Problem::Absent)
    ));
    let (send, locks) = mpsc::channel();
    let (socket, settings) = (sources.bus.clone(), sources.settings.clone());
    let plays = std::thread::spawn(move || logind(socket, settings, send));
    let mut connected = None;
    for _ in 0..200 {
        match Logind::connect(&sources, Duration::from_secs(30)).await {
            Ok(logind) => {
                connected = Some(logind);
                break;
            }
            // It may not have its name yet.
            Err(Problem::Absent) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(Problem::Other(e)) => panic!("{e}"),
        }
    }
    let mut ours = connected.unwrap();
    let (first, name) = locks.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(is_held(&first));

    let mut stranger = Peer::join(&sources.bus, &[]);
    stranger.says(false, &name);
    stranger.says(false, "");
    tell(&mut stranger, true);
    let says = tokio::time::timeout(Duration::from_secs(20), ours.next())
        .await
        .unwrap();
    assert_eq!(says, Ok(true));
    ours.release();
    assert!(!is_held(&first));

    tell(&mut stranger, false);
    let says = tokio::time::timeout(Duration::from_secs(20), ours.next())
        .await
        .unwrap();
    assert_eq!(says, Ok(false));
    ours.hold().await.unwrap();
    let (second, _) = locks.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(is_held(&second));

    drop(daemon);
    assert!(ours.next().await.is_err());
    plays.join().unwrap();
}

#[tokio::test]
async fn a_machine_without_a_bus_has_no_logind() {
    let sources = Sources {
        bus: "/nonexistent/bus".into(),
        settings: "/nonexistent/settings".into(),
    };
    assert!(matches!(
        Logind::connect(&sources, Duration::from_secs(30)).await,
        Err(Problem::Absent)
    ));
}

/// With systemd's own logind (`tools/test-logind.sh`): what it says of its locks. That it stops the machine is played above, since here
/// is nobody whom it could tell to.
#[tokio::test]
async fn the_systems_own_logind_waits() {
    if std::env::var_os("KEELSON_LOGIND").is_none() {
        eprintln!("skipped: tools/test-logind.sh runs it");
        return;
    }
    let is_held = || {
        let place = [
            "org.freedesktop.login1",
            "/org/freedesktop/login1",
            MANAGER,
            "ListInhibitors",
        ];
        let asked = Command::new("busctl").arg("call").args(place).output().unwrap();
        let lock = "\"shutdown\" \"kubelet\" \"Kubelet needs time to handle node shutdown\" \"delay\"";
        String::from_utf8(asked.stdout).unwrap().contains(lock)
    };
    let sources = Sources::of_machine();
    let connected = Logind::connect(&sources, Duration::from_secs(4)).await;
    let mut ours = connected.unwrap_or_else(|e| panic!("{e:?}"));
    assert!(is_held());
    ours.release();
    let mut looks = 0..100;
    while is_held() {
        looks.next().unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ours.hold().await.unwrap();
    assert!(is_held());
}
