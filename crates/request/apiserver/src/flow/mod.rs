//! Priority and fairness: each request is classed by the live FlowSchemas, and waits for a seat of its priority level.
//!
//! Bounds: seats a level, queues a level, requests a queue, and the time a request waits; past them it is refused with
//! 429 and told when to come back. Long-running requests are classed but take no seat.

mod classify;
mod gate;
pub mod status;

pub use gate::Permit;

use crate::live::Sink;
use crate::request::{RequestInfo, UserInfo};
use classify::FlowSchema;
use gate::{Gate, Refusal, Shape};
use keelson_api::{ApiError, Map, Object, Reason, Str};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// As upstream: a request waits at most a quarter of what it may take.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

struct Level {
    uid: Str,
    exempt: bool,
    shares: i64,
    shape: Shape,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Tables {
    /// By precedence, then by name.
    schemas: BTreeMap<(i64, Str), Arc<FlowSchema>>,
    levels: BTreeMap<Str, Level>,
}

/// Classes and holds back requests.
pub struct FlowControl {
    /// Seats of all levels together.
    total: usize,
    tables: RwLock<Tables>,
    changes: watch::Sender<u64>,
}

/// What a request was classed as; both UIDs go into its response's headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Class {
    pub schema: Str,
    pub schema_uid: Str,
    pub level: Str,
    pub level_uid: Str,
}

impl FlowControl {
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(FlowControl {
            total,
            tables: RwLock::default(),
            changes: watch::Sender::new(0),
        })
    }

    /// Classes a request and waits for its seat.
    pub async fn admit(&self, user: &UserInfo, info: &RequestInfo) -> Result<(Class, Option<Permit>), ApiError> {
        let Some((class, exempt, gate, hash)) = self.classify(user, info) else {
            // Before the configuration has arrived, and that is only while the server starts.
            return Ok((Class::default(), None));
        };
        if exempt || info.is_long_running() {
            return Ok((class, None));
        }
        match tokio::time::timeout(LONGEST_WAIT, gate.enter(hash)).await {
            Ok(Ok(permit)) => Ok((class, Some(permit))),
            Ok(Err(Refusal::Full)) | Err(_) => Err(ApiError::new(
                Reason::TooManyRequests,
                "Too many requests, please try again later.",
            )
            .with_retry_after(1)),
        }
    }

    fn classify(&self, user: &UserInfo, info: &RequestInfo) -> Option<(Class, bool, Arc<Gate>, u64)> {
        let tables = self.tables.read();
        let schema = tables
            .schemas
            .values()
            .find(|s| s.matches(user, info) && tables.levels.contains_key(&s.level))?;
        let level = tables.levels.get(&schema.level)?;
        let class = Class {
            schema: schema.name.clone(),
            schema_uid: schema.uid.clone(),
            level: schema.level.clone(),
            level_uid: level.uid.clone(),
        };
        Some((class, level.exempt, level.gate.clone(), schema.flow(user, info)))
    }

    /// Requests that have a seat, and that wait for one, by level: for metrics.
    pub fn usage(&self) -> Vec<(Str, usize, usize)> {
        self.tables
            .read()
            .levels
            .iter()
            .map(|(name, l)| (name.clone(), l.gate.in_use(), l.gate.waiting()))
            .collect()
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
    /// Schemas whose condition `Dangling` doesn't say what is: name, level, whether the level is missing.
    fn undecided(&self) -> Vec<(Str, Str, bool)> {
        let tables = self.tables.read();
        let all = tables
            .schemas
            .values()
            .map(|s| (s, !tables.levels.contains_key(&s.level)));
        all.filter(|(s, dangling)| s.dangling != Some(*dangling))
            .map(|(s, dangling)| (s.name.clone(), s.level.clone(), dangling))
            .collect()
    }

    /// Gives each level its part of the seats.
    fn share_out(&self, tables: &Tables) {
        let sum: i64 = tables
            .levels
            .values()
            .filter(|l| !l.exempt)
            .map(|l| l.shares)
            .sum::<i64>()
            .max(1);
        for level in tables.levels.values() {
            let seats = (self.total as u64 * level.shares.max(0) as u64).div_ceil(sum as u64);
            level
                .gate
                .resize(usize::try_from(seats).unwrap_or(usize::MAX), level.shape);
        }
    }

    pub fn schema_sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(SchemaSink(self.clone()))
    }
    pub fn level_sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(LevelSink(self.clone()))
    }
}

struct SchemaSink(Arc<FlowControl>);
struct LevelSink(Arc<FlowControl>);

impl Sink for SchemaSink {
    fn replace(&self, objects: Vec<Object>) {
        let read = objects
            .iter()
            .map(|o| (classify::precedence(o), Arc::new(FlowSchema::read(o))));
        self.0.tables.write().schemas = read.map(|(p, s)| ((p, s.name.clone()), s)).collect();
        self.0.changed();
    }
    fn set(&self, object: Object) {
        let schema = Arc::new(FlowSchema::read(&object));
        {
            let schemas = &mut self.0.tables.write().schemas;
            schemas.retain(|(_, name), _| *name != schema.name);
            schemas.insert((classify::precedence(&object), schema.name.clone()), schema);
        }
        self.0.changed();
    }
    fn delete(&self, object: Object) {
        self.0
            .tables
            .write()
            .schemas
            .retain(|(_, name), _| name != object.name());
    }
}

impl LevelSink {
    fn put(levels: &mut BTreeMap<Str, Level>, o: &Object) {
        let spec = o.obj("spec").cloned().unwrap_or_default();
        let exempt = spec.str("type") == Some("Exempt");
        let part = spec
            .obj(if exempt { "exempt" } else { "limited" })
            .cloned()
            .unwrap_or_default();
        let gate = levels.remove(o.name()).map_or_else(Gate::new, |old| old.gate);
        let level = Level {
            uid: o.uid().into(),
            exempt,
            shares: part
                .int("nominalConcurrencyShares")
                .unwrap_or(if exempt { 0 } else { 30 }),
            shape: shape(&part),
            gate,
        };
        levels.insert(o.name().into(), level);
    }
}

fn shape(limited: &Map) -> Shape {
    let response = limited.obj("limitResponse").cloned().unwrap_or_default();
    if response.str("type") != Some("Queue") {
        return Shape::REJECT;
    }
    let queuing = response.obj("queuing").cloned().unwrap_or_default();
    let number = |key: &str, default: i64| usize::try_from(queuing.int(key).unwrap_or(default)).unwrap_or(1).max(1);
    Shape {
        queues: number("queues", 64).min(10_000),
        hand: number("handSize", 8).min(64),
        length: number("queueLengthLimit", 50),
    }
}

impl LevelSink {
    fn change(&self, f: impl FnOnce(&mut Tables)) {
        {
            let mut tables = self.0.tables.write();
            f(&mut tables);
            self.0.share_out(&tables);
        }
        self.0.changed();
    }
}

impl Sink for LevelSink {
    fn replace(&self, objects: Vec<Object>) {
        self.change(|tables| {
            tables.levels.retain(|name, _| objects.iter().any(|o| o.name() == name));
            objects.iter().for_each(|o| Self::put(&mut tables.levels, o));
        });
    }
    fn set(&self, object: Object) {
        self.change(|tables| Self::put(&mut tables.levels, &object));
    }
    fn delete(&self, object: Object) {
        self.change(|tables| drop(tables.levels.remove(object.name())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap;

    #[test]
    fn default_configuration_classes_as_upstream_does() {
        let flow = FlowControl::new(600);
        let of = |kind: &str| {
            bootstrap::objects()
                .iter()
                .filter(|o| o.kind() == kind)
                .cloned()
                .collect::<Vec<_>>()
        };
        flow.level_sink().replace(of("PriorityLevelConfiguration"));
        flow.schema_sink().replace(of("FlowSchema"));
        let table = [
            (
                "kubernetes-admin",
                vec!["system:masters", "system:authenticated"],
                "GET",
                "/api/v1/pods",
                "exempt",
                "exempt",
            ),
            (
                "system:anonymous",
                vec!["system:unauthenticated"],
                "GET",
                "/healthz",
                "probes",
                "exempt",
            ),
            (
                "system:node:n",
                vec!["system:nodes", "system:authenticated"],
                "PUT",
                "/api/v1/nodes/n/status",
                "system-node-high",
                "node-high",
            ),
            (
                "system:node:n",
                vec!["system:nodes", "system:authenticated"],
                "GET",
                "/api/v1/pods",
                "system-nodes",
                "system",
            ),
            (
                "system:kube-scheduler",
                vec!["system:authenticated"],
                "GET",
                "/api/v1/pods",
                "kube-scheduler",
                "workload-high",
            ),
            (
                "system:serviceaccount:a:b",
                vec!["system:serviceaccounts", "system:authenticated"],
                "GET",
                "/api/v1/pods",
                "service-accounts",
                "workload-low",
            ),
            (
                "somebody",
                vec!["system:authenticated"],
                "GET",
                "/api/v1/pods",
                "global-default",
                "global-default",
            ),
            (
                "nobody",
                vec!["system:unauthenticated"],
                "GET",
                "/api/v1/pods",
                "global-default",
                "global-default",
            ),
        ];
        for (user, groups, method, path, schema, level) in table {
            let info = RequestInfo::parse(&method.parse().unwrap(), &path.parse().unwrap()).unwrap();
            let (class, ..) = flow.classify(&UserInfo::new(user, &groups), &info).unwrap();
            assert_eq!(
                (class.schema.as_str(), class.level.as_str()),
                (schema, level),
                "{user} {path}"
            );
        }
    }
}
