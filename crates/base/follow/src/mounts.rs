//! The kernel's notice that something was mounted or taken away: of a directory that is mounted over, nothing else tells.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(crate) struct Mounts(AsyncFd<OwnedFd>);

// `AsyncFd`'s makers are deprecated for types whose descriptor may change; an owned one's does not, and what replaces them is `unsafe`.
#[allow(deprecated)]
impl Mounts {
    pub(crate) fn open() -> io::Result<Mounts> {
        let file = File::open("/proc/self/mountinfo")?;
        AsyncFd::with_interest(OwnedFd::from(file), Interest::PRIORITY).map(Mounts)
    }

    pub(crate) async fn changed(&self) {
        match self.0.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        }
    }
}
