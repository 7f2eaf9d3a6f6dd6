//! Replaces all files of a volume in one step, so that a reader sees the old set or the new one, never a mix.
//!
//! The files live in a directory named by the time, `..data` is a link to it, and each visible name links to
//! `..data/name`. An update writes a new directory and renames a new `..data` over the old one.

use crate::host::Payload;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Whether a payload's name may stand in a volume: relative, without steps back and not one of ours.
pub fn is_valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 4096
        && !name.starts_with("..")
        && Path::new(name)
            .components()
            .all(|c| matches!(c, Component::Normal(p) if p.len() <= 255))
}

pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    if let Some(bad) = payload.keys().find(|n| !is_valid_name(n)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("invalid path in volume: {bad:?}"),
        ));
    }
    let old = std::fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && same(&dir.join(old), payload, group)
    {
        // The visible names may be missing after a crash in the middle of the first write.
        link_names(dir, payload)?;
        return Ok(false);
    }
    let fresh = unused_name(dir);
    let target = dir.join(&fresh);
    std::fs::create_dir(&target)?;
    own(&target, None, group)?;
    set_mode(&target, directory_mode(group))?;
    for (name, file) in payload {
        let path = target.join(name);
        if let Some(parent) = Path::new(name).parent() {
            let mut step = target.clone();
            for part in parent.components() {
                step.push(part);
                if !step.exists() {
                    std::fs::create_dir(&step)?;
                    own(&step, None, group)?;
                    set_mode(&step, directory_mode(group))?;
                }
            }
        }
        std::fs::write(&path, &file.data)?;
        own(&path, file.user, group)?;
        set_mode(&path, file_mode(file.mode, group))?;
    }
    let link = dir.join(NEW_DATA);
    match std::fs::remove_file(&link) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    symlink(&fresh, &link)?;
    std::fs::rename(&link, dir.join(DATA))?;
    link_names(dir, payload)?;
    sweep(dir, &fresh)?;
    Ok(true)
}

/// Removes sets of files that are not shown: the one before, and what writes that failed or were cut short left.
fn sweep(dir: &Path, shown: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b"..") && name != shown && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn own(path: &Path, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    if user.is_none() && group.is_none() {
        Ok(())
    } else {
        chown(path, user, group)
    }
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// The pod's group can always read.
fn file_mode(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() {
        super::ownership::wanted(mode, false, true)
    } else {
        mode
    }
}

fn directory_mode(group: Option<u32>) -> u32 {
    if group.is_some() {
        super::ownership::wanted(0o755, true, true)
    } else {
        0o755
    }
}

fn unused_name(dir: &Path) -> String {
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    (0u64..)
        .map(|_| format!("{stamp}.{}", rand::random::<u32>()))
        .find(|n| !dir.join(n).exists())
        .unwrap_or(stamp)
}

/// Links each top-level name to the data, and removes links of names that are gone.
fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = payload.keys().filter_map(|n| n.split('/').next()).collect();
    for name in &names {
        let link = dir.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(name.as_str()) && entry.file_type()?.is_symlink() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn same(dir: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut count = 0;
    count_files(dir, &mut count);
    count == payload.len()
        && payload.iter().all(|(name, file)| {
            let path = dir.join(name);
            std::fs::read(&path).is_ok_and(|have| have == file.data)
                && std::fs::metadata(&path)
                    .is_ok_and(|m| m.permissions().mode() & 0o7777 == file_mode(file.mode, group) & 0o7777)
        })
}

fn count_files(dir: &Path, count: &mut usize) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            count_files(&entry.path(), count);
        } else {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(items: &[(&str, &str)]) -> Payload {
        let file = |d: &str| crate::host::PayloadFile {
            data: d.as_bytes().to_vec(),
            mode: 0o644,
            user: None,
        };
        items.iter().map(|(n, d)| ((*n).to_owned(), file(d))).collect()
    }

    #[test]
    fn a_change_replaces_all_and_the_same_changes_nothing() {
        let dir = std::env::temp_dir().join(format!("keelson-atomic-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert!(!write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        let before = std::fs::read_link(dir.join("..data")).unwrap();
        let cut_short = dir.join("..2026_01_01_00_00_00.1");
        std::fs::create_dir(&cut_short).unwrap();
        assert!(write(&dir, &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert!(!cut_short.exists());
        assert_ne!(std::fs::read_link(dir.join("..data")).unwrap(), before);
        assert!(!dir.join(before).exists());
        let mut names: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .flatten()
            .map(|e| e.file_name().into_string().unwrap())
            .filter(|n| !n.starts_with(".."))
            .collect();
        names.sort();
        assert_eq!(names, ["a", "c"]);
        assert!(write(&dir, &payload(&[("../x", "")]), None).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
