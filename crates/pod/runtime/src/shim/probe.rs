//! Whether pods can have users of their own on this machine: asked of the kernel by doing what such a pod takes, once.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use keelson_sys::detached;
use keelson_sys::mount::{Propagation, overlay, set_propagation, unmount};
use keelson_sys::process::{self, Parent};
use nix::sched::CloneFlags;

use super::namespaces::map;
use super::protocol::IdMapping;

/// Ids that nobody uses while it is found out, for no file is ever made of them.
const IDS: IdMapping = IdMapping {
    container: 0,
    host: 65_536,
    length: 65_536,
};

/// `dir` is where the layers' file system is; it is made, and removed again.
pub fn run(dir: &Path) -> Result<(), String> {
    let result = fs::create_dir_all(dir)
        .map_err(|e| format!("cannot make {}: {e}", dir.display()))
        .and_then(|()| tried(dir));
    // In a mount namespace that ends with this process, which doesn't remove what is in use in it either.
    let unmounted = ["merged", "seen"].iter().try_for_each(|name| unmount(&dir.join(name)));
    let removed = unmounted.and_then(|()| fs::remove_dir_all(dir));
    result.and_then(|()| removed.map_err(|e| format!("cannot remove {}: {e}", dir.display())))
}

fn tried(dir: &Path) -> Result<(), String> {
    let step = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let users = namespace().map_err(|why| format!("no user namespace can be made: {why}"))?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(|e| step("no mount namespace can be made")(e.into()))?;
    set_propagation(Path::new("/"), Propagation::Private).map_err(step("mounts cannot be made private"))?;
    let memory = detached::tmpfs().map_err(step("no tmpfs can be made"))?;
    detached::map_ids(memory.as_fd(), users.as_fd())
        .map_err(step("a tmpfs cannot be mapped to other ids (Linux 6.3)"))?;
    let [lower, upper, work, seen, merged] = ["lower", "upper", "work", "seen", "merged"].map(|name| dir.join(name));
    for made in [&lower, &upper, &work, &seen, &merged] {
        fs::create_dir_all(made).map_err(step("no directory can be made"))?;
    }
    let layers = dir
        .canonicalize()
        .and_then(|dir| detached::tree_of(&dir))
        .map_err(step("mounts cannot be cloned"))?;
    detached::map_ids(layers.as_fd(), users.as_fd()).map_err(step(
        "the file system of the images cannot be mapped to other ids (Linux 5.19)",
    ))?;
    detached::attach(layers.as_fd(), &seen).map_err(step("mounts cannot be attached"))?;
    overlay(&[seen.join("lower")], Some((&upper, &work)), &merged).map_err(step(
        "layers that are mapped to other ids cannot be stacked (Linux 5.19)",
    ))
}

/// A user namespace, of whose processes the first could mount what every container has.
fn namespace() -> Result<File, String> {
    let (mut ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
    let flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let other_end = std::os::fd::AsRawFd::as_raw_fd(&ours);
    let pid = process::fork(Parent::Caller, flags, move || {
        // Its copy of our end would keep the socket open for ever.
        let _closed = nix::unistd::close(other_end);
        inside(theirs)
    })
    .map_err(|e| e.to_string())?;
    let answer = (|| -> io::Result<(File, String)> {
        fs::write(format!("/proc/{pid}/uid_map"), map(&[IDS]))?;
        fs::write(format!("/proc/{pid}/gid_map"), map(&[IDS]))?;
        let users = File::open(format!("/proc/{pid}/ns/user"))?;
        ours.write_all(b"!")?;
        let mut answer = String::new();
        ours.read_to_string(&mut answer)?;
        Ok((users, answer))
    })();
    // It ends by itself, but for a failure before its word to go.
    let _may_be_gone = process::kill(pid, libc::SIGKILL);
    process::wait_for(pid).map_err(|e| e.to_string())?;
    match answer {
        Ok((users, answer)) if answer == "ok" => Ok(users),
        Ok((_, why)) => Err(why),
        Err(error) => Err(error.to_string()),
    }
}

fn inside(mut parent: UnixStream) -> i32 {
    let mut go = [0];
    let done = parent
        .read_exact(&mut go)
        .and_then(|()| process::set_ids(0, 0, &[]))
        .map_err(|e| e.to_string())
        .and_then(|()| detached::proc().map_err(|e| format!("/proc cannot be mounted in one: {e}")))
        .and_then(|_| detached::sys().map_err(|e| format!("/sys cannot be mounted in one: {e}")));
    let answer = done.err().unwrap_or_else(|| "ok".to_owned());
    i32::from(parent.write_all(answer.as_bytes()).is_err())
}
