//! Bodies on their way in.
//!
//! Bound: what all bodies hold in memory, and what those of one user do. Beyond either the request that asks for more is
//! refused with 429; what it had is free at once. One body is bounded besides ([`MAX_REQUEST_BODY`]), and its time by the
//! request's deadline.

use super::{Body, MAX_REQUEST_BODY};
use bytes::Bytes;
use keelson_api::{ApiError, ApiResult, Reason, Str};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

const ALL: usize = 256 << 20;
const OF_ONE: usize = 64 << 20;

/// What bodies hold.
pub struct Intake {
    all: usize,
    of_one: usize,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    bytes: usize,
    by_user: HashMap<Str, usize>,
}

/// What one body holds; given back when dropped.
pub struct Taken {
    intake: Arc<Intake>,
    user: Str,
    bytes: usize,
}

impl Intake {
    pub fn new() -> Arc<Self> {
        Self::of(ALL, OF_ONE)
    }
    fn of(all: usize, of_one: usize) -> Arc<Self> {
        let used = Mutex::default();
        Arc::new(Intake { all, of_one, used })
    }

    /// Reads a user's body.
    pub async fn read(self: &Arc<Self>, user: &Str, body: Body) -> ApiResult<(Bytes, Taken)> {
        let mut taken = Taken {
            intake: self.clone(),
            user: user.clone(),
            bytes: 0,
        };
        let bytes = body.collect_noting(MAX_REQUEST_BODY, |more| taken.grow(more)).await?;
        Ok((bytes, taken))
    }
}

impl Taken {
    fn grow(&mut self, more: usize) -> ApiResult<()> {
        let mut used = self.intake.used.lock();
        let own = used.by_user.get(&self.user).copied().unwrap_or(0) + more;
        if used.bytes + more > self.intake.all || own > self.intake.of_one {
            let text = "Too many requests, please try again later.";
            return Err(ApiError::new(Reason::TooManyRequests, text).with_retry_after(1));
        }
        used.bytes += more;
        used.by_user.insert(self.user.clone(), own);
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut used = self.intake.used.lock();
        used.bytes -= self.bytes;
        if let Some(own) = used.by_user.get_mut(&self.user) {
            *own -= self.bytes;
            if *own == 0 {
                used.by_user.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bodies_are_bounded_together_and_for_each_user() {
        let intake = Intake::of(100, 60);
        let read = async |user: &'static str, n: usize| intake.read(&user.into(), vec![0; n].into()).await;
        let a = read("a", 40).await.unwrap();
        assert_eq!(read("a", 30).await.err().map(|e| e.code), Some(429));
        let b = read("b", 50).await.unwrap();
        assert_eq!(read("c", 20).await.err().map(|e| e.code), Some(429));
        drop(a);
        let c = read("c", 50).await.unwrap();
        drop((b, c));
        let used = intake.used.lock();
        assert_eq!((used.bytes, used.by_user.len()), (0, 0));
    }
}
