//! Every change of a kind of objects, as watchers of the API saw it.
//!
//! What must never happen, not even for a moment, is not found by looking now and then: here is each state there was.

use jiff::Timestamp;
use keelson_client::{Change, Informer, InformerOptions, Kind, ObjectKey, Rest};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A change, and when it was seen.
#[derive(Clone, Debug)]
pub struct Moment<K> {
    pub at: Timestamp,
    pub change: Change<K>,
}

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

    pub fn moments(&self) -> Vec<Moment<K>> {
        self.moments.lock().clone()
    }

    /// What there is now, by name.
    pub fn now(&self) -> BTreeMap<ObjectKey, Arc<K>> {
        let objects = self.informer.store().list();
        objects.into_iter().map(|o| (o.key(), o)).collect()
    }

    /// Goes through all states there were, in order: those objects that existed, and since when they looked like that.
    pub fn replay(&self, mut each: impl FnMut(Timestamp, &BTreeMap<ObjectKey, Arc<K>>)) {
        let mut state = BTreeMap::new();
        for moment in self.moments() {
            let object = moment.change.object().clone();
            match moment.change {
                Change::Deleted(_) => state.remove(&object.key()),
                _ => state.insert(object.key(), object),
            };
            each(moment.at, &state);
        }
    }

    /// When objects came, in order.
    pub fn added(&self) -> Vec<(Timestamp, Arc<K>)> {
        let added = |m: Moment<K>| match m.change {
            Change::Added(object) => Some((m.at, object)),
            _ => None,
        };
        self.moments().into_iter().filter_map(added).collect()
    }

    /// When objects went, in order.
    pub fn deleted(&self) -> Vec<(Timestamp, Arc<K>)> {
        let deleted = |m: Moment<K>| match m.change {
            Change::Deleted(object) => Some((m.at, object)),
            _ => None,
        };
        self.moments().into_iter().filter_map(deleted).collect()
    }
}
