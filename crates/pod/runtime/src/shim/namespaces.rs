//! The namespaces that the containers of a pod share.
//!
//! A short-lived child makes them and the shim keeps them open by descriptor, so the shim itself stays in the host's
//! namespaces and no pause container is needed. Containers join through links in the sandbox's `ns` directory, which
//! lead to the shim's descriptors. When processes are shared, the child stays as the first process of their namespace,
//! as a program of its own in a root of its own (`pause`): the containers see it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use keelson_sys::process::{self, Parent};
use nix::sched::CloneFlags;

use super::pause;
use super::protocol::{IdMapping, ShimConfig};

/// Names in the `ns` directory.
pub const DIRECTORY: &str = "ns";

pub struct Held {
    /// Never read: being open is what they are for.
    _descriptors: Vec<OwnedFd>,
    /// The first process of the shared process namespace.
    pub reaper: Option<i32>,
}

pub fn create(dir: &Path, config: &ShimConfig) -> io::Result<Held> {
    let flags = flags(config);
    if flags.is_empty() {
        return Ok(Held {
            _descriptors: Vec::new(),
            reaper: None,
        });
    }
    let (mut ours, theirs) = UnixStream::pair()?;
    let shim_end = ours.as_raw_fd();
    let pid = process::fork(Parent::Caller, flags, move || {
        let _ = nix::unistd::close(shim_end);
        inside(theirs, config)
    })?;
    let held = hold(dir, config, pid, &mut ours).and_then(|held| {
        if config.shared_pid {
            pause::wait_for_pause(&mut ours)?;
        }
        Ok(held)
    });
    match held {
        Ok(mut held) => {
            if config.shared_pid {
                held.reaper = Some(pid);
            } else {
                process::kill(pid, libc::SIGKILL)?;
                process::wait_for(pid)?;
            }
            Ok(held)
        }
        Err(error) => {
            let _gone = process::kill(pid, libc::SIGKILL);
            process::wait_for(pid)?;
            Err(error)
        }
    }
}

fn flags(config: &ShimConfig) -> CloneFlags {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, config.own_network);
    flags.set(CloneFlags::CLONE_NEWIPC, config.own_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, config.own_uts);
    flags.set(CloneFlags::CLONE_NEWPID, config.shared_pid);
    // The first process of the pod has its own of what a container could reach through it.
    flags.set(CloneFlags::CLONE_NEWNS, config.shared_pid);
    flags.set(CloneFlags::CLONE_NEWCGROUP, config.shared_pid);
    flags.set(CloneFlags::CLONE_NEWUSER, !config.uid_mappings.is_empty());
    flags
}

/// The shim's side: identity mappings, then descriptors of what the child has made.
fn hold(dir: &Path, config: &ShimConfig, pid: i32, child: &mut UnixStream) -> io::Result<Held> {
    if !config.uid_mappings.is_empty() {
        std::fs::write(format!("/proc/{pid}/uid_map"), map(&config.uid_mappings))?;
        std::fs::write(format!("/proc/{pid}/gid_map"), map(&config.gid_mappings))?;
    }
    child.write_all(b"!")?;
    let mut answer = String::new();
    let mut first = [0];
    child.read_exact(&mut first)?;
    if first[0] != b'!' {
        child.read_to_string(&mut answer)?;
        return Err(io::Error::other(answer));
    }
    let ns = dir.join(DIRECTORY);
    std::fs::create_dir_all(&ns)?;
    let wanted = [
        (config.own_network, "net"),
        (config.own_ipc, "ipc"),
        (config.own_uts, "uts"),
        (config.shared_pid, "pid"),
        (!config.uid_mappings.is_empty(), "user"),
    ];
    let mut descriptors = Vec::new();
    for (_, name) in wanted.iter().filter(|(wanted, _)| *wanted) {
        let descriptor: OwnedFd = File::open(format!("/proc/{pid}/ns/{name}"))?.into();
        let link = ns.join(name);
        match std::fs::remove_file(&link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::os::unix::fs::symlink(
            format!("/proc/{}/fd/{}", std::process::id(), descriptor.as_raw_fd()),
            link,
        )?;
        descriptors.push(descriptor);
    }
    Ok(Held {
        _descriptors: descriptors,
        reaper: None,
    })
}

fn map(mappings: &[IdMapping]) -> String {
    mappings
        .iter()
        .map(|m| format!("{} {} {}\n", m.container, m.host, m.length))
        .collect()
}

/// The child's side.
fn inside(mut shim: UnixStream, config: &ShimConfig) -> i32 {
    let mut go = [0];
    if shim.read_exact(&mut go).is_err() {
        return 1;
    }
    let last = process::last_capability();
    let prepared = prepare(config).and_then(|()| {
        if config.shared_pid {
            pause::leave_the_host()
        } else {
            Ok(())
        }
    });
    if let Err(error) = prepared {
        let _nobody_listens = shim.write_all(format!("?{error}").as_bytes());
        return 1;
    }
    // Then the shim opens the namespaces; it ends the child, or lets it become the pod's first process.
    let told = shim.write_all(b"!").and_then(|()| shim.read_exact(&mut go));
    if told.is_err() || !config.shared_pid {
        return 1;
    }
    let Err(error) = pause::become_pause(&mut shim, config, last);
    let _nobody_listens = shim.write_all(error.to_string().as_bytes());
    1
}

fn prepare(config: &ShimConfig) -> io::Result<()> {
    if !config.uid_mappings.is_empty() {
        process::set_ids(0, 0, &[])?;
    }
    if config.own_uts && !config.hostname.is_empty() {
        nix::unistd::sethostname(&config.hostname)?;
    }
    for (name, value) in &config.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        if path.contains("/../") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is no sysctl"),
            ));
        }
        std::fs::write(&path, value)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot set sysctl {name} to {value:?}: {e}")))?;
    }
    Ok(())
}
