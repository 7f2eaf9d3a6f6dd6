//! The file that events go to, kept small by rotation, with the names and limits that kube-apiserver's has.
//!
//! One thread writes; requests only queue. The queue has a bound in bytes: where the disk can't keep up requests wait with
//! their event, outside of that bound, as they do for upstream's log by its default mode, `blocking`; their seats bound how
//! many. The end of a watch, or of a request that was given up, has nobody who could wait: its event waits by itself, and there is a
//! bound for these too. At that one events are lost, as in upstream's mode `batch`, and so they are where the disk refuses them.
//! How many is counted (`apiserver_audit_error_total`), and the server's log says it. An event is in the kernel's hands a
//! moment after its request was answered: a crash of the server or the machine may lose the last ones.

use anyhow::{Context, Result};
use parking_lot::Mutex;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes of events that may wait for the disk.
const QUEUE_BYTES: usize = 16 << 20;
/// Events that may wait.
const QUEUE: usize = 4096;
/// Bytes of events that may wait for the queue with nobody waiting for them.
const LATE_BYTES: usize = 16 << 20;
/// What such an event takes of that at least: it has a task.
const LATE: usize = 4096;
/// The server's log tells of lost events so often at most.
const TOLD_EVERY: Duration = Duration::from_secs(1);

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
    queue: Option<Queue>,
    late: Arc<Semaphore>,
    account: Arc<Account>,
    writer: Option<JoinHandle<()>>,
}

/// The way to the thread that writes.
struct Queue {
    lines: mpsc::Sender<Line>,
    room: Arc<Semaphore>,
}

/// What became of events.
#[derive(Default)]
struct Account {
    written: AtomicU64,
    lost: AtomicU64,
    told: Mutex<Option<Instant>>,
}

impl Account {
    fn lose(&self, why: &dyn std::fmt::Display) {
        let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
        let mut told = self.told.lock();
        if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            *told = Some(Instant::now());
            tracing::error!("events of the audit log are lost, {lost} by now: {why}");
        }
    }
}

impl Queue {
    /// Waits for room. `false`: the log has ended.
    async fn send(&self, line: Vec<u8>) -> bool {
        let Ok(room) = self.room.clone().acquire_many_owned(size(&line)).await else {
            return false;
        };
        self.lines.send((line, room)).await.is_ok()
    }

    /// Gives the line back where there is no room.
    fn try_send(&self, line: Vec<u8>) -> Result<(), Vec<u8>> {
        let Ok(room) = self.room.clone().try_acquire_many_owned(size(&line)) else {
            return Err(line);
        };
        self.lines.try_send((line, room)).map_err(|e| e.into_inner().0)
    }
}

/// What a line takes of the queue's bytes; one that is longer than all of them takes all.
fn size(line: &[u8]) -> u32 {
    u32::try_from(line.len().min(QUEUE_BYTES)).unwrap_or(u32::MAX)
}

impl LogFile {
    pub fn open(settings: Settings) -> Result<Self> {
        let mut file = Rotating::open(settings)?;
        let (lines, mut queue) = mpsc::channel::<Line>(QUEUE);
        let account = Arc::new(Account::default());
        let counted = account.clone();
        let writer = std::thread::Builder::new().name("audit".into()).spawn(move || {
            let mut batch = Vec::new();
            while queue.blocking_recv_many(&mut batch, QUEUE) > 0 {
                for (line, _room) in batch.drain(..) {
                    match file.write(&line) {
                        Ok(()) => {
                            counted.written.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(e) => counted.lose(&format!("{}: {e}", file.settings.path.display())),
                    }
                }
            }
        })?;
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        Ok(LogFile {
            queue: Some(Queue { lines, room }),
            late: Arc::new(Semaphore::new(LATE_BYTES)),
            account,
            writer: Some(writer),
        })
    }

    /// Queues a line, waiting for room.
    pub async fn append(&self, line: Vec<u8>) {
        let Some(queue) = &self.queue else { return };
        if !queue.send(line).await {
            self.lose(&"it has ended");
        }
    }

    /// Queues a line from where nothing can wait; within a runtime.
    pub fn append_later(self: &Arc<Self>, line: Vec<u8>) {
        let Some(queue) = &self.queue else { return };
        let Err(line) = queue.try_send(line) else { return };
        let takes = u32::try_from(line.len().clamp(LATE, LATE_BYTES)).unwrap_or(u32::MAX);
        match self.late.clone().try_acquire_many_owned(takes) {
            Err(_) => self.lose(&"the disk doesn't keep up"),
            Ok(place) => {
                let log = self.clone();
                tokio::spawn(async move {
                    log.append(line).await;
                    drop(place);
                });
            }
        }
    }

    /// An event didn't get as far as the queue.
    pub fn lose(&self, why: &dyn std::fmt::Display) {
        self.account.lose(why);
    }

    /// Events written and lost.
    pub fn counted(&self) -> (u64, u64) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&self.account.written), of(&self.account.lost))
    }
}

impl Drop for LogFile {
    /// What is queued is written before the program ends.
    fn drop(&mut self) {
        self.queue = None;
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

    /// A disk that takes nothing for a while: a pipe that nobody reads.
    #[tokio::test(flavor = "multi_thread")]
    async fn while_the_disk_stalls_events_that_nobody_waits_for_are_bounded_and_counted() {
        use std::io::Read;
        let dir = Dir::new("stall");
        let path = dir.0.join("audit.log");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let opened = std::thread::spawn({
            let path = path.clone();
            move || File::open(path).unwrap()
        });
        let settings = Settings {
            max_size: u64::MAX,
            ..Settings::at(path)
        };
        let log = Arc::new(LogFile::open(settings).unwrap());
        let mut pipe = opened.join().unwrap();

        let line = |of: usize| [vec![b'x'; of - 1], vec![b'\n']].concat();
        // The queue fills, and then the room beside it: twice as much is left over.
        let events = 4 * (QUEUE_BYTES + LATE_BYTES) / (1 << 20);
        for _ in 0..events {
            log.append_later(line(1 << 20));
        }
        assert_eq!(log.late.available_permits(), 0);
        let lost = log.counted().1;
        assert!(lost > 0 && lost <= events as u64, "{lost}");
        // A request waits, and loses nothing.
        let waits = tokio::spawn({
            let log = log.clone();
            async move { log.append(line(100)).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waits.is_finished());

        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            pipe.read_to_end(&mut text).unwrap();
            text.iter().filter(|b| **b == b'\n').count() as u64
        });
        waits.await.unwrap();
        while log.counted().0 < events as u64 - lost + 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(log.late.available_permits(), LATE_BYTES);
        drop(log);
        assert_eq!(reader.join().unwrap(), events as u64 - lost + 1);
    }
}
