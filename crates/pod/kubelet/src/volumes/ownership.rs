//! Gives a volume's files to a pod's group: group read and write (read only where the volume is), and new files in its
//! directories inherit the group.

use crate::host::Ownership;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const EXECUTE: u32 = 0o110;
const SET_GID: u32 = 0o2000;

pub fn apply(dir: &Path, ownership: Ownership) -> io::Result<()> {
    if ownership.only_if_root_differs && root_fits(dir, ownership)? {
        return Ok(());
    }
    walk(dir, ownership, 0)
}

pub fn wanted(mode: u32, is_dir: bool, read_only: bool) -> u32 {
    let mut mask = if read_only { READ_ONLY } else { READ_WRITE };
    if is_dir {
        mask |= SET_GID | EXECUTE;
    }
    mode | mask
}

fn root_fits(dir: &Path, o: Ownership) -> io::Result<bool> {
    let meta = std::fs::metadata(dir)?;
    let mode = meta.permissions().mode() & 0o7777;
    Ok(meta.gid() == o.group && mode == wanted(mode, true, o.read_only))
}

fn walk(path: &Path, o: Ownership, depth: usize) -> io::Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        // A pod that runs may remove its files meanwhile.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if meta.is_dir() && depth < 512 {
        for entry in std::fs::read_dir(path)? {
            walk(&entry?.path(), o, depth + 1)?;
        }
    }
    lchown(path, None, Some(o.group))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = meta.permissions().mode() & 0o7777;
    std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(wanted(mode, meta.is_dir(), o.read_only)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_grow_and_never_shrink() {
        assert_eq!(wanted(0o644, false, false), 0o664);
        assert_eq!(wanted(0o755, true, false), 0o2775);
        assert_eq!(wanted(0o400, false, true), 0o440);
    }
}
