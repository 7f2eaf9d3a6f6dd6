//! The changes that are kept: in files, the last of them in memory.

use crate::block::{self, Head, Record, hash};
use crate::segment::{self, Segment};
use crate::{Error, Result};
use bytes::Bytes;
use jiff::Timestamp;
use keelson_store::{KeyRange, Revision};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A block has about so much, uncompressed.
const BLOCK: usize = 256 << 10;
/// What is kept goes in so many parts.
const PARTS: u64 = 16;
/// A question gathers no more than this.
pub const GATHERED: usize = 64 << 20;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    pub age: Duration,
    /// On disk.
    pub bytes: u64,
}

/// A revision, and when it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    pub revision: Revision,
    pub time_ms: u64,
}

impl Point {
    pub fn time(self) -> Timestamp {
        let ms = i64::try_from(self.time_ms).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} (revision {})", self.time(), self.revision)
    }
}

pub struct Log {
    directory: PathBuf,
    keep: Keep,
    state: RwLock<State>,
    /// One writes at a time.
    writing: Mutex<()>,
}

struct State {
    segments: VecDeque<Segment>,
    /// Not written yet, in order.
    pending: Vec<Record>,
    pending_bytes: usize,
    /// Every change up to it has been noted.
    synced: Point,
    /// Since when everything is known, where there is no file: all of it is pending.
    begun: Point,
}

/// What there is at one moment, for a question.
struct View {
    blocks: Vec<(Arc<PathBuf>, Arc<Head>)>,
    pending: Vec<Record>,
}

impl Log {
    /// What a directory has, or a new one. `now`: where the store stands, and what time it is. What can't be read is passed over, and what can't be
    /// made is tried again when there is something to write: no server is worth less than its history.
    pub fn open(directory: &Path, keep: Keep, now: Point) -> Log {
        let mut paths = ours(directory).unwrap_or_else(|error| {
            tracing::warn!(path = %directory.display(), %error, "the history that is kept can't be read");
            Vec::new()
        });
        // Their names are numbers of one length.
        paths.sort();
        let mut segments = VecDeque::new();
        for path in paths {
            let segment = match Segment::read(path) {
                Ok(Some(segment)) => segment,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, "a file of the history is passed over");
                    continue;
                }
            };
            // What doesn't go on where the one before ended is of another history.
            if segments
                .back()
                .is_some_and(|before: &Segment| before.end() != segment.base)
            {
                segments.drain(..).for_each(|segment| segment.remove());
            }
            segments.iter_mut().for_each(Segment::seal);
            segments.push_back(segment);
        }
        let log = Log {
            directory: directory.into(),
            keep,
            writing: Mutex::default(),
            state: RwLock::new(State {
                synced: segments.back().map_or(now, Segment::end),
                segments,
                pending: Vec::new(),
                pending_bytes: 0,
                begun: now,
            }),
        };
        let is_new = log.state.read().segments.is_empty();
        if (is_new || log.synced().revision > now.revision)
            && let Err(error) = log.begin(now)
        {
            tracing::warn!(%error, "history can't be begun yet; trying again");
        }
        log
    }

    /// Everything that was goes: from here on all is known.
    pub fn begin(&self, at: Point) -> Result<()> {
        let _writing = self.writing.lock();
        let mut state = self.state.write();
        state.segments.drain(..).for_each(|segment| segment.remove());
        state.pending.clear();
        state.pending_bytes = 0;
        state.synced = at;
        state.begun = at;
        state.segments.push_back(Segment::create(&self.directory, at)?);
        Ok(())
    }

    pub fn since(&self) -> Point {
        let state = self.state.read();
        state.segments.front().map_or(state.begun, |segment| segment.base)
    }
    pub fn synced(&self) -> Point {
        self.state.read().synced
    }
    /// On disk.
    pub fn bytes(&self) -> u64 {
        self.state.read().segments.iter().map(|segment| segment.bytes).sum()
    }
    /// In memory, not on disk.
    pub fn pending(&self) -> usize {
        self.state.read().pending_bytes
    }
    /// How far the files go.
    pub fn written(&self) -> Point {
        let state = self.state.read();
        state.segments.back().map_or(state.begun, Segment::end)
    }

    /// Notes changes, and that all up to `synced` is noted.
    pub fn note(&self, records: Vec<Record>, synced: Point) {
        let mut state = self.state.write();
        state.pending_bytes += records.iter().map(Record::bytes).sum::<usize>();
        state.pending.extend(records);
        state.synced = synced;
    }

    /// Writes what is noted, as it is when `finish` is through with it; and lets go what is older or more than is kept.
    pub fn write(&self, finish: impl Fn(&mut Record), now_ms: u64) -> Result<()> {
        let _writing = self.writing.lock();
        let (mut records, synced) = {
            let state = self.state.read();
            (state.pending.clone(), state.synced)
        };
        records.iter_mut().for_each(finish);
        let mut blocks = Vec::new();
        let (mut part, mut size) = (Vec::new(), 0);
        let mut records = records.into_iter().peekable();
        while let Some(record) = records.next() {
            let (revision, time_ms) = (record.revision, record.time_ms);
            size += record.bytes();
            part.push(record);
            // A revision with several keys is in one block.
            let next = records.peek().map(|next| next.revision);
            if size >= BLOCK && next.is_some_and(|next| next != revision) {
                let part = std::mem::take(&mut part);
                blocks.push((part.len(), block::write(part, revision, time_ms)));
                size = 0;
            }
        }
        blocks.push((part.len(), block::write(part, synced.revision, synced.time_ms)));
        let mut state = self.state.write();
        for (many, (head, bytes)) in blocks {
            self.roll(&mut state, now_ms)?;
            let last = state.segments.back_mut();
            let last = last.ok_or_else(|| Error::at(&self.directory, "there is no file to write to"))?;
            last.append(head, &bytes)?;
            let done: usize = state.pending.drain(..many).map(|record| record.bytes()).sum();
            state.pending_bytes -= done;
        }
        self.let_go(&mut state, now_ms);
        Ok(())
    }

    /// A new file, if the last one is large or old enough to be let go by itself one day.
    fn roll(&self, state: &mut State, now_ms: u64) -> Result<()> {
        let age = u64::try_from(self.keep.age.as_millis()).unwrap_or(u64::MAX);
        let full = |last: &Segment| {
            last.bytes >= self.keep.bytes / PARTS || last.base.time_ms.saturating_add(age / PARTS) <= now_ms
        };
        let Some(last) = state.segments.back_mut() else {
            // It couldn't be made when history began.
            let first = Segment::create(&self.directory, state.begun)?;
            state.segments.push_back(first);
            return Ok(());
        };
        if last.is_open() && (last.blocks.is_empty() || !full(last)) {
            return Ok(());
        }
        let base = last.end();
        if base == last.base {
            return Ok(());
        }
        last.seal();
        state.segments.push_back(Segment::create(&self.directory, base)?);
        Ok(())
    }

    fn let_go(&self, state: &mut State, now_ms: u64) {
        let oldest = now_ms.saturating_sub(u64::try_from(self.keep.age.as_millis()).unwrap_or(u64::MAX));
        let mut bytes: u64 = state.segments.iter().map(|segment| segment.bytes).sum();
        while state.segments.len() > 1
            && let Some(first) = state.segments.front()
            && (bytes > self.keep.bytes || first.end().time_ms < oldest)
        {
            bytes -= first.bytes;
            first.remove();
            state.segments.pop_front();
        }
    }

    /// Makes room where the disk has none: the oldest file goes. False: there is only the one that is written to.
    pub fn shrink(&self) -> bool {
        let mut state = self.state.write();
        if state.segments.len() < 2 {
            return false;
        }
        state.segments.pop_front().is_some_and(|first| {
            first.remove();
            true
        })
    }

    /// Blocks with changes after a revision.
    fn view(&self, after: Revision) -> View {
        let state = self.state.read();
        let blocks = state.segments.iter().flat_map(|segment| {
            let later = segment.blocks.iter().filter(move |head| head.last > after);
            later.map(|head| (segment.path.clone(), head.clone()))
        });
        View {
            blocks: blocks.collect(),
            pending: state.pending.clone(),
        }
    }

    /// What was asked for has to be kept still when it has been read.
    fn check(&self, at: Revision) -> Result<()> {
        let since = self.since();
        match at < since.revision {
            true => Err(Error::TooOld { since }),
            false => Ok(()),
        }
    }

    /// The revision that was the newest at a time.
    pub fn at_time(&self, ms: u64) -> Result<Revision> {
        let (since, synced) = (self.since(), self.synced());
        if ms < since.time_ms {
            return Err(Error::TooOld { since });
        }
        let view = self.view(0);
        let later = |records: &[Record]| {
            let after = records.iter().filter(|record| record.time_ms > ms);
            after.map(|record| record.revision - 1).min()
        };
        for (path, head) in view
            .blocks
            .iter()
            .filter(|(_, head)| head.to_ms > ms && !head.hashes.is_empty())
        {
            if let Some(found) = later(&segment::records(path, head)?) {
                return Ok(found);
            }
        }
        Ok(later(&view.pending).unwrap_or(synced.revision))
    }

    /// The first change of a key after a revision.
    pub fn first_after(&self, key: &[u8], after: Revision) -> Result<Option<Record>> {
        self.check(after)?;
        let (view, wanted) = (self.view(after), hash(key));
        let is = |record: &Record| record.revision > after && record.key == key;
        for (path, head) in view.blocks.iter().filter(|(_, head)| head.may_have(wanted)) {
            if let Some(found) = segment::records(path, head)?.into_iter().find(is) {
                return Ok(Some(found));
            }
        }
        self.check(after)?;
        Ok(view.pending.into_iter().find(is))
    }

    /// The newest changes of a key, the newest first; at most so many, and so many bytes. And whether there are more.
    pub fn newest(&self, key: &[u8], most: usize, bytes: usize) -> Result<(Vec<Record>, bool)> {
        let (view, wanted) = (self.view(0), hash(key));
        let (mut found, mut size): (Vec<Record>, usize) = (Vec::new(), 0);
        let mut take = |records: Vec<Record>| {
            for record in records.into_iter().rev().filter(|record| record.key == key) {
                size += record.bytes();
                if found.len() == most || (size > bytes && !found.is_empty()) {
                    return false;
                }
                found.push(apart(record));
            }
            true
        };
        let mut whole = take(view.pending);
        for (path, head) in view.blocks.iter().rev().filter(|(_, head)| head.may_have(wanted)) {
            if !whole {
                break;
            }
            whole = match segment::records(path, head) {
                Ok(records) => take(records),
                // It was let go meanwhile.
                Err(_) if !path.exists() => break,
                Err(error) => return Err(error),
            };
        }
        Ok((found, !whole))
    }

    /// Of each key of a range that has changed after a revision the first change. `prefix` (with a slash at its end) is what all keys of the
    /// range begin with. No more than `most` bytes of them: where there are more, the second is the key from which on they are left out.
    pub fn first_of_each(
        &self,
        prefix: &[u8],
        range: &KeyRange,
        after: Revision,
        most: usize,
    ) -> Result<(BTreeMap<Bytes, Record>, Option<Bytes>)> {
        self.check(after)?;
        let (view, wanted) = (self.view(after), hash(prefix));
        let (mut found, mut size) = (BTreeMap::<Bytes, Record>::new(), 0);
        let mut to: Option<Bytes> = None;
        let mut take = |records: Vec<Record>| {
            for record in records {
                let is_left_out = to.as_ref().is_some_and(|to| record.key >= *to);
                let is_wanted = record.revision > after && range.contains(&record.key) && !is_left_out;
                if !is_wanted || found.contains_key(&record.key) {
                    continue;
                }
                size += record.bytes();
                let record = apart(record);
                found.insert(record.key.clone(), record);
                // One is told, however large it is.
                while size > most
                    && found.len() > 1
                    && let Some((key, last)) = found.pop_last()
                {
                    size -= last.bytes();
                    to = Some(key);
                }
            }
        };
        for (path, head) in view.blocks.iter().filter(|(_, head)| head.may_have(wanted)) {
            take(segment::records(path, head)?);
        }
        take(view.pending);
        self.check(after)?;
        Ok((found, to))
    }
}

/// The files of a directory that are history's.
fn ours(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(paths),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if segment::is_ours(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Where no history is kept any more: what is there of it goes, and nothing else.
pub fn remove(directory: &Path) -> io::Result<()> {
    let paths = ours(directory)?;
    if paths.is_empty() {
        return Ok(());
    }
    for path in &paths {
        std::fs::remove_file(path)?;
    }
    tracing::info!(path = %directory.display(), files = paths.len(), "history that was kept is removed");
    // Unless somebody else has something there.
    let _ = std::fs::remove_dir(directory);
    Ok(())
}

/// A block's content is one piece of memory, of which a record that is kept for long keeps only its own part.
fn apart(mut record: Record) -> Record {
    record.key = Bytes::copy_from_slice(&record.key);
    if let Some(before) = &mut record.before {
        before.value = Bytes::copy_from_slice(&before.value);
    }
    record
}

/// What comes after a key, up to another (which belongs to it) or to the end of `within`.
pub(crate) fn between(within: &KeyRange, after: Option<&Bytes>, to: Option<&Bytes>) -> KeyRange {
    let start = match after {
        Some(after) => within.after(after).start,
        None => within.start.clone(),
    };
    let end = to.map_or_else(|| within.end.clone(), |to| KeyRange::key(to.clone()).end);
    KeyRange { start, end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Before, Who};

    const HOUR: u64 = 3600 * 1000;

    fn point(revision: Revision, time_ms: u64) -> Point {
        Point { revision, time_ms }
    }

    fn keep(hours: u64, bytes: u64) -> Keep {
        Keep {
            age: Duration::from_millis(hours * HOUR),
            bytes,
        }
    }

    /// Random enough that it doesn't compress.
    fn noise(seed: u64, length: usize) -> Bytes {
        let word = |n: usize| xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed).to_le_bytes();
        (0..length.div_ceil(8))
            .flat_map(word)
            .take(length)
            .collect::<Vec<u8>>()
            .into()
    }

    fn change(revision: Revision, time_ms: u64, key: &str, was: Option<&[u8]>) -> Record {
        Record {
            revision,
            time_ms,
            key: key.to_string().into(),
            before: was.map(|was| Before {
                value: was.to_vec().into(),
                mod_revision: revision - 1,
                ..Before::default()
            }),
            ..Record::default()
        }
    }

    fn note(log: &Log, record: Record) {
        let at = point(record.revision, record.time_ms);
        log.note(vec![record], at);
    }

    fn was(record: Option<Record>) -> Option<Bytes> {
        record.and_then(|record| record.before).map(|before| before.value)
    }

    #[test]
    fn a_value_is_what_the_first_later_change_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path(), keep(24, 1 << 30), point(10, 1000));
        note(&log, change(11, 2000, "/r/a/x", Some(b"one")));
        note(&log, change(12, 3000, "/r/a/y", None));
        let ana = |record: &mut Record| {
            record.who = Some(Who {
                user: "ana".into(),
                ..Who::default()
            });
        };
        log.write(ana, 3000).unwrap();
        note(&log, change(14, 5000, "/r/a/x", Some(b"two")));
        let look = |log: &Log| {
            assert_eq!(was(log.first_after(b"/r/a/x", 10).unwrap()).unwrap(), "one");
            assert_eq!(was(log.first_after(b"/r/a/x", 11).unwrap()).unwrap(), "two");
            assert_eq!(log.first_after(b"/r/a/x", 14).unwrap(), None);
            assert!(matches!(log.first_after(b"/r/a/x", 9), Err(Error::TooOld { since }) if since == point(10, 1000)));
            let (newest, more) = log.newest(b"/r/a/x", 1, 1 << 20).unwrap();
            assert_eq!((newest[0].revision, more), (14, true));
            let (all, more) = log.newest(b"/r/a/x", 9, 1 << 20).unwrap();
            assert_eq!((all.len(), more), (2, false));
            assert_eq!(all[1].who.as_ref().unwrap().user, "ana");
            let all = KeyRange::prefix("/r/a/");
            let (each, to) = log.first_of_each(b"/r/a/", &all, 10, GATHERED).unwrap();
            assert_eq!(to, None);
            let each: Vec<_> = each
                .into_values()
                .map(|record| (record.revision, was(Some(record))))
                .collect();
            assert_eq!(each, [(11, Some("one".into())), (12, None)]);
            let others = log.first_of_each(b"/r/b/", &KeyRange::prefix("/r/b/"), 10, GATHERED);
            assert!(others.unwrap().0.is_empty());
            // However little may be told, one is, and where the others begin.
            let (each, to) = log.first_of_each(b"/r/a/", &all, 10, 1).unwrap();
            assert_eq!(each.into_keys().collect::<Vec<_>>(), ["/r/a/x"]);
            assert_eq!(to.unwrap(), "/r/a/y");
            for (ms, revision) in [(1000, 10), (2000, 11), (2999, 11), (3000, 13), (5000, 14), (9000, 14)] {
                assert_eq!(log.at_time(ms).unwrap(), revision, "{ms}");
            }
            assert!(log.at_time(999).is_err());
        };
        look(&log);
        log.write(ana, 5000).unwrap();
        assert_eq!(log.pending(), 0);
        drop(log);
        look(&Log::open(directory.path(), keep(24, 1 << 30), point(20, 9000)));
    }

    #[test]
    fn what_is_too_old_or_too_much_goes_and_what_is_left_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path(), keep(16, 1 << 20), point(1, 0));
        let mut written = 0;
        for n in 0..400u64 {
            let (revision, now) = (n + 2, n * HOUR / 100);
            note(&log, change(revision, now, "/r/a/x", Some(&noise(n, 10_000))));
            log.write(|_| {}, now).unwrap();
            written = revision;
        }
        assert!(log.bytes() <= (1 << 20) + (64 << 10) + 20_000, "{}", log.bytes());
        let since = log.since();
        assert!(since.revision > 100, "{since}");
        for revision in since.revision..written {
            let seed = revision + 1 - 2;
            assert_eq!(
                was(log.first_after(b"/r/a/x", revision).unwrap()).unwrap(),
                noise(seed, 10_000)
            );
        }
        // Quiet hours: what remains grows too old.
        for hour in 5..40 {
            log.note(Vec::new(), point(written + hour, hour * HOUR));
            log.write(|_| {}, hour * HOUR).unwrap();
        }
        assert!(log.since().time_ms >= 22 * HOUR, "{}", log.since());
        assert_eq!(log.newest(b"/r/a/x", 9, 1 << 20).unwrap().0, []);
        let files = std::fs::read_dir(directory.path()).unwrap().count();
        assert!(files <= 18, "{files}");
    }

    #[test]
    fn an_end_that_was_torn_is_cut_and_another_stores_history_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let open = |revision| Log::open(directory.path(), keep(24, 1 << 30), point(revision, 9000));
        let log = open(1);
        for revision in 2..5 {
            note(&log, change(revision, 1000 * revision, "/r/a/x", Some(b"was")));
            log.write(|_| {}, 0).unwrap();
        }
        drop(log);
        let only = std::fs::read_dir(directory.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let file = std::fs::OpenOptions::new().write(true).open(&only).unwrap();
        file.set_len(file.metadata().unwrap().len() - 3).unwrap();
        let log = open(9);
        assert_eq!(log.synced().revision, 3, "the follower goes on there");
        note(&log, change(4, 9100, "/r/a/x", Some(b"again")));
        log.write(|_| {}, 0).unwrap();
        drop(log);
        assert_eq!(was(open(9).first_after(b"/r/a/x", 3).unwrap()).unwrap(), "again");
        // The store was restored from an earlier day: what was written here never happened.
        let log = open(2);
        assert_eq!((log.since().revision, log.synced().revision), (2, 2));
        assert!(log.newest(b"/r/a/x", 9, 1 << 20).unwrap().0.is_empty());
        std::fs::write(directory.path().join("somebody-elses"), "x").unwrap();
        open(1);
        assert!(directory.path().join("somebody-elses").exists());
        remove(directory.path()).unwrap();
        assert!(directory.path().join("somebody-elses").exists());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        remove(&directory.path().join("nowhere")).unwrap();
    }

    #[test]
    fn history_that_can_not_be_begun_is_begun_when_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history");
        std::fs::write(&path, "a file is in the way").unwrap();
        let log = Log::open(&path, keep(24, 1 << 30), point(10, 1000));
        note(&log, change(11, 2000, "/r/a/x", Some(b"one")));
        assert!(log.write(|_| {}, 2000).is_err());
        assert_eq!(was(log.first_after(b"/r/a/x", 10).unwrap()).unwrap(), "one");
        assert_eq!((log.since(), log.written()), (point(10, 1000), point(10, 1000)));
        std::fs::remove_file(&path).unwrap();
        log.write(|_| {}, 2000).unwrap();
        assert_eq!((log.pending(), log.written()), (0, point(11, 2000)));
        drop(log);
        let log = Log::open(&path, keep(24, 1 << 30), point(20, 9000));
        assert_eq!(was(log.first_after(b"/r/a/x", 10).unwrap()).unwrap(), "one");
    }
}
