//! The machine's resolv.conf: which servers know the rest of the world, now and after every change of it.
//!
//! Where the file names only a stub on loopback (systemd-resolved), the file with the servers behind the stub is meant.

use keelson_follow::Watch;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where systemd-resolved writes the servers that its stub asks.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// How long whoever writes it is left to write it to its end.
const QUIET: Duration = Duration::from_millis(100);
const AT_LAST: Duration = Duration::from_secs(2);
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

/// Tells when the file, or the one behind a stub, may have another content: written, replaced by another, made.
pub fn watch(file: &Path) -> io::Result<Watch> {
    let files = [file.to_path_buf(), PathBuf::from(BEHIND_STUB)];
    Ok(Watch::files(files)?.settled(QUIET, AT_LAST))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut watch = watch(&file).unwrap();
        for server in ["192.0.2.1", "192.0.2.2"] {
            let next = dir.join("resolv.conf.new");
            std::fs::write(&next, format!("nameserver {server}\n")).unwrap();
            std::fs::rename(&next, &file).unwrap();
            let told = tokio::time::timeout(Duration::from_secs(5), watch.changed()).await;
            told.expect("a rename is a change").unwrap();
            assert_eq!(servers(&file), [server.parse::<IpAddr>().unwrap()]);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
