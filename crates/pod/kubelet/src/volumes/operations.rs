//! Work on volumes that goes on whoever waits for it: a pod that is deleted while a driver mounts its volume doesn't undo
//! half a mount. One volume of a pod has at most one such work at a time, and each pod's are its own: one that hangs delays
//! nobody else's.

use super::kind::{Failure, Mounted};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Pod uid and the volume's name in the pod.
type Key = (String, String);
type Outcome = Result<Mounted, Failure>;

#[derive(Clone)]
pub struct Operations {
    running: Arc<Mutex<HashMap<Key, Shared<BoxFuture<'static, Outcome>>>>>,
    /// By pod: that it is leaving.
    leaving: Arc<Mutex<HashMap<String, CancellationToken>>>,
    stop: CancellationToken,
}

impl Operations {
    pub fn new(stop: CancellationToken) -> Self {
        Operations {
            running: Arc::default(),
            leaving: Arc::default(),
            stop,
        }
    }

    /// Waits for the work that goes on under this key, or for `work`, which is begun if there is none.
    pub async fn join(&self, uid: &str, volume: &str, work: impl FnOnce() -> BoxFuture<'static, Outcome>) -> Outcome {
        let key = (uid.to_owned(), volume.to_owned());
        let shared = {
            let mut running = self.running.lock();
            match running.get(&key) {
                Some(shared) => shared.clone(),
                None => {
                    let shared = self.begin(key.clone(), work());
                    running.insert(key, shared.clone());
                    shared
                }
            }
        };
        shared.await
    }

    fn begin(&self, key: Key, work: BoxFuture<'static, Outcome>) -> Shared<BoxFuture<'static, Outcome>> {
        let (stop, running) = (self.stop.clone(), self.running.clone());
        let task = tokio::spawn(async move {
            let done = stop.run_until_cancelled(work).await;
            running.lock().remove(&key);
            done.unwrap_or_else(|| Err(Failure::set_up("the kubelet is stopping")))
        });
        let work = async move { task.await.unwrap_or_else(|e| Err(Failure::set_up(e.to_string()))) };
        work.boxed().shared()
    }

    /// Fires when the pod leaves: who only waits for others then needs to wait no longer.
    pub fn leaving(&self, uid: &str) -> CancellationToken {
        self.leaving.lock().entry(uid.to_owned()).or_default().clone()
    }

    /// The pod has left: nothing goes on for it any more.
    pub fn forget(&self, uid: &str) {
        self.leaving.lock().remove(uid);
    }

    /// The pod is leaving. Waits until nothing goes on for it.
    pub async fn settled(&self, uid: &str) {
        self.leaving(uid).cancel();
        let of_pod: Vec<_> = {
            let running = self.running.lock();
            let of_pod = running.iter().filter(|(k, _)| k.0 == uid);
            of_pod.map(|(_, work)| work.clone()).collect()
        };
        futures::future::join_all(of_pod).await;
    }
}
