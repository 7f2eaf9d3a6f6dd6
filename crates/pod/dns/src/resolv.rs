//! The machine's resolv.conf: which servers know the rest of the world, now and after every change of it.
//!
//! Where the file names only a stub on loopback (systemd-resolved), the file with the servers behind the stub is meant.

use anyhow::Context;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Notify;

/// Where systemd-resolved writes the servers that its stub asks.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// As many as the C library looks at.
const SERVERS: usize = 3;

/// The file that names servers which others than the host's own processes reach: `file`, unless that names a stub.
pub fn real(file: &Path) -> PathBuf {
    real_of(file, Path::new(BEHIND_STUB))
}

fn real_of(file: &Path, behind_stub: &Path) -> PathBuf {
    let named = servers(file);
    let stub = !named.is_empty() && named.iter().all(IpAddr::is_loopback);
    match stub && !servers(behind_stub).is_empty() {
        true => behind_stub.to_path_buf(),
        false => file.to_path_buf(),
    }
}

/// The name servers of a file; none if it can't be read.
pub fn servers(file: &Path) -> Vec<IpAddr> {
    match std::fs::read_to_string(file) {
        Ok(text) => parse(&text),
        Err(error) => {
            tracing::debug!(%error, file = %file.display(), "no resolv.conf");
            Vec::new()
        }
    }
}

fn parse(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let server = (words.next() == Some("nameserver")).then(|| words.next())??;
            // A link-local address may name its link, which only sockets of the C library know.
            server.split('%').next()?.parse().ok()
        })
        .take(SERVERS)
        .collect()
}

/// Tells `changed` when the file, or the one behind a stub, may have another content: written, replaced by another, made.
pub fn watch(file: &Path, changed: Arc<Notify>) -> anyhow::Result<RecommendedWatcher> {
    let names: BTreeSet<PathBuf> = [file.to_path_buf(), PathBuf::from(BEHIND_STUB)]
        .into_iter()
        .flat_map(|f| [std::fs::canonicalize(&f).unwrap_or_else(|_| f.clone()), f])
        .collect();
    // Directories: a file that is replaced, or isn't there yet, can't be watched itself.
    let dirs: BTreeSet<PathBuf> = names.iter().filter_map(|f| f.parent()).map(Path::to_path_buf).collect();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
        // Reading it is an event too, and would be answered by reading.
        Ok(event) if event.kind.is_access() => {}
        Ok(event) if !event.need_rescan() && !event.paths.iter().any(|p| names.contains(p)) => {}
        Ok(_) => changed.notify_one(),
        Err(error) => {
            tracing::warn!(%error, "watching resolv.conf");
            changed.notify_one();
        }
    })
    .context("the machine has no inotify instance left for resolv.conf")?;
    for dir in dirs.iter().filter(|d| d.exists()) {
        watcher
            .watch(dir, RecursiveMode::NonRecursive)
            .with_context(|| format!("watching {}", dir.display()))?;
    }
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("keelson-resolv-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn name_servers_are_read_in_order() {
        let text =
            "# comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver nonsense\n";
        let want: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(parse(text), want);
    }

    #[test]
    fn a_stub_stands_for_the_servers_behind_it() {
        let dir = scratch("stub");
        let (file, behind) = (dir.join("resolv.conf"), dir.join("behind"));
        std::fs::write(&file, "nameserver 127.0.0.53\n").unwrap();
        assert_eq!(real_of(&file, &behind), file, "nothing better is known");
        std::fs::write(&behind, "nameserver 192.0.2.9\n").unwrap();
        assert_eq!(real_of(&file, &behind), behind);
        std::fs::write(&file, "nameserver 192.0.2.1\nnameserver 127.0.0.1\n").unwrap();
        assert_eq!(real_of(&file, &behind), file);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_comes_late_or_is_replaced_is_noticed() {
        let dir = scratch("watch");
        let file = dir.join("resolv.conf");
        let changed = Arc::new(Notify::new());
        let _watcher = watch(&file, changed.clone()).unwrap();
        let told = || tokio::time::timeout(Duration::from_secs(5), changed.notified());
        for server in ["192.0.2.1", "192.0.2.2"] {
            let next = dir.join("resolv.conf.new");
            std::fs::write(&next, format!("nameserver {server}\n")).unwrap();
            std::fs::rename(&next, &file).unwrap();
            told().await.expect("a rename is a change");
            assert_eq!(servers(&file), [server.parse::<IpAddr>().unwrap()]);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
