//! A watch, as its holder sees it.

use crate::{KeyValue, Result, Revision};
use async_trait::async_trait;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change. Its revision is `kv.mod_revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// What stands there now. After a deletion: the key, the deletion's revision, and no value.
    pub kv: KeyValue,
    /// What stood there before; `None` if the key is new.
    pub prev: Option<KeyValue>,
}

impl Event {
    pub fn revision(&self) -> Revision {
        self.kv.mod_revision
    }
}

/// Changes in revision order. Without events it is a progress report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchBatch {
    pub events: Vec<Event>,
    /// Every change of the range up to and including this revision has been delivered, with this batch.
    pub synced: Revision,
}

/// What an implementation gives to the holder of a watch.
#[async_trait]
pub trait WatchSource: Send + Sync {
    /// The next batch. After an error, and after `None` (the store was closed), the watch is over.
    /// Dropping the future before it is done loses nothing.
    async fn next(&mut self) -> Option<Result<WatchBatch>>;

    /// Asks for a batch, even an empty one, that tells how far the watch has come. It comes in order with the events.
    fn request_progress(&mut self);
}

/// A watch that somebody holds; dropping it ends it.
pub type WatchStream = Box<dyn WatchSource>;
