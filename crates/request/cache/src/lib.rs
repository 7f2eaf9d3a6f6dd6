//! The watch cache: what every read and every watch of one resource is served from.
//!
//! One [`Cache`] holds the present of one resource as a persistent ordered map, and its recent past as a ring of events.
//! One task feeds it from a watch on the store. Reads take a snapshot (two pointers, no copy) and hold no lock while they go
//! through it. Watches get what they missed from the ring, or the present first, and then events as they happen, through one
//! bounded queue each; a watcher that doesn't take them is cut ([`Error::Slow`]), nobody waits for it.
//!
//! It holds bytes, never values: an [`Entry`] is what the store has, the few strings that selectors look at, and, as long
//! as they are in demand, the bytes of each content type, encoded once. What the bytes mean it asks a [`Codec`].
//!
//! It doesn't know kinds, verbs, HTTP, or how a selector is written: a selector comes as a [`Predicate`].
//!
//! Invariants: the cache's revision says that all of the resource's events up to it are applied; events reach each
//! watcher in order, exactly once; a read that has to be consistent waits until the cache has reached the store's revision.
//!
//! # How the API's options map
//!
//! | get, list                                    | [`At`]                        |
//! |----------------------------------------------|-------------------------------|
//! | `resourceVersion` unset                      | [`At::Consistent`]            |
//! | `0`                                          | [`At::Any`] (no limit applies)|
//! | `N`, match unset (no limit) or NotOlderThan  | [`At::NotOlderThan`]          |
//! | `N`, match Exact, or `N` with limit          | [`At::Exact`]                 |
//! | continue token of revision N                 | [`At::Exact`] and `after`     |
//! | continue token without revision              | [`At::Consistent`] and `after`|
//!
//! | watch                                        | [`Start`]                                     |
//! |----------------------------------------------|-----------------------------------------------|
//! | `resourceVersion` unset or `0`               | `State(At::Any)`                              |
//! | `N`                                          | `After(N)`                                    |
//! | sendInitialEvents, RV unset                  | `State(At::Consistent)`, `end_bookmark`       |
//! | sendInitialEvents, `0` / `N`                 | `State(At::Any / NotOlderThan(N))`, `end_bookmark` |
//! | sendInitialEvents=false, RV `0` or unset     | `Now(At::Any / Consistent)`                   |

mod cache;
mod consistency;
mod entry;
mod error;
mod feed;
mod forms;
mod labels;
mod past;
mod queue;
mod ring;
mod select;
mod snapshot;
mod state;
mod watch;
mod watchers;

pub use cache::{At, Cache, Config, ListPage, ListQuery};
pub use consistency::Consistency;
pub use entry::{Attributes, Entry};
pub use error::{Error, Result};
pub use forms::{Form, Forms};
pub use select::{IndexKey, IndexValue, Predicate, Scope, Selection};
pub use watch::{Start, Watch, WatchEvent, WatchOptions};

use async_trait::async_trait;
use bytes::Bytes;
use keelson_api::ApiError;
use keelson_store::Revision;

/// What a resource's bytes mean. The registry has one for each resource.
#[async_trait]
pub trait Codec: Send + Sync + 'static {
    /// What selectors and indexes look at in a stored value. Called once for each change.
    fn attributes(&self, key: &[u8], value: &[u8]) -> Result<Attributes, ApiError>;

    /// The same for many values, from whoever has to ask somebody first. An error says that it can't be told now: the
    /// cache stays where it is, and asks again.
    async fn attributes_of(&self, values: &[(&[u8], &[u8])]) -> Result<Vec<Result<Attributes, ApiError>>, ApiError> {
        Ok(values.iter().map(|(key, value)| self.attributes(key, value)).collect())
    }

    /// The bytes of an object for clients, in the content type, version and shape that `form` stands for. They say that
    /// the object is of revision `revision`.
    fn encode(&self, value: &[u8], revision: Revision, form: Form) -> Result<Bytes, ApiError>;

    /// The same, appended. After an error `out` is as it was.
    fn write(&self, value: &[u8], revision: Revision, form: Form, out: &mut Vec<u8>) -> Result<(), ApiError> {
        out.extend_from_slice(&self.encode(value, revision, form)?);
        Ok(())
    }

    /// How many bytes that makes.
    fn length(&self, value: &[u8], revision: Revision, form: Form) -> Result<usize, ApiError> {
        Ok(self.encode(value, revision, form)?.len())
    }

    /// Whether a form is worth memory: not if it is as good as what is stored.
    fn keeps(&self, _form: Form) -> bool {
        true
    }

    /// The names of [`Attributes::fields`], in their order.
    fn fields(&self) -> &[&'static str] {
        &[]
    }

    /// By what to find entries, and to which watchers to offer an event, without trying all.
    fn indexes(&self) -> Vec<IndexKey> {
        Vec::new()
    }
}
