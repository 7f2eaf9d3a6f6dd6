//! What a store's keys were before, for longer than the store keeps its past.
//!
//! * A follower ([`History::run`]) watches the store and notes of each change what it *replaced*. So every version is written once, what never
//!   changes costs nothing, and a key's value at a moment is what the first later change replaced, or what stands in the store if there was none.
//! * Nothing waits for it: the store's writers publish as to any watcher. What it has noted waits in memory for a minute at most and is then
//!   appended, compressed, to files of its own ([`log`]), without a sync: after a crash the follower reads again what is missing from the store's
//!   own past, which is longer than that minute. If that past has been given up the history begins anew: it never has a gap.
//! * Bounds: bytes and age ([`Keep`]); the oldest file goes first. What waits in memory, and what a question gathers, is bounded too.
//! * Values are what stands in the store: what is sealed there is sealed here. This crate opens nothing, and knows bytes only: whose a key is, and
//!   who may read it, its reader decides.
//! * Who wrote what is noted by whoever serves the write ([`Noting`]); of writes by other servers nobody here knows.
//!
//! What clients of the store see of its past (its compactions) is untouched.

mod at;
mod block;
mod error;
mod follow;
mod history;
pub mod log;
mod segment;
mod writers;

pub use at::At;
pub use block::{Before, Record, Who};
pub use error::{Error, Result};
pub use history::{Changes, History, Page, Settings};
pub use log::{Keep, Point};
pub use writers::{Noting, written_by};
