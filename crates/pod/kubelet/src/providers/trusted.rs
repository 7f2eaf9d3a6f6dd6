//! Whether a file is one that the kubelet may act on as root: nobody but the kubelet's own user and root can have written it, or
//! put another in its place.

use anyhow::{Context, ensure};
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// A program.
pub fn program(path: &Path) -> anyhow::Result<()> {
    let mode = file(path)?.mode();
    ensure!(mode & 0o111 != 0, "{} can't be executed", path.display());
    Ok(())
}

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

/// A file. Each directory in which a name of the way is looked up is judged, and each link that is followed.
pub fn file(path: &Path) -> anyhow::Result<Metadata> {
    let shown = path.display();
    let whole = std::path::absolute(path).with_context(|| format!("{shown} can't be found"))?;
    let mut left: Vec<OsString> = names(&whole);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    loop {
        let facts = at
            .symlink_metadata()
            .with_context(|| format!("{} can't be found", at.display()))?;
        trust(&at, &facts)?;
        if facts.is_symlink() {
            links += 1;
            ensure!(links <= MOST_LINKS, "{shown} leads by links in a circle");
            let target = at.read_link()?;
            left.extend(names(&target));
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            continue;
        }
        let Some(name) = left.pop() else {
            ensure!(facts.is_file(), "{shown} isn't a regular file");
            return Ok(facts);
        };
        match name == ".." {
            true => drop(at.pop()),
            false => at.push(name),
        }
    }
}

/// The last one first.
fn names(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    let named = parts.filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    named.map(|c| c.as_os_str().to_owned()).collect()
}

fn trust(at: &Path, facts: &Metadata) -> anyhow::Result<()> {
    let own = nix::unistd::geteuid().as_raw();
    // A link has no mode of its own.
    let mode = if facts.is_symlink() { 0 } else { facts.mode() };
    judge(facts.uid(), facts.gid(), mode, facts.is_dir(), own).map_err(|e| anyhow::anyhow!("{} {e}", at.display()))
}

fn judge(owner: u32, group: u32, mode: u32, is_dir: bool, own: u32) -> Result<(), &'static str> {
    if owner != 0 && owner != own {
        return Err("belongs to another user, who could replace what is run as root: give it to root");
    }
    // In a directory with the sticky bit nobody can replace another's.
    let is_sticky = is_dir && mode & 0o1000 != 0;
    let by_group = mode & 0o020 != 0 && group != 0;
    if (mode & 0o002 != 0 || by_group) && !is_sticky {
        return Err(
            "can be written by others, who could replace what is run as root: take that right away (chmod go-w)",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_files_in_roots_directories_are_trusted() {
        for (owner, group, mode, is_dir, own, good) in [
            (0, 0, 0o755, false, 0, true),
            (0, 0, 0o775, false, 0, true),
            (0, 50, 0o775, false, 0, false),
            (0, 0, 0o757, false, 0, false),
            (0, 0, 0o1777, true, 0, true),
            (0, 0, 0o1777, false, 0, false),
            (1000, 0, 0o755, false, 0, false),
            (1000, 0, 0o755, true, 1000, true),
        ] {
            let judged = judge(owner, group, mode, is_dir, own);
            assert_eq!(judged.is_ok(), good, "{owner}:{group} {mode:o} {is_dir} {own}");
        }
    }

    #[test]
    fn every_directory_on_the_way_is_judged() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = std::env::temp_dir().join(format!("keelson-trusted-{}", std::process::id()));
        let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        for name in ["safe", "open"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
            mode(&dir.join(name), 0o755);
        }
        let program = dir.join("safe/program");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        mode(&program, 0o755);
        symlink("../safe/program", dir.join("open/link")).unwrap();
        symlink(dir.join("open/link"), dir.join("safe/far")).unwrap();
        symlink(dir.join("safe"), dir.join("open/dir")).unwrap();
        symlink("round", dir.join("safe/round")).unwrap();
        let ways = [
            "safe/program",
            "open/link",
            "safe/far",
            "open/dir/program",
            "open/../safe/program",
        ];
        assert!(ways.iter().all(|way| super::program(&dir.join(way)).is_ok()));
        // Whoever can exchange a link says what is run, although the program is nobody else's.
        mode(&dir.join("open"), 0o777);
        for way in &ways[1..] {
            let error = super::program(&dir.join(way)).unwrap_err().to_string();
            assert!(error.contains("open can be written by others"), "{way}: {error}");
        }
        assert!(super::program(&program).is_ok());
        assert!(
            super::program(&dir.join("safe/round"))
                .unwrap_err()
                .to_string()
                .contains("in a circle")
        );
        assert!(
            super::program(&dir.join("safe"))
                .unwrap_err()
                .to_string()
                .contains("isn't a regular file")
        );
        assert!(
            super::program(&dir.join("none"))
                .unwrap_err()
                .to_string()
                .contains("can't be found")
        );
        std::fs::remove_dir_all(dir).unwrap();
    }
}
