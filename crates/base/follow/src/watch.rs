//! Notices of the kernel, as one future.

use crate::mounts::Mounts;
use crate::places::{Meaning, Places, Target};
use nix::errno::Errno;
use nix::sys::inotify::{InitFlags, Inotify};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// Tells that something may be otherwise than it was. From when it is made nothing is missed; what happens in one go is told once.
pub struct Watch {
    kernel: AsyncFd<Kernel>,
    mounts: Option<Mounts>,
    places: Arc<Mutex<Places>>,
    /// How long nothing is to happen before it is told, and how long that is waited for.
    quiet: Option<(Duration, Duration)>,
    /// Something has happened that isn't told yet.
    owed: bool,
    /// What is watched may not be what is there.
    stale: bool,
}

#[derive(Clone)]
struct Kernel(Arc<Inotify>);

impl AsRawFd for Kernel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

// As in `mounts`: the descriptor is this one's own.
#[allow(deprecated)]
fn registered(kernel: Kernel) -> io::Result<AsyncFd<Kernel>> {
    AsyncFd::new(kernel)
}

impl Watch {
    /// Must be called within a tokio runtime. Fails where the kernel has nothing left to watch with.
    pub fn new(targets: Vec<Target>) -> io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let has_trees = targets.iter().any(|t| matches!(t, Target::Tree(_)));
        let mut places = Places::new(targets);
        places.arm(&inotify)?;
        places.are_others();
        Ok(Watch {
            kernel: registered(Kernel(Arc::new(inotify)))?,
            mounts: has_trees.then(Mounts::open).and_then(Result::ok),
            places: Arc::new(Mutex::new(places)),
            quiet: None,
            owed: false,
            stale: false,
        })
    }

    pub fn files(files: impl IntoIterator<Item = PathBuf>) -> io::Result<Watch> {
        Watch::new(files.into_iter().map(Target::File).collect())
    }

    /// Tells when it has been quiet for so long, or at last: whoever writes in several goes may do so.
    pub fn settled(mut self, quiet: Duration, at_last: Duration) -> Watch {
        self.quiet = Some((quiet, at_last));
        self
    }

    /// The ways may have become others without a notice.
    pub(crate) fn go_again(&mut self) {
        self.stale = true;
    }

    /// Comes back when something has happened since it last did. May be given up and asked again. An error is that not everything can be
    /// watched (any more); asked again, it tries to.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.arm().await?;
        while !self.owed {
            self.noticed().await?;
            self.arm().await?;
        }
        if let Some((quiet, at_last)) = self.quiet {
            let last = Instant::now() + at_last;
            while Instant::now() < last {
                let until = (Instant::now() + quiet).min(last);
                match tokio::time::timeout_at(until, self.noticed()).await {
                    Ok(noticed) => noticed?,
                    Err(_) => break,
                }
            }
            self.arm().await?;
        }
        self.owed = false;
        Ok(())
    }

    /// Waits for a notice that concerns a target.
    async fn noticed(&mut self) -> io::Result<()> {
        loop {
            let mounted = async {
                match &self.mounts {
                    Some(mounts) => mounts.changed().await,
                    None => std::future::pending().await,
                }
            };
            let mut ready = tokio::select! {
                ready = self.kernel.readable() => ready?,
                // Whether it is otherwise than before is seen when it is gone there again.
                () = mounted => {
                    self.stale = true;
                    return Ok(());
                }
            };
            match ready.get_inner().0.read_events() {
                Ok(events) => {
                    let places = self.places.lock();
                    let most = events.iter().map(|e| places.meaning(e)).max();
                    self.owed |= most > Some(Meaning::Nothing);
                    self.stale |= most == Some(Meaning::Way);
                    if most > Some(Meaning::Nothing) {
                        return Ok(());
                    }
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Goes the ways again, which may take as long as a disk does.
    async fn arm(&mut self) -> io::Result<()> {
        if !self.stale {
            return Ok(());
        }
        let (places, kernel) = (self.places.clone(), self.kernel.get_ref().clone());
        let armed = tokio::task::spawn_blocking(move || places.lock().arm(&kernel.0));
        armed.await.map_err(io::Error::other)??;
        // What one has found that was given up counts, too.
        self.owed |= self.places.lock().are_others();
        self.stale = false;
        Ok(())
    }
}
