//! How long logind waits for others: a file beside its settings, of upstream's name. What was written is taken back when the program
//! is removed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where logind looks for more settings.
pub const DIRECTORY: &str = "/etc/systemd/logind.conf.d";
const FIRST: &str = "# Written by Keelson's kubelet: the machine stops when pods have ended, or after this time.";

fn file(directory: &Path) -> PathBuf {
    directory.join("99-kubelet.conf")
}

pub fn write(directory: &Path, wait: Duration) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let text = format!("{FIRST}\n[Login]\nInhibitDelayMaxSec={}\n", wait.as_secs());
    let (path, new) = (file(directory), directory.join("99-kubelet.conf.new"));
    std::fs::write(&new, text)?;
    std::fs::rename(&new, &path)
}

/// Removes the file, unless somebody else has written it. logind takes note when it starts.
pub fn take_back(directory: &Path) -> io::Result<()> {
    let path = file(directory);
    match std::fs::read_to_string(&path) {
        Ok(text) if text.starts_with(FIRST) => std::fs::remove_file(&path),
        Ok(_) => Ok(()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_here_is_taken_back() {
        let dir = std::env::temp_dir().join(format!("keelson-logind-{}", std::process::id()));
        take_back(&dir).unwrap();
        write(&dir, Duration::from_secs(90)).unwrap();
        let text = std::fs::read_to_string(file(&dir)).unwrap();
        assert!(text.ends_with("\n[Login]\nInhibitDelayMaxSec=90\n"), "{text}");
        take_back(&dir).unwrap();
        assert!(!file(&dir).exists());
        std::fs::write(file(&dir), "# Kubelet logind override\n").unwrap();
        take_back(&dir).unwrap();
        assert!(file(&dir).exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
