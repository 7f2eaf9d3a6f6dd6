//! The etcd that Keelson runs: a program of its own beside each server, a member of one cluster with the others'.
//!
//! * [`program`]: which program, its command line, and that it runs: started again when it ends, found again by the next server
//!   process when this one was killed, stopped with it.
//! * [`certificates`]: an authority of etcd's own, which all servers share, and what each member has of it.
//! * [`followed`]: how a server reaches it, by certificates that change meanwhile.
//! * [`membership`]: how the first member begins, and others join: as learners, which get their vote when they have caught up.
//! * [`upkeep`]: who belongs to it, what takes up its disk, what it complains about.
//! * [`command`]: `keelson etcd`.
//!
//! The store knows nothing of this: it is told addresses.

pub mod certificates;
pub mod command;
pub mod followed;
pub mod membership;
pub mod program;
pub mod upkeep;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where members listen for clients, and for each other. etcd's own numbers.
pub const CLIENT_PORT: u16 = 2379;
pub const PEER_PORT: u16 = 2380;

/// This machine's member.
#[derive(Clone, Debug)]
pub struct Place {
    /// Below it are `etcd` and `pki/etcd`.
    pub data_dir: PathBuf,
    /// The node's name; of two members of one name etcd would know only one.
    pub name: String,
    pub ip: IpAddr,
    /// `None`: the one on PATH.
    pub program: Option<PathBuf>,
}

impl Place {
    pub fn client_url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.ip, CLIENT_PORT))
    }
    pub fn peer_url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.ip, PEER_PORT))
    }
    /// etcd's own directory.
    pub fn directory(&self) -> PathBuf {
        directory(&self.data_dir)
    }
    pub fn pki(&self) -> PathBuf {
        pki(&self.data_dir)
    }
    /// Whether this machine is a member that knows its cluster, which is so once etcd's log is there. Its directory alone says nothing: etcd
    /// makes that before it asks the others, and may end in between.
    pub fn has_data(&self) -> std::io::Result<bool> {
        let entries = match std::fs::read_dir(self.directory().join("member/wal")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        for entry in entries {
            if entry?.path().extension().is_some_and(|extension| extension == "wal") {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

pub fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("etcd")
}

pub fn pki(data_dir: &Path) -> PathBuf {
    data_dir.join("pki/etcd")
}
