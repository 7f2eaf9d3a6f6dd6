//! The shim: one small, single-threaded process per pod that outlives the server.
//!
//! It holds the pod's namespaces, makes its containers, reaps their processes, writes their logs and answers the
//! server over a unix socket. It knows neither CRI nor images nor the network, and it never waits for anything but the
//! kernel: what may block (making a container, entering one) happens in children. When the server is killed, the shim
//! and the containers do not notice; the next server finds the socket in the state directory and goes on.

mod client;
mod connection;
mod container;
mod create;
mod exec;
mod launch;
mod log;
mod making;
mod namespaces;
mod pause;
mod probe;
mod program;
pub mod protocol;
mod server;
mod staging;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use keelson_sys::process::{self, Parent};
use nix::sched::CloneFlags;

pub use client::{Events, ExecSession, Shim, ShimError, running};
pub use create::OCI_ROOT;
pub use namespaces::{DIRECTORY as NAMESPACES, PROC};

use protocol::ShimConfig;

/// In place of a sandbox's directory: whether pods can have users of their own is found out in the directory that follows.
const PROBE: &str = "--user-namespaces";

/// The program's entry when its first argument is `shim`; `args` are those behind it. Must run before any thread is
/// started. Returns to the caller's parent as soon as the shim serves; the shim itself goes on in the background.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ! {
    let mut args = args.into_iter();
    let result = match args.next() {
        Some(asked) if asked == PROBE => args
            .next()
            .ok_or_else(|| io::Error::other("a directory is missing"))
            .and_then(|dir| probe::run(Path::new(&dir)).map_err(io::Error::other)),
        Some(dir) => launch_shim(Path::new(&dir)),
        None => Err(io::Error::other("usage: shim <state directory of a sandbox>")),
    };
    match result {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1)
        }
    }
}

/// Forks the shim and waits until it serves.
fn launch_shim(dir: &Path) -> io::Result<()> {
    process::close_from(3)?;
    let dir = dir.canonicalize()?;
    let config: ShimConfig = serde_json::from_slice(&std::fs::read(dir.join(protocol::CONFIG))?)?;
    let (mut ours, theirs) = UnixStream::pair()?;
    let launcher_end = ours.as_raw_fd();
    process::fork(Parent::Caller, CloneFlags::empty(), move || {
        let _ = nix::unistd::close(launcher_end);
        daemon(dir, config, theirs)
    })?;
    let mut answer = String::new();
    ours.read_to_string(&mut answer)?;
    if answer == "ok" {
        Ok(())
    } else {
        Err(io::Error::other(answer))
    }
}

fn daemon(dir: PathBuf, config: ShimConfig, mut parent: UnixStream) -> i32 {
    match start(&dir, &config) {
        Ok(shim) => {
            if parent.write_all(b"ok").is_err() {
                return 1;
            }
            drop(parent);
            match shim.run() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("shim: {error}");
                    1
                }
            }
        }
        Err(error) => {
            let _launcher_is_gone = parent.write_all(error.to_string().as_bytes());
            1
        }
    }
}

fn start(dir: &Path, config: &ShimConfig) -> io::Result<server::Server> {
    nix::unistd::setsid()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::sys::prctl::set_name(c"keelson-shim")?;
    process::become_subreaper()?;
    nix::unistd::setgroups(&[])?;
    create::set_oom_score(Some(config.oom_score_adj));
    let null: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
    let log: OwnedFd = File::create(dir.join("shim.log"))?.into();
    for (fd, target) in [(&null, 0), (&null, 1), (&log, 2)] {
        process::dup_to(fd.as_fd(), target)?;
    }
    std::env::set_current_dir(dir)?;
    std::fs::create_dir_all(protocol::EXITS)?;
    std::fs::create_dir_all(OCI_ROOT)?;
    let held = namespaces::create(dir, config)?;
    let listener = UnixListener::bind(protocol::SOCKET)?;
    server::Server::new(dir, held, listener)
}
