//! Every change of a kind of objects, as watchers of the API saw it.
//!
//! What must never happen, not even for a moment, is not found by looking now and then: here is each state there was.

use jiff::Timestamp;
use keelson_client::{Change, Informer, InformerOptions, Kind, ObjectKey, Rest};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A change, and when it was seen.
#[derive(Clone, Debug)]
pub struct Moment<K> {
    pub at: Timestamp,
    pub change: Change<K>,
}

impl<K: Kind> Moment<K> {
    /// The store's revision of the change. It orders changes of different kinds too, which may be seen at the same time.
    pub fn revision(&self) -> u64 {
        let version = self.change.object().meta().resource_version.as_deref();
        version
            .and_then(|v| v.parse().ok())
            .expect("an object from the API has a revision")
    }
}

/// Goes on recording until the cluster ends. What it has so far, [`History::record`] says.
pub struct History<K: Kind> {
    informer: Informer<K>,
    moments: Arc<Mutex<Vec<Moment<K>>>>,
}

impl<K: Kind> History<K> {
    /// Begins with what there is: all that is already there counts as added now.
    pub(crate) async fn start(rest: &Rest, namespace: &str, stop: &CancellationToken) -> Self {
        let options = InformerOptions {
            namespace: namespace.to_owned(),
            ..InformerOptions::default()
        };
        let informer = Informer::<K>::start(rest, options, stop);
        let moments: Arc<Mutex<Vec<Moment<K>>>> = Arc::default();
        let record = moments.clone();
        informer.on_change(move |change| {
            record.lock().push(Moment {
                at: keelson_clock::now(),
                change: change.clone(),
            });
        });
        informer.synced().await;
        History { informer, moments }
    }

    /// All that happened until now. Watchers are told after the answer to a write, so first everybody who has something to
    /// do does it: a moment of virtual time passes.
    pub async fn record(&self) -> Record<K> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Record {
            moments: self.moments.lock().clone(),
            now: self.informer.store().list(),
        }
    }
}

/// What happened, in order.
pub struct Record<K> {
    pub moments: Vec<Moment<K>>,
    now: Vec<Arc<K>>,
}

impl<K: Kind> Record<K> {
    /// What there is now, by name.
    pub fn now(&self) -> BTreeMap<ObjectKey, Arc<K>> {
        self.now.iter().map(|o| (o.key(), o.clone())).collect()
    }

    /// Goes through all states there were, in order: those objects that existed, and since when they looked like that.
    pub fn replay(&self, mut each: impl FnMut(Timestamp, &BTreeMap<ObjectKey, Arc<K>>)) {
        let mut state = BTreeMap::new();
        for moment in &self.moments {
            let object = moment.change.object().clone();
            match &moment.change {
                Change::Deleted(_) => state.remove(&object.key()),
                _ => state.insert(object.key(), object),
            };
            each(moment.at, &state);
        }
    }

    /// When objects came, in order.
    pub fn added(&self) -> Vec<(Timestamp, Arc<K>)> {
        self.which(|change| matches!(change, Change::Added(_)))
    }

    /// When objects went, in order.
    pub fn deleted(&self) -> Vec<(Timestamp, Arc<K>)> {
        self.which(|change| matches!(change, Change::Deleted(_)))
    }

    /// The revision at which an object was deleted.
    pub fn deleted_at(&self, name: &str) -> Option<u64> {
        let is_it = |m: &&Moment<K>| matches!(m.change, Change::Deleted(_)) && m.change.object().key().name == name;
        self.moments.iter().find(is_it).map(Moment::revision)
    }

    fn which(&self, is_so: impl Fn(&Change<K>) -> bool) -> Vec<(Timestamp, Arc<K>)> {
        let of_those = self.moments.iter().filter(|m| is_so(&m.change));
        of_those.map(|m| (m.at, m.change.object().clone())).collect()
    }
}
