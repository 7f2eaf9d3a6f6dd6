//! Written forms of objects, kept while they are in demand: encode once, send many.
//!
//! A form is kept when it goes to many at once (an event that several watchers get), or when it is asked for again within
//! [`KEPT`]: what is read once costs no memory. What nobody has asked for so long is given up.
//!
//! All caches share one budget. Over it, events push out what was kept first; reads keep nothing more, so that a scan of more
//! than fits doesn't push out what it will ask for next.

use crate::{Codec, Entry};
use bytes::Bytes;
use keelson_api::ApiError;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// A content type, version and shape of an object's bytes. What a number stands for is the registry's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Form(pub u32);

/// How long a form is kept that isn't asked for.
const KEPT: Duration = Duration::from_secs(30);

/// The budget for kept forms.
pub struct Forms {
    limit: usize,
    began: Instant,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Oldest first.
    order: VecDeque<(Weak<Entry>, usize)>,
    bytes: usize,
    /// When it was last looked for forms whose objects are gone, in seconds.
    swept: u32,
    /// Somebody will look after what is old.
    tended: bool,
}

impl Kept {
    /// What was written of objects that have changed or gone since is gone with them, and isn't counted any longer. Once a second at most: all are looked at.
    fn sweep(&mut self, now: u32) {
        if std::mem::replace(&mut self.swept, now) == now {
            return;
        }
        let Kept { order, bytes, .. } = self;
        order.retain(|(entry, size)| {
            let stays = entry.strong_count() > 0;
            *bytes -= if stays { 0 } else { *size };
            stays
        });
    }
}

/// An entry's own part.
#[derive(Debug, Default)]
pub(crate) struct Written {
    forms: Mutex<Vec<(Form, Bytes)>>,
    /// When one of them was asked for, in seconds; 0: never.
    asked: AtomicU32,
}

impl Forms {
    pub const DEFAULT_LIMIT: usize = 64 << 20;

    /// `limit`: how many bytes to keep.
    pub fn new(limit: usize) -> Arc<Forms> {
        Arc::new(Forms {
            limit,
            began: Instant::now(),
            kept: Mutex::default(),
        })
    }

    /// The entry's bytes in `form`, for many. Whoever asks while they are being encoded waits for them.
    pub fn encoded(self: &Arc<Self>, entry: &Arc<Entry>, form: Form, codec: &dyn Codec) -> Result<Bytes, ApiError> {
        readable(entry)?;
        if !codec.keeps(form) {
            return codec.encode(entry.value(), entry.revision(), form);
        }
        entry.written.asked.store(self.now(), Ordering::Relaxed);
        let mut forms = entry.written.forms.lock();
        if let Some(bytes) = find(&forms, form) {
            return Ok(bytes.clone());
        }
        let bytes = codec.encode(entry.value(), entry.revision(), form)?;
        forms.push((form, bytes.clone()));
        drop(forms);
        self.keep(entry, bytes.len(), true);
        Ok(bytes)
    }

    /// Appends the entry's bytes in `form`, for one reader. After an error `out` is as it was.
    pub fn append(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        form: Form,
        codec: &dyn Codec,
        out: &mut Vec<u8>,
    ) -> Result<(), ApiError> {
        readable(entry)?;
        if !codec.keeps(form) {
            return codec.write(entry.value(), entry.revision(), form, out);
        }
        let now = self.now();
        let asked = entry.written.asked.swap(now, Ordering::Relaxed);
        let mut forms = entry.written.forms.lock();
        if let Some(bytes) = find(&forms, form) {
            out.extend_from_slice(bytes);
            return Ok(());
        }
        let start = out.len();
        codec.write(entry.value(), entry.revision(), form, out)?;
        let again = asked != 0 && u64::from(now - asked.min(now)) <= KEPT.as_secs();
        let written = &out[start..];
        if again && self.has_room(written.len()) {
            forms.push((form, Bytes::copy_from_slice(written)));
            drop(forms);
            self.keep(entry, written.len(), false);
        }
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        self.kept.lock().bytes
    }

    /// Seconds, from 1 on.
    fn now(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_secs() + 1).unwrap_or(u32::MAX)
    }

    fn has_room(&self, bytes: usize) -> bool {
        let mut kept = self.kept.lock();
        if kept.bytes + bytes > self.limit {
            kept.sweep(self.now());
        }
        kept.bytes + bytes <= self.limit
    }

    fn keep(self: &Arc<Self>, entry: &Arc<Entry>, bytes: usize, push_out: bool) {
        let mut given_up = Vec::new();
        let mut kept = self.kept.lock();
        kept.bytes += bytes;
        kept.order.push_back((Arc::downgrade(entry), bytes));
        while push_out && kept.bytes > self.limit {
            let Some((entry, bytes)) = kept.order.pop_front() else {
                break;
            };
            kept.bytes -= bytes;
            given_up.push(entry);
        }
        let begins = !std::mem::replace(&mut kept.tended, true);
        drop(kept);
        given_up
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|entry| forget(&entry));
        if begins {
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn(tend(Arc::downgrade(self)))),
                Err(_) => self.kept.lock().tended = false,
            }
        }
    }

    /// Gives up what nobody has asked for in a while; says whether anything is left.
    fn give_up_old(&self) -> bool {
        let oldest = self.now().saturating_sub(KEPT.as_secs() as u32);
        let mut given_up = Vec::new();
        let mut kept = self.kept.lock();
        let Kept { order, bytes, .. } = &mut *kept;
        order.retain(|(entry, size)| {
            let entry = entry.upgrade();
            let stays = entry
                .as_ref()
                .is_some_and(|entry| entry.written.asked.load(Ordering::Relaxed) >= oldest);
            if !stays {
                *bytes -= size;
                given_up.extend(entry);
            }
            stays
        });
        order.shrink_to_fit();
        kept.tended = !kept.order.is_empty();
        let left = kept.tended;
        drop(kept);
        given_up.iter().for_each(|entry| forget(entry));
        left
    }
}

/// As long as anything is kept.
async fn tend(forms: Weak<Forms>) {
    loop {
        tokio::time::sleep(KEPT).await;
        if !forms.upgrade().is_some_and(|forms| forms.give_up_old()) {
            return;
        }
    }
}

fn readable(entry: &Entry) -> Result<(), ApiError> {
    entry.unreadable().map_or(Ok(()), |error| Err(error.clone()))
}

fn find(forms: &[(Form, Bytes)], form: Form) -> Option<&Bytes> {
    forms.iter().find(|(f, _)| *f == form).map(|(_, bytes)| bytes)
}

/// One of its forms is given up, and all others with it: they are counted apart, and go when their turn comes.
fn forget(entry: &Entry) {
    let forms = std::mem::take(&mut *entry.written.forms.lock());
    drop(forms);
}

impl Default for Forms {
    fn default() -> Self {
        Forms {
            limit: Self::DEFAULT_LIMIT,
            began: Instant::now(),
            kept: Mutex::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Attributes;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Codec for Counted {
        fn attributes(&self, _: &[u8], _: &[u8]) -> Result<Attributes, ApiError> {
            Ok(Attributes::default())
        }
        fn encode(&self, value: &[u8], _: u64, _: Form) -> Result<Bytes, ApiError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::copy_from_slice(value))
        }
    }

    impl Counted {
        fn count(&self) -> usize {
            self.0.swap(0, Ordering::Relaxed)
        }
    }

    fn entry(name: usize) -> Arc<Entry> {
        let (key, value) = (format!("/registry/pods/a/{name}"), vec![b'x'; 100]);
        Arc::new(Entry::new(key.into(), value.into(), 1, Ok(Attributes::default()), 15))
    }

    fn read(forms: &Arc<Forms>, entries: &[Arc<Entry>], codec: &Counted) {
        let mut out = Vec::new();
        for entry in entries {
            forms.append(entry, Form(1), codec, &mut out).unwrap();
        }
        assert_eq!(out.len(), 100 * entries.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_again_is_kept_until_nobody_asks() {
        let (forms, codec) = (Forms::new(1 << 20), Counted::default());
        let entries: Vec<_> = (0..10).map(entry).collect();
        read(&forms, &entries, &codec);
        assert_eq!((codec.count(), forms.bytes()), (10, 0));
        read(&forms, &entries, &codec);
        assert_eq!((codec.count(), forms.bytes()), (10, 1000));
        read(&forms, &entries, &codec);
        assert_eq!(codec.count(), 0);
        for _ in 0..5 {
            tokio::time::sleep(KEPT / 2).await;
            read(&forms, &entries[..2], &codec);
        }
        assert_eq!((codec.count(), forms.bytes()), (0, 200));
        tokio::time::sleep(KEPT * 3).await;
        assert_eq!(forms.bytes(), 0);
        // Asked for after so long, it is new again.
        read(&forms, &entries, &codec);
        assert_eq!((codec.count(), forms.bytes()), (10, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_leaves_its_room_to_what_has_come_for_it() {
        let (forms, codec) = (Forms::new(1000), Counted::default());
        for _ in 0..5 {
            let entries: Vec<_> = (0..10).map(entry).collect();
            read(&forms, &entries, &codec);
            read(&forms, &entries, &codec);
            codec.count();
            read(&forms, &entries, &codec);
            assert_eq!((codec.count(), forms.bytes()), (0, 1000));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_of_more_than_fits_finds_what_fits() {
        let (forms, codec) = (Forms::new(1000), Counted::default());
        let entries: Vec<_> = (0..40).map(entry).collect();
        read(&forms, &entries, &codec);
        read(&forms, &entries, &codec);
        codec.count();
        read(&forms, &entries, &codec);
        assert_eq!((codec.count(), forms.bytes()), (30, 1000));
        // An event goes to many: it is kept at once, and the budget holds.
        let new = entry(99);
        forms.encoded(&new, Form(1), &codec).unwrap();
        forms.encoded(&new, Form(1), &codec).unwrap();
        assert_eq!((codec.count(), forms.bytes()), (1, 1000));
    }
}
