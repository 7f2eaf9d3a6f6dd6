//! A disk that fails when it is told to, below everything: the kernel asks this program about each file operation of a thread
//! and of the threads it starts (seccomp's user notification), and is told to carry it out, to fail it, or to wait.
//!
//! It also remembers what would be left after a power failure. A sync that succeeds makes a file's pages durable, except those
//! that an earlier failed sync lost: the kernel took them for written. Pages written since are left or not, each by itself.
//! Directories are taken for durable at once.

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags, ScmpSyscall};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

const PAGE: usize = 4096;
/// Journals are made with 64 MiB of zeros; no test writes more than this to one.
const LOOKED_AT: u64 = 2 << 20;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Eio,
    NoSpace,
    /// Half of what was to be written is.
    Torn,
    Stall(Duration),
    /// This operation and every one after it, until the disk is healed.
    Dead,
}

pub struct Disk {
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seen: u64,
    fault: Option<(u64, Fault)>,
    is_dead: bool,
    failed: Option<String>,
    files: HashMap<u64, Durable>,
}

/// A file as it is on the disk, by its inode.
#[derive(Default)]
struct Durable {
    content: Vec<u8>,
    /// What the kernel believes to have written.
    lost: HashMap<usize, Vec<u8>>,
}

type Work = Box<dyn FnOnce() + Send>;

/// One for the process, since the library has one filter only: a thread under the filter, which starts others, and one that
/// answers for them.
struct Lab {
    work: Mutex<std::sync::mpsc::Sender<Work>>,
    disks: Mutex<Vec<Weak<Disk>>>,
}

impl Lab {
    fn get() -> &'static Lab {
        static LAB: OnceLock<Lab> = OnceLock::new();
        LAB.get_or_init(|| {
            let (work, todo) = std::sync::mpsc::channel::<Work>();
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                tell.send(filter()).unwrap();
                for work in todo {
                    std::thread::spawn(work);
                }
            });
            let fd = told.recv().unwrap();
            std::thread::spawn(move || Lab::get().answers(fd));
            Lab {
                work: Mutex::new(work),
                disks: Mutex::default(),
            }
        })
    }

    fn answers(&self, fd: i32) {
        loop {
            // One whose thread has gone meanwhile can't be received.
            let Ok(request) = ScmpNotifReq::receive(fd) else {
                continue;
            };
            let operation = operation(&request);
            let disk = operation.as_ref().and_then(|operation| {
                let mut disks = self.disks.lock();
                disks.retain(|disk| disk.strong_count() > 0);
                let mut alive = disks.iter().filter_map(Weak::upgrade);
                alive.find(|disk| operation.path.starts_with(&disk.root))
            });
            match (disk, operation) {
                (Some(disk), Some(operation)) => disk.decide(fd, request, &operation),
                _ => answer(fd, ScmpNotifResp::new_continue(request.id, ScmpNotifRespFlags::empty())),
            }
        }
    }
}

/// What an operation works on.
struct Operation {
    name: &'static str,
    path: PathBuf,
}

impl Disk {
    pub fn new(root: &Path) -> Arc<Disk> {
        let root = root.to_path_buf();
        let state = Mutex::default();
        Arc::new(Disk { root, state })
    }

    /// The `n`-th operation from now on fails so.
    pub fn fail(&self, n: u64, fault: Fault) {
        let mut state = self.state.lock();
        state.fault = Some((state.seen + n, fault));
    }
    pub fn heal(&self) {
        let mut state = self.state.lock();
        (state.fault, state.is_dead) = (None, false);
    }
    pub fn operations(&self) -> u64 {
        self.state.lock().seen
    }
    /// Which operation was failed.
    pub fn failed(&self) -> Option<String> {
        self.state.lock().failed.clone()
    }

    /// Runs `f` on a thread whose file operations below the root pass this disk.
    pub fn under<T: Send + 'static>(self: &Arc<Self>, f: impl FnOnce() -> T + Send + 'static) -> T {
        let lab = Lab::get();
        lab.disks.lock().push(Arc::downgrade(self));
        let (tell, told) = std::sync::mpsc::channel();
        let work = Box::new(move || drop(tell.send(catch_unwind(AssertUnwindSafe(f)))));
        lab.work.lock().send(work).unwrap();
        // What the other thread printed is shown with another test, if at all.
        told.recv().unwrap().unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            panic!("{}", text.unwrap_or("the work panicked"))
        })
    }

    fn decide(&self, fd: i32, request: ScmpNotifReq, operation: &Operation) {
        let id = request.id;
        let go_on = ScmpNotifResp::new_continue(id, ScmpNotifRespFlags::empty());
        let mut state = self.state.lock();
        state.seen += 1;
        let fault = match state.fault {
            Some((at, fault)) if at == state.seen => {
                state.failed = Some(format!("{} {}", operation.name, operation.path.display()));
                state.is_dead = fault == Fault::Dead;
                Some(fault)
            }
            _ => state.is_dead.then_some(Fault::Dead),
        };
        let is_sync = matches!(operation.name, "fsync" | "fdatasync");
        let error = match fault {
            Some(Fault::Eio | Fault::Dead) => Some(EIO),
            Some(Fault::NoSpace) => Some(ENOSPC),
            Some(Fault::Torn) => {
                write_half(&request, operation);
                Some(EIO)
            }
            Some(Fault::Stall(time)) => {
                state.sync(is_sync.then_some(&operation.path));
                drop(state);
                std::thread::spawn(move || {
                    std::thread::sleep(time);
                    answer(fd, go_on);
                });
                return;
            }
            None => None,
        };
        match error {
            Some(errno) => {
                if is_sync {
                    state.lose(&operation.path);
                }
                answer(fd, ScmpNotifResp::new_error(id, -errno, ScmpNotifRespFlags::empty()));
            }
            None => {
                state.sync(is_sync.then_some(&operation.path));
                if operation.name == "unlink"
                    && let Ok(meta) = fs::metadata(&operation.path)
                {
                    state.files.remove(&meta.ino());
                }
                // The disk's own syncs need not be waited for.
                answer(
                    fd,
                    match is_sync {
                        true => ScmpNotifResp::new_val(id, 0, ScmpNotifRespFlags::empty()),
                        false => go_on,
                    },
                );
            }
        }
    }

    /// What a machine would find after the power has failed now.
    pub fn after_power_failure(&self, rng: &mut StdRng) -> tempfile::TempDir {
        let image = tempfile::tempdir().unwrap();
        self.state.lock().copy(&self.root, image.path(), rng);
        image
    }
}

impl State {
    fn sync(&mut self, path: Option<&PathBuf>) {
        let Some((ino, now)) = path.and_then(|path| content(path)) else {
            return;
        };
        let file = self.files.entry(ino).or_default();
        let before = std::mem::take(&mut file.content);
        file.content = now.clone();
        file.lost.retain(|page, lost| part(&now, *page) == &lost[..]);
        for page in file.lost.keys() {
            let range = page * PAGE..(page * PAGE + PAGE).min(now.len());
            let mut old = part(&before, *page).to_vec();
            old.resize(range.len(), 0);
            file.content[range].copy_from_slice(&old);
        }
    }

    fn lose(&mut self, path: &Path) {
        let Some((ino, now)) = content(path) else { return };
        let file = self.files.entry(ino).or_default();
        for page in 0..now.len().div_ceil(PAGE) {
            if part(&now, page) != part(&file.content, page) {
                file.lost.insert(page, part(&now, page).to_vec());
            }
        }
    }

    fn copy(&self, from: &Path, to: &Path, rng: &mut StdRng) {
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() {
                fs::create_dir(&target).unwrap();
                self.copy(&path, &target, rng);
                continue;
            }
            // Its removal was let go before this look, and the kernel has carried it out since.
            let Some((ino, now)) = content(&path) else { continue };
            let never = Durable::default();
            let file = self.files.get(&ino).unwrap_or(&never);
            let mut left = file.content.clone();
            for page in 0..now.len().div_ceil(PAGE) {
                let new = part(&now, page);
                let is_lost = file.lost.get(&page).is_some_and(|lost| &lost[..] == new);
                if !is_lost && rng.random_bool(0.5) {
                    let end = page * PAGE + new.len();
                    left.resize(left.len().max(end), 0);
                    left[page * PAGE..end].copy_from_slice(new);
                }
            }
            fs::write(target, left).unwrap();
        }
    }
}

fn part(content: &[u8], page: usize) -> &[u8] {
    let start = (page * PAGE).min(content.len());
    &content[start..(start + PAGE).min(content.len())]
}

fn content(path: &Path) -> Option<(u64, Vec<u8>)> {
    let file = File::open(path).ok()?;
    let meta = file.metadata().ok()?;
    let mut content = Vec::new();
    if meta.is_file() {
        file.take(LOOKED_AT).read_to_end(&mut content).unwrap();
        let is_zero = |page: &&[u8]| page.iter().all(|b| *b == 0);
        let zeros = content
            .rchunks(PAGE)
            .take_while(|page| **page == [0; PAGE] || is_zero(page))
            .count();
        let end = content.len().saturating_sub(zeros * PAGE);
        if content.len() as u64 == LOOKED_AT {
            assert!(end < content.len(), "a test wrote too much to {}", path.display());
            content.truncate(end);
        }
    }
    Some((meta.ino(), content))
}

fn answer(fd: i32, response: ScmpNotifResp) {
    // Whoever asked may have gone meanwhile.
    let _ = response.respond(fd);
}

const WATCHED: &[&str] = &[
    "write",
    "pwrite64",
    "writev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "openat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
];

/// From here on this thread, and those it starts, ask.
fn filter() -> i32 {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow).unwrap();
    for name in WATCHED {
        let call = ScmpSyscall::from_name(name).unwrap();
        // Some exist on some architectures only.
        if i32::from(call) >= 0 {
            filter.add_rule(ScmpAction::Notify, call).unwrap();
        }
    }
    filter.load().unwrap();
    let fd = filter.get_notify_fd().unwrap();
    // The context owns the descriptor.
    std::mem::forget(filter);
    fd
}

/// `None`: it changes nothing.
fn operation(request: &ScmpNotifReq) -> Option<Operation> {
    let args = request.data.args;
    let called = request.data.syscall.get_name().ok()?;
    let by_descriptor = || fs::read_link(format!("/proc/{}/fd/{}", request.pid, args[0] as i32)).ok();
    let (name, path) = match called.as_str() {
        "write" | "pwrite64" | "writev" => ("write", by_descriptor()?),
        "fsync" => ("fsync", by_descriptor()?),
        "fdatasync" => ("fdatasync", by_descriptor()?),
        "ftruncate" | "fallocate" => ("truncate", by_descriptor()?),
        "openat" => {
            const CREATES_OR_CUTS: u64 = 0o100 | 0o1000;
            if args[2] & CREATES_OR_CUTS == 0 {
                return None;
            }
            ("create", text(args[1])?)
        }
        "rename" => ("rename", text(args[0])?),
        "renameat" | "renameat2" => ("rename", text(args[1])?),
        "unlink" => ("unlink", text(args[0])?),
        "unlinkat" => ("unlink", text(args[1])?),
        "mkdir" => ("mkdir", text(args[0])?),
        "mkdirat" => ("mkdir", text(args[1])?),
        _ => return None,
    };
    Some(Operation { name, path })
}

/// It is the same process: its memory is this one's.
fn memory(at: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    let read = File::open("/proc/self/mem").ok()?.read_at(&mut bytes, at).ok()?;
    bytes.truncate(read);
    Some(bytes)
}

fn text(at: u64) -> Option<PathBuf> {
    let bytes = memory(at, PAGE.min(PAGE - at as usize % PAGE + PAGE))?;
    let text = bytes.split(|b| *b == 0).next()?;
    Some(PathBuf::from(std::str::from_utf8(text).ok()?))
}

fn write_half(request: &ScmpNotifReq, operation: &Operation) {
    let called = request.data.syscall.get_name().unwrap_or_default();
    let [descriptor, at, len, offset, ..] = request.data.args;
    let Some(bytes) = memory(at, len as usize / 2).filter(|_| operation.name == "write" && called != "writev") else {
        return;
    };
    let info = fs::read_to_string(format!("/proc/{}/fdinfo/{descriptor}", request.pid)).unwrap();
    let field = |name: &str| {
        info.lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    let appends = u32::from_str_radix(&field("flags:"), 8).unwrap() & 0o2000 != 0;
    let file = File::options().write(true).open(&operation.path).unwrap();
    let position = match (called.as_str(), appends) {
        ("pwrite64", _) => offset,
        (_, true) => file.metadata().unwrap().len(),
        (_, false) => field("pos:").parse().unwrap(),
    };
    file.write_all_at(&bytes, position).unwrap();
}
