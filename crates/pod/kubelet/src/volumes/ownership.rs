//! Gives a volume's files to a pod's group: group read and write (read only where the volume is), and new files in its
//! directories inherit the group.
//!
//! The files are the pods' to change, also while this goes on: another pod may have the volume already. So each is opened
//! by the kernel within the volume, and it is that file which is changed, not what its name has come to mean. What a file
//! system refuses to change is said once and left, as upstream does.

use crate::host::Ownership;
use keelson_sys::tree::{self, Handle};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const EXECUTE: u32 = 0o110;
const SET_GID: u32 = 0o2000;

/// `done` counts the files as they are changed.
pub fn apply(root: &Path, ownership: Ownership, done: &AtomicU64) -> io::Result<()> {
    let top = tree::handle(root)?;
    if ownership.only_if_root_differs && root_fits(&top, ownership) {
        return Ok(());
    }
    let mut refused: Option<(u64, io::Error)> = None;
    let mut change = |file: &Handle| {
        done.fetch_add(1, Ordering::Relaxed);
        if let Err(e) = give(file, ownership) {
            refused = Some((refused.as_ref().map_or(1, |r| r.0 + 1), e));
        }
    };
    if top.is_dir() {
        tree::visit(root, &mut |found| {
            if let Some(file) = found.handle()? {
                change(&file);
            }
            Ok(())
        })?;
    }
    change(&top);
    if let Some((count, e)) = refused {
        tracing::warn!(
            volume = %root.display(),
            count,
            "files of a volume can't be given to the pod's group, the last of them because: {e}"
        );
    }
    Ok(())
}

fn give(file: &Handle, ownership: Ownership) -> io::Result<()> {
    file.set_group(ownership.group)?;
    if file.is_link() {
        return Ok(());
    }
    file.set_mode(wanted(file.mode(), file.is_dir(), ownership.read_only))
}

pub fn wanted(mode: u32, is_dir: bool, read_only: bool) -> u32 {
    let mut mask = if read_only { READ_ONLY } else { READ_WRITE };
    if is_dir {
        mask |= SET_GID | EXECUTE;
    }
    mode | mask
}

fn root_fits(root: &Handle, o: Ownership) -> bool {
    root.is_dir() && root.stat.st_gid == o.group && root.mode() == wanted(root.mode(), true, o.read_only)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn modes_grow_and_never_shrink() {
        assert_eq!(wanted(0o644, false, false), 0o664);
        assert_eq!(wanted(0o755, true, false), 0o2775);
        assert_eq!(wanted(0o400, false, true), 0o440);
    }

    #[test]
    fn links_out_of_the_volume_change_nothing_outside() {
        let base = std::env::temp_dir().join(format!("keelson-group-{}", std::process::id()));
        let (volume, outside) = (base.join("volume"), base.join("outside"));
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("secret"), "x").unwrap();
        std::fs::write(volume.join("sub/file"), "x").unwrap();
        for path in [outside.join("secret"), volume.join("sub/file")] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        std::os::unix::fs::symlink(&outside, volume.join("dir")).unwrap();
        std::os::unix::fs::symlink(outside.join("secret"), volume.join("sub/link")).unwrap();
        // A group that whoever runs the test may give files to.
        let group = std::fs::metadata(&volume).unwrap().gid();
        let (ownership, done) = (
            Ownership {
                group,
                read_only: false,
                only_if_root_differs: false,
            },
            AtomicU64::new(0),
        );
        apply(&volume, ownership, &done).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&outside.join("secret")), 0o600);
        assert_eq!(mode(&volume.join("sub/file")), 0o660);
        assert_eq!(mode(&volume.join("sub")) & 0o2770, 0o2770);
        assert_eq!(done.load(Ordering::Relaxed), 5);
        std::fs::write(volume.join("late"), "x").unwrap();
        let lazy = Ownership {
            only_if_root_differs: true,
            ..ownership
        };
        apply(&volume, lazy, &done).unwrap();
        assert_eq!(done.load(Ordering::Relaxed), 5, "a root that fits is enough");
        std::fs::remove_dir_all(&base).unwrap();
    }
}
