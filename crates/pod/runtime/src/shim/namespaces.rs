//! The namespaces that the containers of a pod share.
//!
//! A short-lived child makes them and the shim keeps them open by descriptor, so the shim itself stays in the host's
//! namespaces and no pause container is needed. Containers join through links in the sandbox's `ns` directory, which
//! lead to the shim's descriptors. When processes are shared, the child stays as the first process of their namespace,
//! as a program of its own in a root of its own (`pause`): the containers see it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use keelson_sys::detached;
use keelson_sys::process::{self, Parent};
use nix::sched::CloneFlags;

use super::pause;
use super::protocol::{IdMapping, ShimConfig};

/// Names in the `ns` directory.
pub const DIRECTORY: &str = "ns";

/// Where /proc of the shared process namespace is mounted, in the sandbox's state directory. It cannot be made later:
/// that takes a process in the namespace with CAP_SYS_ADMIN, which containers could take over.
pub const PROC: &str = "proc";

pub struct Held {
    /// By name. Being open is what they are for.
    descriptors: Vec<(&'static str, OwnedFd)>,
    /// The first process of the shared process namespace.
    pub reaper: Option<i32>,
}

impl Held {
    pub fn open(&self, name: &str) -> io::Result<OwnedFd> {
        let held = self.descriptors.iter().find(|(held, _)| *held == name);
        let (_, descriptor) = held.ok_or_else(|| io::Error::other(format!("the pod has no {name} namespace")))?;
        descriptor.try_clone()
    }
}

pub fn create(dir: &Path, config: &ShimConfig) -> io::Result<Held> {
    let flags = flags(config);
    if flags.is_empty() {
        return Ok(Held {
            descriptors: Vec::new(),
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
    let mut first = [0];
    let (read, mounts) = process::receive_with_fds(child.as_fd(), &mut first)?;
    if read == 0 || first[0] != b'!' {
        let mut answer = String::new();
        child.read_to_string(&mut answer)?;
        return Err(io::Error::other(answer));
    }
    if let Some(proc) = mounts.first() {
        let at = dir.join(PROC);
        std::fs::create_dir_all(&at)?;
        detached::attach(proc.as_fd(), &at)?;
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
        descriptors.push((*name, descriptor));
    }
    Ok(Held {
        descriptors,
        reaper: None,
    })
}

/// As `uid_map` and `gid_map` take it.
pub fn map(mappings: &[IdMapping]) -> String {
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
        let proc = config.shared_pid.then(detached::proc).transpose()?;
        if config.shared_pid {
            pause::leave_the_host()?;
        }
        Ok(proc)
    });
    let proc = match prepared {
        Ok(proc) => proc,
        Err(error) => {
            let _nobody_listens = shim.write_all(format!("?{error}").as_bytes());
            return 1;
        }
    };
    let mounts: Vec<RawFd> = proc.iter().map(AsRawFd::as_raw_fd).collect();
    // Then the shim opens the namespaces; it ends the child, or lets it become the pod's first process.
    let told = process::send_with_fds(shim.as_fd(), b"!", &mounts).and_then(|_| shim.read_exact(&mut go));
    if told.is_err() || !config.shared_pid {
        return 1;
    }
    let Err(error) = pause::become_pause(&mut shim, config, last);
    let _nobody_listens = shim.write_all(error.to_string().as_bytes());
    1
}

/// What pods with a network of their own find set, as with containerd 2: any user may listen on any port and send echo
/// requests, for nobody else is in there. The pod's own settings come later.
fn usual(config: &ShimConfig) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if config.own_network {
        settings.push(("net.ipv4.ip_unprivileged_port_start", "0".to_owned()));
        // Groups that a user namespace doesn't have are refused.
        let last = config.gid_mappings.first().map_or(2_147_483_647, |m| m.length - 1);
        settings.push(("net.ipv4.ping_group_range", format!("0 {last}")));
    }
    settings
}

fn prepare(config: &ShimConfig) -> io::Result<()> {
    if !config.uid_mappings.is_empty() {
        process::set_ids(0, 0, &[])?;
    }
    if config.own_uts && !config.hostname.is_empty() {
        nix::unistd::sethostname(&config.hostname)?;
    }
    for (name, value) in usual(config) {
        match std::fs::write(format!("/proc/sys/{}", name.replace('.', "/")), &value) {
            // A kernel without it has nothing to open.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => {
                done.map_err(|e| io::Error::new(e.kind(), format!("cannot set sysctl {name} to {value:?}: {e}")))?
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_settings_need_a_network_of_the_pods_own() {
        let settings = |own_network, mapped| {
            let mapping = IdMapping {
                container: 0,
                host: 131_072,
                length: 65_536,
            };
            let config = ShimConfig {
                own_network,
                gid_mappings: if mapped { vec![mapping] } else { Vec::new() },
                ..ShimConfig::default()
            };
            usual(&config)
        };
        let ports = ("net.ipv4.ip_unprivileged_port_start", "0".to_owned());
        let ping = |groups: &str| ("net.ipv4.ping_group_range", groups.to_owned());
        assert_eq!(settings(true, false), [ports.clone(), ping("0 2147483647")]);
        assert_eq!(settings(true, true), [ports, ping("0 65535")]);
        assert!(settings(false, false).is_empty());
    }
}
