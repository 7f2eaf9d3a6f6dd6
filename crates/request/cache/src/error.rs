//! Why a read or a watch couldn't be served. The registry makes statuses of them.

use keelson_api::ApiError;
use keelson_store::Revision;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// 410 Expired.
    #[error("too old resource version: {asked} ({oldest})")]
    TooOld { asked: Revision, oldest: Revision },
    /// 410 Expired, for a list: the revision has been compacted away.
    #[error("the provided resource version {asked} has been compacted away (oldest kept: {oldest})")]
    Compacted { asked: Revision, oldest: Revision },
    /// 504 Timeout with cause ResourceVersionTooLarge, retry after 1 s.
    #[error("Too large resource version: {asked}, current: {current}")]
    TooLarge { asked: Revision, current: Revision },
    /// The watcher was cut: too many events waited for it. 410 Expired, or just end the stream.
    #[error("the watcher was too slow: more than {bound} events waited for it")]
    Slow { bound: usize },
    /// The watch ends because the cache lost track and started anew. 410 Expired.
    #[error("the watch cache was started anew at revision {revision}")]
    Restarted { revision: Revision },
    /// The cache was [closed](crate::Cache::close): its resource is gone, or is another now. A watch just ends; who comes
    /// later tries again.
    #[error("storage is (re)initializing")]
    Ended,
    /// 429 TooManyRequests, retry after 1 s: the cache is (re-)reading the store.
    #[error("storage is (re)initializing")]
    NotReady,
    #[error(transparent)]
    Store(#[from] keelson_store::Error),
    #[error(transparent)]
    Codec(#[from] ApiError),
}

impl Error {
    /// What the API answers with 410.
    pub fn is_expired(&self) -> bool {
        matches!(
            self,
            Error::TooOld { .. } | Error::Compacted { .. } | Error::Slow { .. } | Error::Restarted { .. }
        ) || matches!(self, Error::Store(e) if e.is_compacted())
    }
}
