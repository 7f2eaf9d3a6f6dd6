//! Encoded bytes, kept while they are in demand: encode once, send many.
//!
//! All caches share one budget. Over it, the forms encoded longest ago are given up; they are encoded again when asked for.

use crate::{Codec, Entry};
use bytes::Bytes;
use keelson_api::ApiError;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

/// A content type, version and shape of an object's bytes. What a number stands for is the registry's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Form(pub u32);

/// The budget for encoded bytes.
pub struct Forms {
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    order: VecDeque<(Weak<Entry>, usize)>,
    bytes: usize,
}

impl Forms {
    pub const DEFAULT_LIMIT: usize = 8 << 20;

    /// `limit`: how many bytes to keep.
    pub fn new(limit: usize) -> Arc<Forms> {
        Arc::new(Forms {
            limit,
            kept: Mutex::default(),
        })
    }

    /// The entry's bytes in `form`. Whoever asks while they are being encoded waits for them.
    pub fn encoded(&self, entry: &Arc<Entry>, form: Form, codec: &dyn Codec) -> Result<Bytes, ApiError> {
        if let Some(error) = entry.unreadable() {
            return Err(error.clone());
        }
        let mut forms = entry.forms.lock();
        if let Some((_, bytes)) = forms.iter().find(|(f, _)| *f == form) {
            return Ok(bytes.clone());
        }
        let bytes = codec.encode(entry.value(), entry.revision(), form)?;
        forms.push((form, bytes.clone()));
        drop(forms);
        self.keep(entry, bytes.len());
        Ok(bytes)
    }

    pub fn bytes(&self) -> usize {
        self.kept.lock().bytes
    }

    fn keep(&self, entry: &Arc<Entry>, bytes: usize) {
        let mut kept = self.kept.lock();
        kept.bytes += bytes;
        kept.order.push_back((Arc::downgrade(entry), bytes));
        let mut given_up = Vec::new();
        while kept.bytes > self.limit {
            let Some((entry, bytes)) = kept.order.pop_front() else {
                break;
            };
            kept.bytes -= bytes;
            given_up.push(entry);
        }
        drop(kept);
        for entry in given_up.iter().filter_map(Weak::upgrade) {
            let forms = std::mem::take(&mut *entry.forms.lock());
            drop(forms);
        }
    }
}

impl Default for Forms {
    fn default() -> Self {
        Forms {
            limit: Self::DEFAULT_LIMIT,
            kept: Mutex::default(),
        }
    }
}
