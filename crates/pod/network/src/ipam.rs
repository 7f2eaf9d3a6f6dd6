//! Address reservations: one file an address, created exclusively, holding the sandbox's id.
//!
//! The directory is the truth: it survives `kill -9`, and two allocations can't get the same file. Addresses are given
//! out round robin, so that a just freed one rests as long as possible.

use anyhow::{Context, bail};
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

pub struct Ipam {
    dir: PathBuf,
    last: Mutex<Option<Ipv4Addr>>,
}

impl Ipam {
    pub fn open(dir: &Path) -> anyhow::Result<Ipam> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Ipam {
            dir: dir.to_path_buf(),
            last: Mutex::new(None),
        })
    }

    /// The first address of the range: the host's end of every pod link.
    pub fn gateway(range: Ipv4Net) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(range.network()).saturating_add(1))
    }

    /// The address of `owner`, reserved now unless it has one already.
    pub fn reserve(&self, range: Ipv4Net, owner: &str) -> anyhow::Result<Ipv4Addr> {
        let mut last = self.last.lock();
        if let Some((ip, _)) = self.reservations()?.into_iter().find(|(_, o)| o == owner) {
            return Ok(ip);
        }
        let first = u32::from(Self::gateway(range)).saturating_add(1);
        let end = u32::from(range.broadcast());
        if first >= end {
            bail!("the pod range {range} has no room for a pod");
        }
        let count = end - first;
        let start = match *last {
            Some(ip) if range.contains(&ip) && u32::from(ip) >= first => (u32::from(ip) - first + 1) % count,
            _ => 0,
        };
        for i in 0..count {
            let ip = Ipv4Addr::from(first + (start + i) % count);
            match fs::File::options()
                .write(true)
                .create_new(true)
                .open(self.dir.join(ip.to_string()))
            {
                Ok(mut file) => {
                    file.write_all(owner.as_bytes())?;
                    *last = Some(ip);
                    return Ok(ip);
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => {
                    return Err(e).with_context(|| format!("cannot reserve an address in {}", self.dir.display()));
                }
            }
        }
        bail!("all {count} addresses of the pod range {range} are in use")
    }

    /// Every reservation: address and owner. An empty file (a crash between create and write) has no owner.
    pub fn reservations(&self) -> anyhow::Result<Vec<(Ipv4Addr, String)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Ok(ip) = entry.file_name().to_string_lossy().parse() {
                match fs::read_to_string(entry.path()) {
                    Ok(owner) => found.push((ip, owner)),
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Frees what `keep` refuses.
    pub fn release_unless(&self, keep: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let _one_at_a_time = self.last.lock();
        for (ip, owner) in self.reservations()? {
            if !keep(&owner) {
                match fs::remove_file(self.dir.join(ip.to_string())) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("keelson-ipam-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn addresses_are_unique_stable_and_reused_last() {
        let dir = scratch("unique");
        let ipam = Ipam::open(&dir).unwrap();
        let range: Ipv4Net = "10.1.2.0/29".parse().unwrap();
        let a = ipam.reserve(range, "a").unwrap();
        let b = ipam.reserve(range, "b").unwrap();
        assert_eq!((a.to_string(), b.to_string()), ("10.1.2.2".into(), "10.1.2.3".into()));
        assert_eq!(ipam.reserve(range, "a").unwrap(), a, "a second request changes nothing");
        ipam.release_unless(|o| o != "a").unwrap();
        assert_eq!(ipam.reserve(range, "c").unwrap().to_string(), "10.1.2.4");
        let again = Ipam::open(&dir).unwrap();
        assert_eq!(again.reserve(range, "b").unwrap(), b, "reservations survive a restart");
        for owner in ["d", "e", "f"] {
            again.reserve(range, owner).unwrap();
        }
        let full = again.reserve(range, "g").unwrap_err().to_string();
        assert!(full.contains("in use"), "{full}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
