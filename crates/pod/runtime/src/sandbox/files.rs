//! Files that every container of a pod sees.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use keelson_cri::v1::{NamespaceMode, PodSandboxConfig};
use keelson_sys::mount;
use nix::mount::MsFlags;

/// Paths of a sandbox's files in its directory.
pub struct Files(pub PathBuf);

impl Files {
    pub fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    pub fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    pub fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    pub fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// Writes the files and mounts the pod's shared memory.
    pub fn create(&self, config: &PodSandboxConfig, hostname: &str, ipc: NamespaceMode) -> io::Result<()> {
        fs::write(self.hostname(), format!("{hostname}\n"))?;
        copy_or_empty(Path::new("/etc/hosts"), &self.hosts())?;
        match resolv_conf(config) {
            Some(text) => fs::write(self.resolv_conf(), text)?,
            None => copy_or_empty(Path::new("/etc/resolv.conf"), &self.resolv_conf())?,
        }
        if ipc != NamespaceMode::Node {
            fs::create_dir_all(self.shm())?;
            let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount::tmpfs(&self.shm(), flags, "mode=1777,size=65536k")?;
        }
        Ok(())
    }
}

/// `None`: the pod has no configuration of its own and gets the host's.
fn resolv_conf(config: &PodSandboxConfig) -> Option<String> {
    let dns = config.dns_config.as_ref()?;
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    (!text.is_empty()).then_some(text)
}

fn copy_or_empty(from: &Path, to: &Path) -> io::Result<()> {
    let content = match fs::read(from) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        content => content?,
    };
    fs::write(to, content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_cri::v1::DnsConfig;

    #[test]
    fn resolv_conf_has_upstreams_order() {
        let mut config = PodSandboxConfig::default();
        assert_eq!(resolv_conf(&config), None);
        config.dns_config = Some(DnsConfig {
            servers: vec!["10.96.0.10".into(), "1.1.1.1".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:5".into()],
        });
        let want = "search a.b c\nnameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:5\n";
        assert_eq!(resolv_conf(&config).as_deref(), Some(want));
    }
}
