//! `/var/lib/kubelet`: where drivers of volumes, and other things of a node, look for the kubelet's directory, whichever
//! kubelet it is. Here it is a link to ours, which is in the data directory like everything else; a driver that sees the
//! directory by this name is told its paths by this name.
//!
//! What is there already, and leads elsewhere, is left alone: then drivers have to be told where the directory is.

use anyhow::Context;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

pub const DEFAULT: &str = "/var/lib/kubelet";

/// Where it is noted which link was made, so that `uninstall` finds it.
fn note(data_dir: &Path) -> PathBuf {
    data_dir.join("kubelet-link")
}

/// Makes the link. `None` if its place is taken.
pub fn make(link: &Path, root: &Path, data_dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    std::fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    if !free(link, root)? {
        tracing::warn!(
            "{} is not this kubelet's, and stays as it is: drivers of volumes have to be told that the kubelet's directory is {}",
            link.display(),
            root.display()
        );
        return Ok(None);
    }
    std::fs::write(note(data_dir), link.as_os_str().as_encoded_bytes())
        .context("noting the link to the kubelet's directory")?;
    let made = || -> io::Result<()> {
        if let Some(dir) = link.parent() {
            std::fs::create_dir_all(dir)?;
        }
        match std::fs::remove_file(link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        symlink(root, link)
    };
    made().with_context(|| format!("cannot make the link {}", link.display()))?;
    Ok(Some(link.to_owned()))
}

/// Whether nothing is there, or a link that leads to ours or nowhere.
fn free(link: &Path, root: &Path) -> anyhow::Result<bool> {
    let known = match std::fs::symlink_metadata(link) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other.with_context(|| format!("cannot look at {}", link.display()))?,
    };
    if !known.is_symlink() {
        return Ok(false);
    }
    match std::fs::canonicalize(link) {
        Ok(target) => Ok(target == std::fs::canonicalize(root)?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e).with_context(|| format!("cannot follow {}", link.display())),
    }
}

/// Takes the link away that was made for this data directory, if it is still that.
pub fn remove(data_dir: &Path) -> anyhow::Result<()> {
    let Ok(link) = std::fs::read_to_string(note(data_dir)) else {
        return Ok(());
    };
    let leads_here = std::fs::read_link(&link).is_ok_and(|target| target.starts_with(data_dir));
    if leads_here {
        std::fs::remove_file(&link).with_context(|| format!("cannot remove {link}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_taken_stays_as_it_is() {
        let dir = std::env::temp_dir().join(format!("keelson-link-{}", std::process::id()));
        let (data, link) = (dir.join("data"), dir.join("lib/kubelet"));
        let root = data.join("kubelet");
        std::fs::create_dir_all(&data).unwrap();
        assert_eq!(make(&link, &root, &data).unwrap(), Some(link.clone()));
        assert_eq!(std::fs::read_link(&link).unwrap(), root);
        assert!(
            make(&link, &root, &data).unwrap().is_some(),
            "our own may be made again"
        );
        let other = dir.join("other");
        std::fs::create_dir_all(&other).unwrap();
        assert!(make(&link, &other.join("kubelet"), &other).unwrap().is_none());
        remove(&data).unwrap();
        assert!(!link.exists());
        // One that leads nowhere was left by a data directory that is no more.
        symlink(dir.join("gone"), &link).unwrap();
        assert!(make(&link, &root, &data).unwrap().is_some());
        std::fs::remove_file(&link).unwrap();
        std::fs::create_dir(&link).unwrap();
        assert!(make(&link, &root, &data).unwrap().is_none());
        remove(&data).unwrap();
        assert!(link.is_dir());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
