//! How many tokens may wait at once for somebody else's word on them. Nobody has proved anything by then, so strangers fill
//! this room as they like.
//!
//! A token of up to 8 KiB takes one of 1,024 places, a longer one as many as it is long: together at most 8 MiB of tokens,
//! of which each is held a few times over. At the bound a token is refused at once, like any other that couldn't be checked:
//! 401, and nothing is remembered. Who is known already, or to this server alone, never waits here.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Tokens that wait at once at most.
pub const PLACES: usize = 1024;
/// Bytes of a token that one place is for.
const PLACE: usize = 8 << 10;
/// Bytes of a token at most. Those that groups fill have some dozens of KiB.
pub const LONGEST: usize = 64 << 10;

#[derive(Clone)]
pub struct Waiting(Arc<Semaphore>);

impl Default for Waiting {
    fn default() -> Self {
        Waiting(Arc::new(Semaphore::new(PLACES)))
    }
}

impl Waiting {
    /// A place, held for as long as the token waits. `length`: of the token, in bytes.
    pub fn enter(&self, length: usize) -> Result<OwnedSemaphorePermit, String> {
        if length > LONGEST {
            return Err(format!("the token has more than {LONGEST} bytes"));
        }
        // At most eight.
        let places = length.div_ceil(PLACE).max(1) as u32;
        let entered = self.0.clone().try_acquire_many_owned(places);
        entered.map_err(|_| "too many tokens are being checked".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_tokens_take_more_places() {
        let waiting = Waiting::default();
        let long: Vec<_> = (0..PLACES / 8).map(|_| waiting.enter(LONGEST).unwrap()).collect();
        assert!(waiting.enter(1).is_err());
        drop(long);
        let short: Vec<_> = (0..PLACES).map(|_| waiting.enter(PLACE).unwrap()).collect();
        assert!(waiting.enter(0).is_err());
        drop(short);
        assert!(waiting.enter(LONGEST + 1).unwrap_err().contains("65536"));
    }
}
