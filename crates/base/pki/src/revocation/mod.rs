//! What no longer counts before it ends: a certificate by its serial number, a token by its id or its text, and whatever was issued
//! to a name before a moment.
//!
//! Records stand in one object of the cluster, ConfigMap [`NAMESPACE`]`/`[`NAME`], a record a key ([`Record`]). Who serves reads them
//! into a [`Table`] and asks it about each [`Credential`]; that allocates nothing. Knows neither the API nor connections.

mod record;
mod table;

pub use record::{Record, Subject, read_serial, serial_of};
pub use table::{Credential, Revoked, Table};

use crate::authority::BACKDATE;
use sha2::Digest;

pub const NAMESPACE: &str = "kube-system";
pub const NAME: &str = "keelson-revocations";
/// Records at once. One more is refused.
pub const MOST: usize = 2048;

/// When a certificate was issued. Authorities of clusters (upstream's too) let certificates begin five minutes early.
pub fn issued(not_before: i64) -> i64 {
    not_before.saturating_add_unsigned(BACKDATE.as_secs())
}

/// What tells a bearer token from others: a hash of what its signature is over, since a signature can be written in several ways;
/// of the whole where it isn't signed.
pub fn bearer(token: &str) -> [u8; 32] {
    let signed = token.rsplit_once('.').filter(|(signed, _)| signed.contains('.'));
    sha2::Sha256::digest(signed.map_or(token, |(signed, _)| signed)).into()
}
