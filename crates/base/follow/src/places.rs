//! Where something may happen that concerns a path: the directories on the way to it, by the names in them that matter.

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;
/// Of one tree: each is memory of the kernel's. A tree with more isn't followed.
const MOST_DIRECTORIES: usize = 10_000;

/// What is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file, whatever it is reached by.
    File(PathBuf),
    /// All that is in a directory.
    Directory(PathBuf),
    /// And in those below. Links in it aren't followed: one may lead to all that the machine has.
    Tree(PathBuf),
}

impl Target {
    fn path(&self) -> &Path {
        match self {
            Target::File(path) | Target::Directory(path) | Target::Tree(path) => path,
        }
    }
}

/// Other files have the names that they had, or the watched ones are others.
const NAMES: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF);
const CONTENT: AddWatchFlags = AddWatchFlags::IN_MODIFY
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ATTRIB);

const FILE: AddWatchFlags = CONTENT
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF);
const WAY: AddWatchFlags = NAMES.union(AddWatchFlags::IN_ONLYDIR);
const WHOLE: AddWatchFlags = WAY.union(CONTENT);

/// A watched directory, or file.
struct Watched {
    mask: AddWatchFlags,
    /// What in it matters; otherwise all.
    names: Option<BTreeSet<OsString>>,
}

pub(crate) struct Places {
    targets: Vec<Target>,
    watched: HashMap<WatchDescriptor, Watched>,
    /// The files that the targets are now, by device and number.
    are: Vec<Option<(u64, u64)>>,
    /// They are others than they were, which nobody has asked for yet.
    are_others: bool,
}

/// What an event means.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Meaning {
    Nothing,
    Content,
    /// The way to a target may be another.
    Way,
}

impl Places {
    pub(crate) fn new(targets: Vec<Target>) -> Self {
        Places {
            targets,
            watched: HashMap::new(),
            are: Vec::new(),
            are_others: false,
        }
    }

    pub(crate) fn meaning(&self, event: &InotifyEvent) -> Meaning {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Meaning::Way;
        }
        let concerns = match (self.watched.get(&event.wd), &event.name) {
            (None, _) => false,
            (Some(Watched { names: Some(these), .. }), Some(name)) => these.contains(name),
            (Some(_), _) => true,
        };
        let way = NAMES | AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_UNMOUNT;
        match concerns {
            false => Meaning::Nothing,
            true if event.mask.intersects(way) => Meaning::Way,
            true => Meaning::Content,
        }
    }

    /// Whether the targets are other files than when this was last asked.
    pub(crate) fn are_others(&mut self) -> bool {
        std::mem::take(&mut self.are_others)
    }

    /// Watches what is on the way to the targets now, and nothing else.
    pub(crate) fn arm(&mut self, kernel: &Inotify) -> io::Result<()> {
        let mut walk = Walk {
            kernel,
            watched: HashMap::new(),
        };
        for target in &self.targets {
            let Some(real) = walk.way(&std::path::absolute(target.path())?)? else {
                continue;
            };
            match target {
                // By itself: a file that was mounted, or is written by another name, isn't told of by its directory.
                Target::File(_) => walk.add(&real, FILE, None)?,
                Target::Directory(_) => walk.add(&real, WHOLE, None)?,
                Target::Tree(_) => walk.tree(real)?,
            };
        }
        let before = std::mem::replace(&mut self.watched, walk.watched);
        for gone in before.keys().filter(|wd| !self.watched.contains_key(wd)) {
            // What was deleted isn't watched any more.
            let _ = kernel.rm_watch(*gone);
        }
        let is = |target: &Target| fs::metadata(target.path()).ok().map(|m| (m.dev(), m.ino()));
        let are = self.targets.iter().map(is).collect();
        self.are_others |= std::mem::replace(&mut self.are, are) != self.are;
        Ok(())
    }
}

struct Walk<'a> {
    kernel: &'a Inotify,
    watched: HashMap<WatchDescriptor, Watched>,
}

impl Walk<'_> {
    /// Watches each directory before it is looked into, so that nothing happens between. Where the path ends, if it can be gone to its end.
    fn way(&mut self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut at = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = names(path).map(OsStr::to_owned).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            if !self.add(&at, WAY, Some(&name))? {
                return Ok(None);
            }
            let next = at.join(&name);
            let Ok(meta) = fs::symlink_metadata(&next) else {
                return Ok(None);
            };
            if !meta.is_symlink() {
                at = next;
                continue;
            }
            links += 1;
            let Ok(leads) = fs::read_link(&next) else {
                return Ok(None);
            };
            if links > MOST_LINKS {
                return Ok(None);
            }
            if leads.is_absolute() {
                at = PathBuf::from("/");
            }
            for part in names(&leads).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(part.to_owned());
            }
        }
        Ok(Some(at))
    }

    fn tree(&mut self, top: PathBuf) -> io::Result<bool> {
        let mut left = vec![top];
        let mut count = 0;
        while let Some(dir) = left.pop() {
            count += 1;
            if count > MOST_DIRECTORIES {
                let why = format!(
                    "{} and below are more than {MOST_DIRECTORIES} directories",
                    dir.display()
                );
                return Err(io::Error::other(why));
            }
            if !self.add(&dir, WHOLE, None)? {
                continue;
            }
            // What can't be read is gone, which is told, or its reader will say so.
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            let below = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
            left.extend(below.map(|e| e.path()));
        }
        Ok(true)
    }

    /// False if there is no such thing any more, which the directory above tells.
    fn add(&mut self, path: &Path, mask: AddWatchFlags, name: Option<&OsStr>) -> io::Result<bool> {
        let add = |mask| match self.kernel.add_watch(path, mask) {
            Ok(wd) => Ok(Some(wd)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(e) => {
                let why = format!("watching {}: {}", path.display(), e.desc());
                Err(io::Error::new(io::Error::from(e).kind(), why))
            }
        };
        let Some(wd) = add(mask)? else {
            return Ok(false);
        };
        let watched = self.watched.entry(wd).or_insert(Watched {
            mask,
            names: Some(BTreeSet::new()),
        });
        // For several targets: the last mask would count alone.
        watched.mask |= mask;
        if watched.mask != mask {
            add(watched.mask)?;
        }
        match (name, &mut watched.names) {
            (None, names) => *names = None,
            (Some(name), Some(names)) => drop(names.insert(name.to_owned())),
            (Some(_), None) => {}
        }
        Ok(true)
    }
}

fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        _ => None,
    })
}
