//! The size of the kernel's connection table and how long connections stay in it, as kube-proxy sets them, where that is wanted.
//!
//! These are the machine's settings: sizes are only ever raised, what was there before is noted, and put back when everything is
//! taken back. A machine that doesn't let them be set goes on with what it has.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SETTINGS: &str = "/proc/sys/net/netfilter/nf_conntrack_";
const HASHES: &str = "/sys/module/nf_conntrack/parameters/hashsize";
const ONLINE: &str = "/sys/devices/system/cpu/online";
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// However many CPUs there are.
const MOST: u64 = 1 << 20;

/// `None`, or zero: as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub max_per_core: Option<u32>,
    pub min: Option<u32>,
    pub established: Option<Duration>,
    pub close_wait: Option<Duration>,
    pub udp: Option<Duration>,
    pub udp_stream: Option<Duration>,
    pub is_liberal: bool,
}

impl Limits {
    /// What kube-proxy sets unless it is told otherwise.
    pub fn usual() -> Limits {
        Limits {
            max_per_core: Some(32 << 10),
            min: Some(128 << 10),
            established: Some(Duration::from_secs(24 * 3600)),
            close_wait: Some(Duration::from_secs(3600)),
            ..Limits::default()
        }
    }

    /// What the files are to have for so many CPUs.
    fn wanted(&self, cpus: u64) -> Vec<Wanted> {
        let mut all = Vec::new();
        let least = u64::from(self.min.unwrap_or(0));
        let scaled = u64::from(self.max_per_core.unwrap_or(0)) * cpus;
        let max = match self.max_per_core {
            // As it is, whatever the least is.
            Some(0) => 0,
            _ if scaled > MOST => MOST,
            _ => scaled.max(least),
        };
        if max > 0 {
            all.push(Wanted::at_least(format!("{SETTINGS}max"), max));
            all.push(Wanted::at_least(HASHES.into(), max / 4));
        }
        for (name, time) in [
            ("tcp_timeout_established", self.established),
            ("tcp_timeout_close_wait", self.close_wait),
            ("udp_timeout", self.udp),
            ("udp_timeout_stream", self.udp_stream),
        ] {
            let seconds = time.map_or(0, |t| t.as_secs());
            if seconds > 0 {
                all.push(Wanted::just(format!("{SETTINGS}{name}"), seconds));
            }
        }
        if self.is_liberal {
            all.push(Wanted::just(format!("{SETTINGS}tcp_be_liberal"), 1));
        }
        all
    }
}

struct Wanted {
    file: String,
    value: u64,
    /// A larger one is as good.
    is_least: bool,
}

impl Wanted {
    fn at_least(file: String, value: u64) -> Wanted {
        Wanted {
            file,
            value,
            is_least: true,
        }
    }

    fn just(file: String, value: u64) -> Wanted {
        Wanted {
            file,
            value,
            is_least: false,
        }
    }
}

/// The machine's files, or those that a test plays.
pub trait Files {
    fn read(&self, path: &Path) -> io::Result<String>;
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
    /// Writes a file of one's own, whole or not at all.
    fn keep(&self, path: &Path, text: &str) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
}

pub struct Real;

impl Files for Real {
    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        std::fs::write(path, text)
    }

    fn keep(&self, path: &Path, text: &str) -> io::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        // What it tells of ends with the machine, so nothing waits for the disk.
        let beside = path.with_extension("new");
        std::fs::write(&beside, text)?;
        std::fs::rename(&beside, path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}

/// What files had before, since the machine started.
#[derive(Default, Serialize, Deserialize)]
struct Note {
    boot: String,
    had: BTreeMap<PathBuf, u64>,
    /// What they were given: whoever has changed that since needs it so.
    given: BTreeMap<PathBuf, u64>,
}

impl Note {
    fn read(files: &dyn Files, note: &Path) -> io::Result<Note> {
        let boot = files.read(Path::new(BOOT))?.trim().to_owned();
        let known = match files.read(note) {
            // Only a machine that stopped without warning leaves less than the whole.
            Ok(text) => serde_json::from_str::<Note>(&text).ok(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        // A start of the machine has put everything back.
        Ok(known.filter(|n| n.boot == boot).unwrap_or(Note {
            boot,
            ..Note::default()
        }))
    }

    fn give(&mut self, files: &dyn Files, note: &Path, path: &Path, value: u64) -> io::Result<()> {
        self.given.insert(path.to_owned(), value);
        files.keep(note, &serde_json::to_string(self)?)
    }
}

/// Sets what isn't so yet. Tells what can't be set.
pub fn apply(limits: &Limits, files: &dyn Files, note: Option<&Path>) -> Vec<String> {
    let mut failed = Vec::new();
    for wanted in limits.wanted(cpus(files)) {
        let path = Path::new(&wanted.file);
        let set = number(files, path).and_then(|now| {
            if now == wanted.value || (wanted.is_least && now > wanted.value) {
                return Ok(());
            }
            let Some(at) = note else {
                return files.write(path, &wanted.value.to_string());
            };
            // Noted before it is so.
            let mut note = Note::read(files, at)?;
            note.had.entry(path.to_owned()).or_insert(now);
            note.give(files, at, path, wanted.value)?;
            files.write(path, &wanted.value.to_string())?;
            // The kernel may have made something else of it: of its table it makes whole pages.
            match number(files, path)? {
                made if made == wanted.value => Ok(()),
                made => note.give(files, at, path, made),
            }
        });
        if let Err(error) = set {
            failed.push(format!("{} can't be {}: {error}", wanted.file, wanted.value));
        }
    }
    failed
}

/// Puts back what was there before, unless somebody else has changed it since. All is tried; the note stays until all is done.
pub fn restore(files: &dyn Files, note: &Path) -> io::Result<()> {
    match files.read(note) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => drop(read?),
    }
    let known = Note::read(files, note)?;
    let mut done = Ok(());
    for (path, had) in &known.had {
        let put_back = match number(files, path) {
            Ok(now) if known.given.get(path) == Some(&now) => files.write(path, &had.to_string()),
            Ok(_) => Ok(()),
            // The module is gone, and its settings with it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        };
        done = done.and(put_back);
    }
    done?;
    files.remove(note)
}

fn number(files: &dyn Files, path: &Path) -> io::Result<u64> {
    files.read(path)?.trim().parse().map_err(io::Error::other)
}

/// The machine's, whichever of them this process may use: `0-3,8`.
fn cpus(files: &dyn Files) -> u64 {
    let text = files.read(Path::new(ONLINE)).unwrap_or_default();
    let ranges = text.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first).map(|n| n + 1)
    });
    ranges.sum::<Option<u64>>().filter(|n| *n > 0).unwrap_or_else(|| {
        let own = std::thread::available_parallelism();
        own.map_or(1, |n| n.get() as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Played {
        files: RefCell<BTreeMap<PathBuf, String>>,
        /// What can't be written.
        refused: RefCell<Option<PathBuf>>,
    }

    impl Played {
        fn with(files: &[(&str, &str)]) -> Played {
            let all = files
                .iter()
                .map(|(path, text)| (PathBuf::from(path), (*text).to_owned()));
            Played {
                files: RefCell::new(all.collect()),
                ..Played::default()
            }
        }
        fn of(&self, name: &str) -> String {
            self.files
                .borrow()
                .get(&PathBuf::from(format!("{SETTINGS}{name}")))
                .cloned()
                .unwrap_or_default()
        }
    }

    impl Files for Played {
        fn read(&self, path: &Path) -> io::Result<String> {
            self.files
                .borrow()
                .get(path)
                .cloned()
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        }
        fn write(&self, path: &Path, text: &str) -> io::Result<()> {
            if self.refused.borrow().as_deref() == Some(path) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            // The kernel's table is made of whole pages.
            let text = match path == Path::new(HASHES) {
                true => text.parse::<u64>().unwrap().next_multiple_of(512).to_string(),
                false => text.to_owned(),
            };
            self.files.borrow_mut().insert(path.to_owned(), text);
            Ok(())
        }
        fn keep(&self, path: &Path, text: &str) -> io::Result<()> {
            self.files.borrow_mut().insert(path.to_owned(), text.to_owned());
            Ok(())
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            self.files.borrow_mut().remove(path);
            Ok(())
        }
    }

    fn machine() -> Played {
        Played::with(&[
            (ONLINE, "0-3,8\n"),
            (BOOT, "one\n"),
            (HASHES, "65536\n"),
            ("/proc/sys/net/netfilter/nf_conntrack_max", "65536\n"),
            (
                "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
                "432000\n",
            ),
            ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", "60\n"),
        ])
    }

    #[test]
    fn the_table_is_as_large_as_upstreams() {
        let max = |per_core, min, cpus| {
            let limits = Limits {
                max_per_core: Some(per_core),
                min: Some(min),
                ..Limits::default()
            };
            limits.wanted(cpus).first().map(|w| w.value)
        };
        assert_eq!(max(32 << 10, 128 << 10, 2), Some(128 << 10));
        assert_eq!(max(32 << 10, 128 << 10, 5), Some(160 << 10));
        assert_eq!(max(32 << 10, 128 << 10, 64), Some(MOST));
        assert_eq!(max(0, 128 << 10, 2), None);
        let alone = Limits {
            min: Some(128 << 10),
            ..Limits::default()
        };
        let values: Vec<u64> = alone.wanted(2).iter().map(|w| w.value).collect();
        assert_eq!(values, [128 << 10, 32 << 10], "the least that is said alone");
        assert!(Limits::default().wanted(2).is_empty());
    }

    #[test]
    fn settings_are_raised_noted_and_put_back() {
        let (files, note) = (machine(), Path::new("/data/note"));
        assert_eq!(apply(&Limits::usual(), &files, Some(note)), [] as [String; 0]);
        assert_eq!(
            (files.of("max"), files.of("tcp_timeout_close_wait")),
            ("163840".into(), "3600".into())
        );
        assert_eq!(files.of("tcp_timeout_established"), "86400");
        assert_eq!(files.read(Path::new(HASHES)).unwrap(), "65536\n", "it is large enough");
        // Again, and with another wish: what was there first is what counts.
        let mut limits = Limits::usual();
        limits.close_wait = Some(Duration::from_secs(30));
        apply(&limits, &files, Some(note));
        // Somebody has made it larger since.
        files
            .write(Path::new("/proc/sys/net/netfilter/nf_conntrack_max"), "999999")
            .unwrap();
        apply(&limits, &files, Some(note));
        assert_eq!(files.of("max"), "999999");
        restore(&files, note).unwrap();
        assert_eq!(
            (files.of("max"), files.of("tcp_timeout_close_wait")),
            ("999999".into(), "60".into())
        );
        assert_eq!(files.of("tcp_timeout_established"), "432000");
        assert!(files.read(note).is_err());
        restore(&files, note).unwrap();
    }

    #[test]
    fn what_the_kernel_made_of_a_size_is_put_back_too() {
        let (files, note) = (machine(), Path::new("/data/note"));
        files.write(Path::new(HASHES), "1024").unwrap();
        let limits = Limits {
            max_per_core: Some(20_001),
            ..Limits::default()
        };
        assert_eq!(apply(&limits, &files, Some(note)), [] as [String; 0]);
        assert_eq!(files.read(Path::new(HASHES)).unwrap(), "25088", "100005 / 4, in pages");
        restore(&files, note).unwrap();
        assert_eq!(files.read(Path::new(HASHES)).unwrap(), "1024");
    }

    #[test]
    fn one_that_can_not_be_put_back_holds_up_no_other() {
        let (files, note) = (machine(), Path::new("/data/note"));
        apply(&Limits::usual(), &files, Some(note));
        let max = PathBuf::from(format!("{SETTINGS}max"));
        *files.refused.borrow_mut() = Some(max);
        assert!(restore(&files, note).is_err());
        assert_eq!(files.of("tcp_timeout_close_wait"), "60");
        assert!(files.read(note).is_ok(), "there is more to do");
        *files.refused.borrow_mut() = None;
        // What can't be read isn't what somebody else has changed.
        let max = PathBuf::from(format!("{SETTINGS}max"));
        files.write(&max, "").unwrap();
        assert!(restore(&files, note).is_err() && files.read(note).is_ok());
        files.write(&max, "163840").unwrap();
        restore(&files, note).unwrap();
        assert_eq!(files.of("max"), "65536");
        assert!(files.read(note).is_err());
    }

    #[test]
    fn a_note_that_can_not_be_written_is_the_one_before() {
        let dir = std::env::temp_dir().join(format!("keelson-limits-{}", std::process::id()));
        let note = dir.join("proxy/limits.json");
        Real.keep(&note, "one").unwrap();
        Real.keep(&note, "two").unwrap();
        // Where it would be written first there is no room.
        std::fs::create_dir(note.with_extension("new")).unwrap();
        assert!(Real.keep(&note, "three").is_err());
        assert_eq!(Real.read(&note).unwrap(), "two");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_start_of_the_machine_has_put_everything_back() {
        let (files, note) = (machine(), Path::new("/data/note"));
        apply(&Limits::usual(), &files, Some(note));
        files.write(Path::new(BOOT), "two\n").unwrap();
        restore(&files, note).unwrap();
        assert_eq!(
            files.of("tcp_timeout_close_wait"),
            "3600",
            "as it was found after the start"
        );
    }

    #[test]
    fn what_can_not_be_set_is_told_and_the_rest_is_set() {
        let files = machine();
        files
            .remove(Path::new("/proc/sys/net/netfilter/nf_conntrack_max"))
            .unwrap();
        let failed = apply(&Limits::usual(), &files, None);
        assert!(
            failed.len() == 1 && failed[0].contains("nf_conntrack_max can't be 163840"),
            "{failed:?}"
        );
        assert_eq!(files.of("tcp_timeout_close_wait"), "3600");
    }
}
