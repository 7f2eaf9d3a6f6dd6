//! Gives trees of files a label. They are pods', who may change them meanwhile: walked by descriptors, never through a link,
//! never across a mount.

use super::Machine;
use keelson_sys::tree::{self, Handle};
use std::io;
use std::path::Path;

/// Directories of the machine's own, which go-selinux relabels for nobody either.
const KEPT: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// The root of it last, as go-selinux. What has its label already isn't written; file systems without labels have none to set.
pub fn relabel(machine: &dyn Machine, path: &Path, label: &str) -> io::Result<()> {
    if KEPT.iter().any(|kept| path == Path::new(kept)) {
        return Err(io::Error::other(format!(
            "SELinux relabeling of {} is not allowed",
            path.display()
        )));
    }
    let root = tree::handle(path)?;
    let done = (|| {
        if root.is_dir() {
            tree::visit(path, &mut |found| match found.handle()? {
                Some(file) => set(machine, &file, label),
                None => Ok(()),
            })?;
        }
        set(machine, &root, label)
    })();
    match done {
        Err(e) if e.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Ok(()),
        done => done,
    }
}

fn set(machine: &dyn Machine, file: &Handle, label: &str) -> io::Result<()> {
    // The kernel gives it with a zero at its end.
    let has = machine.label(file)?;
    if has.is_some_and(|has| has.strip_suffix(b"\0").unwrap_or(&has) == label.as_bytes()) {
        return Ok(());
    }
    machine.set_label(file, label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selinux::{Played, Real};
    use std::os::unix::fs::symlink;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn label(path: &Path) -> Option<String> {
        let label = Real.label(&tree::handle(path).unwrap()).unwrap()?;
        Some(String::from_utf8_lossy(&label).trim_end_matches('\0').to_owned())
    }

    /// With attributes that a kernel without SELinux keeps too, for whoever may set them.
    #[test]
    fn a_tree_is_relabelled_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        for file in [&tree.join("a/b/f"), &outside] {
            std::fs::write(file, "x").unwrap();
        }
        symlink(&outside, tree.join("link")).unwrap();
        let before = label(&outside);
        let machine = Played::usual();
        match relabel(&machine, &tree, LABEL) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return,
            done => done.unwrap(),
        }
        for path in ["", "a", "a/b", "a/b/f"] {
            assert_eq!(label(&tree.join(path)).as_deref(), Some(LABEL), "{path}");
        }
        assert_eq!(label(&outside), before);
        // A single file, and again with nothing to do.
        relabel(&machine, &outside, LABEL).unwrap();
        relabel(&machine, &outside, LABEL).unwrap();
        assert_eq!(label(&outside).as_deref(), Some(LABEL));
    }

    #[test]
    fn the_machines_own_directories_stay_as_they_are() {
        for path in ["/", "/usr", "/var/lib", "/etc"] {
            assert!(relabel(&Played::usual(), Path::new(path), LABEL).is_err(), "{path}");
        }
        assert!(relabel(&Played::usual(), Path::new("/nonexistent"), LABEL).is_err());
    }
}
