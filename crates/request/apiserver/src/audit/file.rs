//! The file that events go to, kept small by rotation, with the names and limits that kube-apiserver's has.
//!
//! One thread writes; requests only queue. The queue has a bound in bytes: where the disk can't keep up requests wait with
//! their event, outside of that bound. An event is lost where the disk refuses it, which the server's log says each
//! time. It is in the kernel's hands a moment after its request was answered: a crash of the server or the machine may
//! lose the last ones.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes of events that may wait for the disk.
const QUEUE_BYTES: usize = 16 << 20;
/// Events that may wait.
const QUEUE: usize = 4096;

/// Where the log is, and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub path: PathBuf,
    /// A file that would grow past this is put aside. Bytes.
    pub max_size: u64,
    /// So many files put aside are kept; 0: all.
    pub max_backups: usize,
    /// Files put aside longer ago are removed; `None`: never.
    pub max_age: Option<Duration>,
}

impl Settings {
    /// kube-apiserver's default size; at most a gigabyte in all.
    pub fn at(path: PathBuf) -> Self {
        Settings {
            path,
            max_size: 100 << 20,
            max_backups: 9,
            max_age: None,
        }
    }
}

type Line = (Vec<u8>, OwnedSemaphorePermit);

/// The open log.
pub struct LogFile {
    lines: Option<mpsc::Sender<Line>>,
    room: Arc<Semaphore>,
    writer: Option<JoinHandle<()>>,
}

impl LogFile {
    pub fn open(settings: Settings) -> Result<Self> {
        let mut file = Rotating::open(settings)?;
        let (lines, mut queue) = mpsc::channel::<Line>(QUEUE);
        let writer = std::thread::Builder::new().name("audit".into()).spawn(move || {
            let mut batch = Vec::new();
            while queue.blocking_recv_many(&mut batch, QUEUE) > 0 {
                for (line, _room) in batch.drain(..) {
                    if let Err(e) = file.write(&line) {
                        tracing::error!(
                            "an event of the audit log is lost: {}: {e}",
                            file.settings.path.display()
                        );
                    }
                }
            }
        })?;
        Ok(LogFile {
            lines: Some(lines),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            writer: Some(writer),
        })
    }

    /// Queues a line, waiting for room.
    pub async fn append(&self, line: Vec<u8>) {
        let size = u32::try_from(line.len().min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let sent = async {
            let room = self.room.clone().acquire_many_owned(size).await.ok()?;
            self.lines.as_ref()?.send((line, room)).await.ok()
        };
        if sent.await.is_none() {
            tracing::error!("the audit log has ended: an event is lost");
        }
    }
}

impl Drop for LogFile {
    /// What is queued is written before the program ends.
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of the audit log has panicked");
        }
    }
}

struct Rotating {
    settings: Settings,
    file: File,
    size: u64,
}

impl Rotating {
    fn open(settings: Settings) -> Result<Self> {
        if let Some(parent) = settings.path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        let file =
            open(&settings.path).with_context(|| format!("opening the audit log {}", settings.path.display()))?;
        let size = file.metadata()?.len();
        Ok(Rotating { settings, file, size })
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        let length = line.len() as u64;
        if self.size > 0
            && self.size + length > self.settings.max_size
            && let Err(e) = self.rotate()
        {
            // Too large a file is better than a lost event.
            tracing::error!("the audit log {} can't be put aside: {e}", self.settings.path.display());
        }
        self.file.write_all(line)?;
        self.size += length;
        Ok(())
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        let now = keelson_clock::now();
        match std::fs::rename(&self.settings.path, aside(&self.settings.path, now)) {
            // Somebody else has put it aside.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            moved => moved?,
        }
        self.file = open(&self.settings.path)?;
        self.size = 0;
        let mut kept = backups(&self.settings.path)?;
        kept.sort();
        let surplus = match self.settings.max_backups {
            0 => 0,
            most => kept.len().saturating_sub(most),
        };
        let oldest = self
            .settings
            .max_age
            .and_then(|age| now.checked_sub(age).ok())
            .map(|limit| aside(&self.settings.path, limit));
        for (i, path) in kept.iter().enumerate() {
            if i < surplus || oldest.as_ref().is_some_and(|limit| path < limit) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// `audit.log` is put aside as `audit-2026-01-31T10-00-00.000.log`: names in the order of their times.
fn aside(path: &Path, at: jiff::Timestamp) -> PathBuf {
    let (stem, extension) = parts(path);
    path.with_file_name(format!("{stem}-{}{extension}", at.strftime("%Y-%m-%dT%H-%M-%S%.3f")))
}

fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy()));
    (text(path.file_stem()), extension.unwrap_or_default())
}

fn backups(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (stem, extension) = parts(path);
    let stamp = "2026-01-31T10-00-00.000".len();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path.parent().unwrap_or(Path::new(".")))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let middle = name
            .strip_prefix(&format!("{stem}-"))
            .and_then(|n| n.strip_suffix(&extension));
        if middle.is_some_and(|m| m.len() == stamp && m.as_bytes()[10] == b'T') {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("keelson-audit-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_full_file_is_put_aside_and_old_ones_go() {
        let dir = Dir::new("rotate");
        let path = dir.0.join("audit.log");
        std::fs::write(dir.0.join("audit-notes.log"), "mine").unwrap();
        let settings = Settings {
            max_size: 10,
            max_backups: 2,
            ..Settings::at(path.clone())
        };
        let mut log = Rotating::open(settings).unwrap();
        for n in 0..5 {
            log.write(format!("line {n}\n").as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line 4\n");
        let mut kept = backups(&path).unwrap();
        kept.sort();
        let texts: Vec<String> = kept.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
        assert_eq!(texts, ["line 2\n", "line 3\n"]);
        assert!(dir.0.join("audit-notes.log").exists());
        std::fs::remove_file(&path).unwrap();
        log.write(b"line 5\n").unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "line 5\n",
            "a new file in place of a lost one"
        );
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn everything_queued_is_written_at_the_end() {
        let dir = Dir::new("queue");
        let path = dir.0.join("audit.log");
        let log = LogFile::open(Settings::at(path.clone())).unwrap();
        for n in 0..1000 {
            log.append(format!("{n}\n").into_bytes()).await;
        }
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1000);
        assert!(text.ends_with("999\n"));
    }
}
