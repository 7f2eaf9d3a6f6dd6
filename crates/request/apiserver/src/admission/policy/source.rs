//! Policies with their bindings, kept as they change.

use super::{Binding, Body, Policy};
use crate::live::Sink;
use keelson_api::{Object, Str};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A policy and where it holds.
pub struct Bound<B> {
    pub policy: Arc<Policy<B>>,
    pub bindings: Vec<Arc<Binding>>,
}

struct Known<B> {
    policies: BTreeMap<Str, Arc<Policy<B>>>,
    bindings: BTreeMap<Str, Arc<Binding>>,
}

/// All policies of a kind; those without a binding are left out of what requests see.
pub struct Policies<B> {
    known: Mutex<Known<B>>,
    bound: RwLock<Arc<[Bound<B>]>>,
}

impl<B: Body> Policies<B> {
    pub fn new() -> Arc<Self> {
        let known = Known {
            policies: BTreeMap::new(),
            bindings: BTreeMap::new(),
        };
        Arc::new(Policies {
            known: Mutex::new(known),
            bound: RwLock::new(Arc::new([])),
        })
    }
    pub fn current(&self) -> Arc<[Bound<B>]> {
        self.bound.read().clone()
    }
    pub fn policy_sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(PolicySink(self.clone()))
    }
    pub fn binding_sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(BindingSink(self.clone()))
    }
    fn change(&self, f: impl FnOnce(&mut Known<B>)) {
        let mut known = self.known.lock();
        f(&mut known);
        let of = |policy: &Arc<Policy<B>>| {
            let bindings: Vec<_> = known
                .bindings
                .values()
                .filter(|b| b.policy == policy.name)
                .cloned()
                .collect();
            (!bindings.is_empty()).then(|| Bound {
                policy: policy.clone(),
                bindings,
            })
        };
        *self.bound.write() = known.policies.values().filter_map(of).collect();
    }
}

struct PolicySink<B>(Arc<Policies<B>>);
struct BindingSink<B>(Arc<Policies<B>>);

impl<B: Body> Sink for PolicySink<B> {
    fn replace(&self, objects: Vec<Object>) {
        let all = objects
            .iter()
            .map(|o| (o.name().into(), Arc::new(Policy::parse(o))))
            .collect();
        self.0.change(|known| known.policies = all);
    }
    fn set(&self, object: Object) {
        let policy = Arc::new(Policy::parse(&object));
        self.0
            .change(|known| drop(known.policies.insert(object.name().into(), policy)));
    }
    fn delete(&self, object: Object) {
        self.0.change(|known| drop(known.policies.remove(object.name())));
    }
}

impl<B: Body> Sink for BindingSink<B> {
    fn replace(&self, objects: Vec<Object>) {
        let all = objects
            .iter()
            .map(|o| (o.name().into(), Arc::new(Binding::parse(o))))
            .collect();
        self.0.change(|known| known.bindings = all);
    }
    fn set(&self, object: Object) {
        let binding = Arc::new(Binding::parse(&object));
        self.0
            .change(|known| drop(known.bindings.insert(object.name().into(), binding)));
    }
    fn delete(&self, object: Object) {
        self.0.change(|known| drop(known.bindings.remove(object.name())));
    }
}
