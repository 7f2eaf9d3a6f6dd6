//! What became of an object, told: which fields changed, when and by whom ([`rows`]), how it differs between two moments ([`unified`]), and
//! who wrote each field ([`blame`]).
//!
//! Pure: answers of the server (`/keelson/history/…`, [`History`]) and objects come in, plain data and texts go out. What is secret is told to
//! have changed, and not to what.

mod blame;
mod difference;
mod fields;
mod told;

pub use blame::{Blamed, blame};
pub use difference::{shown, unified, yaml};
pub use fields::changed;
pub use told::{Change, History, Row, Since, State, rows};
