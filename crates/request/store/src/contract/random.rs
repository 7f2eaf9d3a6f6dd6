//! Random operations, compared with the simplest possible model.

use super::*;
use crate::{Event, EventKind, KeyValue, ListRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// From `KEELSON_SEED`, or new; printed, so that a failure can be repeated.
fn seeded() -> StdRng {
    let given = std::env::var("KEELSON_SEED").ok().and_then(|s| s.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| rand::rng().random());
    println!("KEELSON_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// The state at every revision, whole.
struct Model {
    states: Vec<BTreeMap<Bytes, KeyValue>>,
    events: Vec<Event>,
    compacted: Revision,
}

impl Model {
    fn revision(&self) -> Revision {
        self.states.len() as Revision
    }
    fn at(&self, revision: Revision) -> &BTreeMap<Bytes, KeyValue> {
        &self.states[revision as usize - 1]
    }
    fn now(&self) -> &BTreeMap<Bytes, KeyValue> {
        self.at(self.revision())
    }
    fn put(&mut self, key: Bytes, value: Bytes, expected: Expect) -> Outcome {
        let prev = self.now().get(&key).cloned();
        if !expected.holds(prev.as_ref().map(|kv| kv.mod_revision)) {
            return Outcome::Conflict {
                revision: self.revision(),
                current: prev,
            };
        }
        let revision = self.revision() + 1;
        let (create_revision, version) = prev
            .as_ref()
            .map_or((revision, 1), |p| (p.create_revision, p.version + 1));
        let kv = KeyValue {
            key: key.clone(),
            value,
            create_revision,
            mod_revision: revision,
            version,
            lease: 0,
        };
        let mut state = self.now().clone();
        state.insert(key, kv.clone());
        self.states.push(state);
        self.events.push(Event {
            kind: EventKind::Put,
            kv,
            prev: prev.clone(),
        });
        Outcome::Done { revision, prev }
    }
    fn delete(&mut self, key: Bytes, expected: Expect) -> Outcome {
        let prev = self.now().get(&key).cloned();
        if prev.is_none() || !expected.holds(prev.as_ref().map(|kv| kv.mod_revision)) {
            return Outcome::Conflict {
                revision: self.revision(),
                current: prev,
            };
        }
        let revision = self.revision() + 1;
        let mut state = self.now().clone();
        state.remove(&key);
        self.states.push(state);
        let kv = KeyValue {
            key,
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: revision,
            version: 0,
            lease: 0,
        };
        self.events.push(Event {
            kind: EventKind::Delete,
            kv,
            prev: prev.clone(),
        });
        Outcome::Done { revision, prev }
    }
}

fn random_key(rng: &mut StdRng) -> Bytes {
    bytes(&format!("/{}/{}", rng.random_range(0..3), rng.random_range(0..6)))
}

fn random_range(rng: &mut StdRng) -> KeyRange {
    match rng.random_range(0..3) {
        0 => all(),
        1 => KeyRange::prefix(format!("/{}/", rng.random_range(0..3))),
        _ => KeyRange::new(random_key(rng), random_key(rng)),
    }
}

fn random_expectation(rng: &mut StdRng, current: Option<Revision>) -> Expect {
    match rng.random_range(0..4) {
        0 => Expect::Any,
        1 => Expect::Absent,
        2 => Expect::ModRevision(rng.random_range(1..100)),
        _ => current.map_or(Expect::Absent, Expect::ModRevision),
    }
}

pub async fn random_operations_match_a_model(store: &dyn Store) {
    let mut rng = seeded();
    let mut model = Model {
        states: vec![BTreeMap::new()],
        events: Vec::new(),
        compacted: 1,
    };
    for _ in 0..400 {
        let key = random_key(&mut rng);
        let expected = random_expectation(&mut rng, model.now().get(&key).map(|kv| kv.mod_revision));
        match rng.random_range(0..100) {
            0..50 => {
                let value = bytes(&rng.random::<u32>().to_string());
                let outcome = store.put(key.clone(), value.clone(), expected, None).await.unwrap();
                assert_eq!(outcome, model.put(key, value, expected));
            }
            50..70 => {
                let outcome = store.delete(key.clone(), expected).await.unwrap();
                assert_eq!(outcome, model.delete(key, expected));
            }
            70..80 => check_get(store, &model, &mut rng).await,
            80..90 => check_list(store, &model, &mut rng).await,
            90..97 => check_watch(store, &model, &mut rng).await,
            _ if model.compacted < model.revision() => {
                model.compacted = rng.random_range(model.compacted + 1..=model.revision());
                store.compact(model.compacted).await.unwrap();
            }
            _ => {}
        }
    }
    check_watch(store, &model, &mut rng).await;
}

async fn check_get(store: &dyn Store, model: &Model, rng: &mut StdRng) {
    let (key, at) = (random_key(rng), rng.random_range(model.compacted..=model.revision()));
    let got = store.get(&key, Some(at)).await.unwrap();
    assert_eq!(
        (got.kv.as_ref(), got.revision),
        (model.at(at).get(&key), model.revision()),
        "{key:?} at {at}"
    );
}

async fn check_list(store: &dyn Store, model: &Model, rng: &mut StdRng) {
    let range = random_range(rng);
    let at = rng.random_range(model.compacted..=model.revision());
    let limit = rng.random_range(0..6);
    let listed = store
        .list(ListRequest::new(range.clone()).at(at).limit(limit))
        .await
        .unwrap();
    let expected: Vec<_> = model
        .at(at)
        .values()
        .filter(|kv| range.contains(&kv.key))
        .cloned()
        .collect();
    let shown = if limit == 0 {
        expected.len()
    } else {
        limit.min(expected.len())
    };
    assert_eq!(listed.kvs, expected[..shown], "{range:?} at {at}");
    assert_eq!(
        (listed.more, listed.count),
        (shown < expected.len(), expected.len() as u64)
    );
}

async fn check_watch(store: &dyn Store, model: &Model, rng: &mut StdRng) {
    let range = random_range(rng);
    let after = rng.random_range(model.compacted..=model.revision());
    let mut watch = store.watch(range.clone(), after).await.unwrap();
    let mut seen = Vec::new();
    watch.request_progress();
    loop {
        let batch = next(&mut watch).await;
        seen.extend(batch.events);
        if batch.synced >= model.revision() {
            break;
        }
    }
    let expected: Vec<_> = model
        .events
        .iter()
        .filter(|e| e.revision() > after && range.contains(&e.kv.key))
        .cloned()
        .collect();
    assert_eq!(seen, expected, "{range:?} after {after}");
}

/// Writers that read, add one and compare-and-set, all at once: nothing is lost, and a watch sees each step.
pub async fn random_writers_never_lose_an_update(store: &dyn Store) {
    const WRITERS: u64 = 8;
    const STEPS: u64 = 15;
    let mut watch = store.watch(all(), 1).await.unwrap();
    let writers = (0..WRITERS).map(|writer| async move {
        let mut done = 0;
        while done < STEPS {
            let key = format!("/{}", (writer + done) % 3);
            let got = store.get(key.as_bytes(), None).await.unwrap();
            let (count, expected) = match &got.kv {
                Some(kv) => (
                    std::str::from_utf8(&kv.value).unwrap().parse().unwrap(),
                    Expect::ModRevision(kv.mod_revision),
                ),
                None => (0u64, Expect::Absent),
            };
            let outcome = store
                .put(bytes(&key), bytes(&(count + 1).to_string()), expected, None)
                .await
                .unwrap();
            done += u64::from(outcome.done().is_some());
        }
    });
    futures::future::join_all(writers).await;
    let listed = store.list(ListRequest::new(all())).await.unwrap();
    let sum: u64 = listed
        .kvs
        .iter()
        .map(|kv| std::str::from_utf8(&kv.value).unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(sum, WRITERS * STEPS);
    let last = 1 + WRITERS * STEPS;
    assert_eq!(listed.revision, last);
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        seen.extend(next(&mut watch).await.events.iter().map(Event::revision));
    }
    assert!(seen.into_iter().eq(2..=last));
}
