//! Who can read the files by which the cluster is had, and how long its certificates last.

use super::{Point, Seen, World, doubtful, some, wrong};
use crate::certificate::introduces;
use keelson_pki::x509::{Certificate, pem};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files below one directory that are looked at at most.
const MOST: usize = 100_000;
const DAY: i64 = 24 * 60 * 60;

pub fn points(world: &World) -> Vec<Point> {
    let data = &world.data_dir;
    let pki = data.join("pki");
    let keys = files(&pki).into_iter().filter(|f| is_secret(f)).collect();
    let audit = written_audit(world);
    vec![
        Point::of(
            "F1",
            "Keys are their owner's alone",
            private(keys, true),
            "chmod 600 and chown root:root the files named",
        ),
        Point::of(
            "F2",
            "The administrator's kubeconfig is his alone",
            private(vec![world.kubeconfig_file.clone()], true),
            "chmod 600 it: who reads it is cluster-admin",
        ),
        Point::of(
            "F3",
            "The store's files can't be read by others",
            reachable(&data.join("store")),
            "chmod 700 the directory",
        ),
        Point::of(
            "F4",
            "Nobody else writes in the data directory",
            unwritable(data),
            "chmod go-w the files named: what is started from them runs as root",
        ),
        Point::of(
            "F5",
            "The audit log is its owner's alone",
            audit.map_or(Ok("there is none".into()), |file| private(vec![file], true)),
            "chmod 600 it",
        ),
        Point::of(
            "F6",
            "Certificates are valid for a while",
            lasting(&pki),
            "Certificates are renewed while the server runs: see that it does, and that the clock is right",
        ),
    ]
}

/// Where the audit log is, if there is one.
pub fn written_audit(world: &World) -> Option<PathBuf> {
    match world.option("--audit-log-path") {
        Some(path) if path == "none" => None,
        Some(path) => Some(path.into()),
        None => Some(world.data_dir.join("audit/audit.log")),
    }
}

fn is_secret(file: &Path) -> bool {
    file.extension().is_some_and(|e| e == "key") || file.file_name().is_some_and(|n| n == "encryption.yaml")
}

/// Below a directory, links not followed.
fn files(directory: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![directory.to_path_buf()]);
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => left.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
            if found.len() >= MOST {
                return found;
            }
        }
    }
    found.sort();
    found
}

fn private(files: Vec<PathBuf>, of_root: bool) -> Result<String, Seen> {
    let mut open = Vec::new();
    for file in &files {
        let found = fs::metadata(file).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
        if found.mode() & 0o077 != 0 || of_root && found.uid() != 0 {
            open.push(format!(
                "{} ({:o}, user {})",
                file.display(),
                found.mode() & 0o7777,
                found.uid()
            ));
        }
    }
    match (open.as_slice(), files.len()) {
        ([], 0) => Err(anyhow::anyhow!("there are none").into()),
        ([], 1) => Ok(format!("{} is 600 or less", files[0].display())),
        ([], n) => Ok(format!("all of {n} are 600 or less")),
        _ => Err(wrong(some(&open))),
    }
}

/// A file can be read if each directory on the way can be passed.
fn reachable(directory: &Path) -> Result<String, Seen> {
    let Ok(found) = fs::metadata(directory) else {
        return Ok("there is no store here: it is an etcd's to protect".into());
    };
    if found.mode() & 0o077 == 0 {
        return Ok(format!("{} is {:o}", directory.display(), found.mode() & 0o777));
    }
    let closed = directory
        .ancestors()
        .skip(1)
        .find(|d| fs::metadata(d).is_ok_and(|m| m.mode() & 0o011 == 0));
    if let Some(closed) = closed {
        return Ok(format!("nobody else passes {}", closed.display()));
    }
    let readable = files(directory)
        .into_iter()
        .filter(|f| fs::metadata(f).is_ok_and(|m| m.mode() & 0o044 != 0));
    let readable: Vec<String> = readable.map(|f| f.display().to_string()).collect();
    match readable.is_empty() {
        true => Ok("no file in it can be read by others".into()),
        false => Err(wrong(some(&readable))),
    }
}

/// Pods' own files are theirs.
fn unwritable(data: &Path) -> Result<String, Seen> {
    let mut open = Vec::new();
    for name in ["", "pki", "store", "manifests", "runtime", "network", "audit"] {
        let path = data.join(name);
        if let Ok(found) = fs::metadata(&path)
            && found.mode() & 0o022 != 0
        {
            open.push(format!("{} ({:o})", path.display(), found.mode() & 0o7777));
        }
    }
    for file in files(&data.join("pki"))
        .into_iter()
        .chain(files(&data.join("manifests")))
    {
        if fs::metadata(&file).is_ok_and(|m| m.mode() & 0o022 != 0) {
            open.push(file.display().to_string());
        }
    }
    match open.is_empty() {
        true => Ok(format!("{} and what is started from it", data.display())),
        false => Err(wrong(some(&open))),
    }
}

fn lasting(pki: &Path) -> Result<String, Seen> {
    let now = keelson_clock::now().as_second();
    let (mut first, mut ended) = (i64::MAX, Vec::new());
    for file in files(pki)
        .into_iter()
        .filter(|f| f.extension().is_some_and(|e| e == "crt"))
        .filter(|f| !f.file_stem().is_some_and(|name| introduces(&name.to_string_lossy())))
    {
        let Ok(text) = fs::read(&file) else { continue };
        for der in pem::certificates(&text) {
            let read = Certificate::from_der(&der).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
            let left = read.not_after.as_second() - now;
            if left <= 0 || read.not_before.as_second() > now {
                ended.push(file.display().to_string());
            }
            first = first.min(left);
        }
    }
    match (ended.as_slice(), first) {
        ([], i64::MAX) => Err(anyhow::anyhow!("there are no certificates in {}", pki.display()).into()),
        ([], left) if left < 14 * DAY => Err(doubtful(format!("the first ends in {} days", left / DAY))),
        ([], left) => Ok(format!("the first ends in {} days", left / DAY)),
        _ => Err(wrong(format!("not valid: {}", some(&ended)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_that_others_can_read_is_named() {
        let directory = std::env::temp_dir().join(format!("keelson-doctor-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (good, bad) = (directory.join("a.key"), directory.join("b.key"));
        for (file, mode) in [(&good, 0o600), (&bad, 0o640)] {
            fs::write(file, "").unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
        }
        assert!(private(vec![good.clone()], false).is_ok());
        let Err(Seen(verdict, evidence)) = private(vec![good, bad], false) else {
            panic!("it passes");
        };
        assert_eq!(verdict, super::super::Verdict::Fail);
        assert!(
            evidence.contains("b.key (640") && !evidence.contains("a.key"),
            "{evidence}"
        );
        fs::remove_dir_all(directory).unwrap();
    }
}
