//! Address reservations: one file an address, created exclusively, holding the sandbox's id.
//!
//! The directory is the truth: it survives `kill -9`, and two allocations can't get the same file. Addresses are given
//! out round robin, so that a just freed one rests as long as possible.

use anyhow::{Context, bail};
use ipnet::IpNet;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub struct Ipam {
    dir: PathBuf,
    /// By range, the address that was given out last.
    last: Mutex<HashMap<IpNet, IpAddr>>,
}

impl Ipam {
    pub fn open(dir: &Path) -> anyhow::Result<Ipam> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Ipam {
            dir: dir.to_path_buf(),
            last: Mutex::default(),
        })
    }

    /// The first address of the range: the host's end of every pod link.
    pub fn gateway(range: IpNet) -> IpAddr {
        number(range).address(1)
    }

    /// The owner's address in the range's family, reserved now unless it has one already.
    pub fn reserve(&self, range: IpNet, owner: &str) -> anyhow::Result<IpAddr> {
        let mut last = self.last.lock();
        let taken = self.reservations()?;
        let same = |ip: &IpAddr| ip.is_ipv4() == range.addr().is_ipv4();
        if let Some((ip, _)) = taken.iter().find(|(ip, o)| o == owner && same(ip)) {
            return Ok(*ip);
        }
        let numbers = number(range);
        // Between the gateway and the last address, which is IPv4's for broadcasts.
        let count = numbers.size.saturating_sub(3);
        if count == 0 {
            bail!("the pod range {range} has no room for a pod");
        }
        let start = match last.get(&range) {
            Some(ip) if numbers.of(*ip) >= 2 => (numbers.of(*ip) - 1) % count,
            _ => 0,
        };
        // One that is free comes within as many as are taken.
        for i in 0..count.min(taken.len() as u128 + 1) {
            let ip = numbers.address(2 + (start + i) % count);
            match fs::File::options()
                .write(true)
                .create_new(true)
                .open(self.dir.join(ip.to_string()))
            {
                Ok(mut file) => {
                    file.write_all(owner.as_bytes())?;
                    last.insert(range, ip);
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
    pub fn reservations(&self) -> anyhow::Result<Vec<(IpAddr, String)>> {
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

/// The addresses of a range, counted from its first.
struct Numbers {
    range: IpNet,
    size: u128,
}

fn number(range: IpNet) -> Numbers {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
    Numbers { range, size }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

impl Numbers {
    fn address(&self, n: u128) -> IpAddr {
        let sum = bits(self.range.network()).saturating_add(n);
        match self.range {
            IpNet::V4(_) => IpAddr::V4(u32::try_from(sum).unwrap_or(u32::MAX).into()),
            IpNet::V6(_) => IpAddr::V6(sum.into()),
        }
    }
    /// 0 for one that is not of the range.
    fn of(&self, ip: IpAddr) -> u128 {
        match self.range.contains(&ip) {
            true => bits(ip) - bits(self.range.network()),
            false => 0,
        }
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
        let range: IpNet = "10.1.2.0/29".parse().unwrap();
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

    #[test]
    fn an_owner_has_an_address_of_each_family() {
        let dir = scratch("families");
        let ipam = Ipam::open(&dir).unwrap();
        let (four, six): (IpNet, IpNet) = ("10.1.2.0/24".parse().unwrap(), "fd00:1:2::/64".parse().unwrap());
        assert_eq!(Ipam::gateway(six).to_string(), "fd00:1:2::1");
        let pair = |owner| (ipam.reserve(four, owner).unwrap(), ipam.reserve(six, owner).unwrap());
        let a = pair("a");
        assert_eq!(
            (a.0.to_string(), a.1.to_string()),
            ("10.1.2.2".into(), "fd00:1:2::2".into())
        );
        assert_eq!(pair("a"), a);
        assert_eq!(pair("b").1.to_string(), "fd00:1:2::3");
        ipam.release_unless(|o| o != "a").unwrap();
        assert_eq!(pair("c").1.to_string(), "fd00:1:2::4", "one that was freed rests");
        assert_eq!(ipam.reservations().unwrap().len(), 4);
        fs::remove_dir_all(&dir).unwrap();
    }
}
