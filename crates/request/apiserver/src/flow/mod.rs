//! Priority and fairness: each request is classed by the live FlowSchemas, and waits for seats of its priority level.
//!
//! A request has its seats until its answer has been written ([`Seat`]); a watch, until what it begins with has been sent.
//! Other long-running requests are classed but take none. Levels lend one another what they don't need ([`borrow`]).
//!
//! Bounds: seats a level, queues a level, requests a queue, and the time a request waits; past them it is refused with
//! 429 and told when to come back.

mod borrow;
mod classify;
mod demand;
mod gate;
mod seat;
pub mod status;
mod width;

pub use gate::{Permit, Width};
pub use seat::Seat;

use crate::bootstrap;
use crate::live::Sink;
use crate::request::{RequestInfo, UserInfo};
use borrow::{Bounds, Want};
use classify::FlowSchema;
use gate::{Gate, Refusal, Shape};
use keelson_api::{ApiError, Map, Object, Str};
use keelson_registry::engine::Usage;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What has no deadline waits so long at most; what has one, a quarter of what is left (as upstream).
const LONGEST_WAIT: Duration = Duration::from_secs(15);
const A_MINUTE: Duration = Duration::from_secs(60);
/// No request of a level takes more than this part of its nominal seats.
const MOST_OF_LEVEL: f64 = 0.15;

struct Level {
    uid: Str,
    exempt: bool,
    shares: i64,
    lendable: i64,
    borrowing: Option<i64>,
    shape: Shape,
    bounds: Bounds,
    want: Want,
    gate: Arc<Gate>,
}

impl Level {
    /// The widest that a request may be; `None`: the level says nothing.
    fn widest(&self) -> Option<usize> {
        let hand = (self.shape.queues > 0).then_some(self.shape.hand.max(1))?;
        let part = (self.bounds.nominal as f64 * MOST_OF_LEVEL).ceil() as usize;
        Some(part.min(self.bounds.nominal / hand).max(1))
    }
}

impl Tables {
    /// Puts in mandatory objects that are missing.
    fn supply_mandatory(&mut self) {
        let has_schema = |name: &str| self.schemas.keys().any(|(_, n)| n == name);
        if MANDATORY.iter().all(|m| has_schema(m) && self.levels.contains_key(*m)) {
            return;
        }
        for object in bootstrap::objects().iter().filter(|o| MANDATORY.contains(&o.name())) {
            match object.kind() {
                "PriorityLevelConfiguration" if !self.levels.contains_key(object.name()) => {
                    LevelSink::put(&mut self.levels, object);
                }
                "FlowSchema" if !self.schemas.keys().any(|(_, n)| n == object.name()) => {
                    let schema = Arc::new(FlowSchema::read(object));
                    self.schemas
                        .insert((classify::precedence(object), schema.name.clone()), schema);
                }
                _ => {}
            }
        }
    }
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

/// What stands even where nobody made it, or it isn't read yet: no request is without a level.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// A classed request that may ask for its seats.
pub struct Classed {
    pub class: Class,
    exempt: bool,
    /// The level has queues.
    queued: bool,
    widest: Option<usize>,
    gate: Arc<Gate>,
    flow: u64,
}

/// There was no seat in time; why, in upstream's words.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany(pub &'static str);

impl Classed {
    /// Waits for the request's seats. `usage` tells what it will load, and whom it will tell.
    pub async fn seats(
        &self,
        info: &RequestInfo,
        deadline: Option<Instant>,
        usage: Option<Usage>,
    ) -> Result<Option<Permit>, TooMany> {
        // The log of a pod that is gone is looked for in all that the pod was, and follows nothing.
        if info.is_long_running() && info.verb != "watch" && !info.past {
            return Ok(None);
        }
        let width = width::of(info, usage, self.widest);
        if self.exempt {
            return Ok(Some(self.gate.pass(width)));
        }
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()) / 4);
        let patience = left.unwrap_or(LONGEST_WAIT).min(A_MINUTE);
        match tokio::time::timeout(patience, self.gate.enter(self.flow, width)).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(Refusal::Full)) if self.queued => Err(TooMany("queue-full")),
            Ok(Err(Refusal::Full)) => Err(TooMany("concurrency-limit")),
            Err(_) => Err(TooMany("time-out")),
        }
    }
}

/// A priority level as it is used at the moment.
#[derive(Clone, Debug)]
pub struct LevelUsage {
    pub level: Str,
    /// Seats by its shares, and those it has now, with what is lent and borrowed.
    pub nominal: usize,
    pub limit: usize,
    /// Seats that are taken.
    pub executing: usize,
}

impl FlowControl {
    pub fn new(total: usize) -> Arc<Self> {
        let flow = FlowControl {
            total,
            tables: RwLock::default(),
            changes: watch::Sender::new(0),
        };
        let mut tables = Tables::default();
        tables.supply_mandatory();
        flow.share_out(&mut tables);
        *flow.tables.write() = tables;
        Arc::new(flow)
    }

    /// What a request is classed as.
    pub fn classify(&self, user: &UserInfo, info: &RequestInfo) -> Result<Classed, ApiError> {
        let tables = self.tables.read();
        let found = tables.schemas.values().find_map(|schema| {
            let level = tables.levels.get(&schema.level)?;
            schema.matches(user, info).then_some((schema, level))
        });
        // The mandatory schema takes all that the others leave.
        let (schema, level) = found.ok_or_else(|| ApiError::internal("no FlowSchema takes the request"))?;
        Ok(Classed {
            class: Class {
                schema: schema.name.clone(),
                schema_uid: schema.uid.clone(),
                level: schema.level.clone(),
                level_uid: level.uid.clone(),
            },
            exempt: level.exempt,
            queued: level.shape.queues > 0,
            widest: level.widest(),
            gate: level.gate.clone(),
            flow: schema.flow(user, info),
        })
    }

    /// Each level as it is used: for metrics.
    pub fn usage(&self) -> Vec<LevelUsage> {
        let tables = self.tables.read();
        let usage = |(name, level): (&Str, &Level)| LevelUsage {
            level: name.clone(),
            nominal: level.bounds.nominal,
            limit: level.gate.seats(),
            executing: level.gate.in_use(),
        };
        tables.levels.iter().map(usage).collect()
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
    fn share_out(&self, tables: &mut Tables) {
        let sum: i64 = tables.levels.values().map(|l| l.shares.max(0)).sum();
        for level in tables.levels.values_mut() {
            level.bounds = Bounds::of(self.total, level.shares, sum, level.lendable, level.borrowing);
            level.gate.reshape(level.shape);
            if level.gate.seats() == 0 && !level.exempt {
                level.gate.resize(level.bounds.initial());
            }
        }
        Self::adjust(tables);
    }

    /// Sets all levels' seats by what was asked of them lately.
    fn adjust(tables: &mut Tables) {
        for level in tables.levels.values_mut() {
            level.want.update(level.gate.demand());
        }
        let levels: Vec<borrow::Level> = tables
            .levels
            .values()
            .map(|l| borrow::Level {
                bounds: l.bounds,
                want: l.want,
                exempt: l.exempt,
            })
            .collect();
        for (level, seats) in tables.levels.values().zip(borrow::limits(&levels)) {
            level.gate.resize(seats.max(1));
        }
    }

    /// Lends and borrows until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(borrow::PERIOD) => Self::adjust(&mut self.tables.write()),
                () = stop.cancelled() => return,
            }
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
        let schemas = read.map(|(p, s)| ((p, s.name.clone()), s)).collect();
        self.change(|all| *all = schemas);
    }
    fn set(&self, object: Object) {
        let schema = Arc::new(FlowSchema::read(&object));
        self.change(|schemas| {
            schemas.retain(|(_, name), _| *name != schema.name);
            schemas.insert((classify::precedence(&object), schema.name.clone()), schema);
        });
    }
    fn delete(&self, object: Object) {
        self.change(|schemas| schemas.retain(|(_, name), _| name != object.name()));
    }
}

impl SchemaSink {
    fn change(&self, f: impl FnOnce(&mut BTreeMap<(i64, Str), Arc<FlowSchema>>)) {
        {
            let mut tables = self.0.tables.write();
            f(&mut tables.schemas);
            tables.supply_mandatory();
        }
        self.0.changed();
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
        let (gate, want) = levels
            .remove(o.name())
            .map_or_else(|| (Gate::new(), Want::default()), |old| (old.gate, old.want));
        let level = Level {
            uid: o.uid().into(),
            exempt,
            shares: part
                .int("nominalConcurrencyShares")
                .unwrap_or(if exempt { 0 } else { 30 }),
            lendable: part.int("lendablePercent").unwrap_or(0),
            borrowing: part.int("borrowingLimitPercent").filter(|_| !exempt),
            shape: shape(&part),
            bounds: Bounds::default(),
            want,
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
            tables.supply_mandatory();
            self.0.share_out(&mut tables);
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

    #[tokio::test]
    async fn a_stream_takes_no_seat_and_what_was_takes_one() {
        let flow = FlowControl::new(600);
        let user = UserInfo::new("somebody", &["system:authenticated"]);
        for (path, takes) in [
            ("/api/v1/namespaces/n/pods/p/log", false),
            ("/keelson/history/api/v1/namespaces/n/pods/p/log", true),
        ] {
            let info = RequestInfo::parse(&"GET".parse().unwrap(), &path.parse().unwrap()).unwrap();
            let classed = flow.classify(&user, &info).unwrap();
            let seats = classed.seats(&info, None, None).await.unwrap();
            assert_eq!(seats.is_some(), takes, "{path}");
        }
    }

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
            let class = flow.classify(&UserInfo::new(user, &groups), &info).unwrap().class;
            assert_eq!(
                (class.schema.as_str(), class.level.as_str()),
                (schema, level),
                "{user} {path}"
            );
        }
    }
}
