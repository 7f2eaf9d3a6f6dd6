//! The machine stops: pods end in the order of their priorities, each with the time that it is given, before the machine goes
//! on. Upstream's rules, words and record. A kubelet that stops ends no pod; only this does.
//!
//! Who says so is a [`Power`]: [`logind`] where there is one, a signal elsewhere. Which pods end together, and how long they may
//! take, is decided by [`groups`] (pure).

pub mod bus;
pub mod groups;
pub mod logind;
pub mod record;
pub mod settings;

use crate::kubelet::Kubelet;
use crate::pods;
use crate::worker::{Eviction, Stage};
use groups::Period;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use keelson_client::EventType;
use logind::{Logind, Problem};
use nix::sys::signal::Signal;
use record::Record;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// How long until a lost connection is tried again, and at most where that fails.
const AGAIN: Duration = Duration::from_secs(1);
const RARELY: Duration = Duration::from_secs(60);

/// Where a machine says that it stops.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The socket of the system's bus.
    pub bus: PathBuf,
    /// The directory of logind's further settings.
    pub settings: PathBuf,
}

impl Sources {
    /// Those of this machine.
    pub fn of_machine() -> Sources {
        let told = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
        let path = told.strip_prefix("unix:path=").and_then(|p| p.split([',', ';']).next());
        Sources {
            bus: path.unwrap_or("/run/dbus/system_bus_socket").into(),
            settings: settings::DIRECTORY.into(),
        }
    }
}

/// Who knows when the machine stops, and waits with it.
#[tonic::async_trait]
pub trait Power: Send {
    /// Whether it stops now (`true`), or goes on after all. An error: nothing more comes from here.
    async fn next(&mut self) -> Result<bool, String>;
    /// Has the machine wait for us.
    async fn hold(&mut self) -> Result<(), String>;
    /// Nothing holds it up any more.
    fn release(&mut self);
}

/// Whether the machine stops.
#[derive(Default)]
pub struct Shutdown(watch::Sender<bool>);

impl Shutdown {
    pub fn is_under_way(&self) -> bool {
        *self.0.borrow()
    }

    /// Why the node isn't ready.
    pub fn problem(&self) -> Option<String> {
        self.is_under_way().then(|| "node is shutting down".to_owned())
    }
}

/// Follows what the machine says, where pods are to be given time.
pub fn start(kl: &Arc<Kubelet>) {
    let periods = groups::periods(&kl.cfg);
    if periods.is_empty() {
        return;
    }
    match record::load(&*kl.host, &kl.layout.root) {
        Ok(record) => tell(kl, record),
        Err(e) => tracing::error!("failed to load graceful shutdown state: {e}"),
    }
    let Some(sources) = kl.host.power() else { return };
    let kl = kl.clone();
    tokio::spawn(async move {
        let stop = kl.stop.clone();
        stop.run_until_cancelled(listen(&kl, &sources, &periods)).await;
    });
}

async fn listen(kl: &Arc<Kubelet>, sources: &Sources, periods: &[Period]) {
    let (mut pause, mut said) = (AGAIN, String::new());
    loop {
        let ended = match Logind::connect(sources, groups::whole(periods)).await {
            Ok(mut logind) => {
                tracing::info!("the machine waits for its pods when it stops");
                (pause, said) = (AGAIN, String::new());
                if kl.shutdown.is_under_way() {
                    // A machine that stops gives nobody a lock: it went on while it wasn't heard.
                    tell_all(kl, false).await;
                }
                follow(kl, &mut logind, periods).await
            }
            Err(Problem::Absent) => break,
            Err(Problem::Other(e)) => e,
        };
        if ended != said {
            tracing::error!("the machine's end can't be held up, which is tried again: {ended}");
            said = ended;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RARELY);
    }
    tracing::info!("there is no logind: SIGPWR says that the machine stops");
    match BySignal::new() {
        Ok(mut by_signal) => {
            let ended = follow(kl, &mut by_signal, periods).await;
            tracing::error!("nothing says any more that the machine stops: {ended}");
        }
        Err(e) => tracing::error!("SIGPWR can't be followed: {e}"),
    }
}

/// Where there is no logind: whoever stops the machine sends a signal, and looks for the record of the end.
struct BySignal(tokio::signal::unix::Signal);

impl BySignal {
    fn new() -> std::io::Result<BySignal> {
        Ok(BySignal(signal(SignalKind::from_raw(Signal::SIGPWR as i32))?))
    }
}

#[tonic::async_trait]
impl Power for BySignal {
    async fn next(&mut self) -> Result<bool, String> {
        match self.0.recv().await {
            Some(()) => Ok(true),
            None => Err("no signals come".into()),
        }
    }

    async fn hold(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn release(&mut self) {}
}

/// Does what the machine's words ask for, until it says nothing more; returns why.
pub async fn follow(kl: &Arc<Kubelet>, power: &mut dyn Power, periods: &[Period]) -> String {
    loop {
        let stops = match power.next().await {
            Ok(stops) => stops,
            Err(e) => return e,
        };
        tell_all(kl, stops).await;
        if stops {
            process(kl, periods).await;
            power.release();
        } else if let Err(e) = power.hold().await {
            return e;
        }
    }
}

/// Whether the machine stops, for whoever admits pods, and for the node's status.
async fn tell_all(kl: &Kubelet, stops: bool) {
    let what = if stops { "event" } else { "cancellation" };
    tracing::warn!("the machine says that it stops: {what}");
    event(kl, format!("Shutdown manager detected shutdown {what}"));
    {
        // Who is being admitted comes in before, and ends with the others.
        let _one = kl.admission.lock().await;
        kl.shutdown.0.send_replace(stops);
    }
    kl.node.changed.notify_one();
}

fn event(kl: &Kubelet, message: String) {
    let node = k8s_openapi::api::core::v1::ObjectReference {
        kind: Some("Node".into()),
        name: Some(kl.cfg.node_name.clone()),
        uid: Some(kl.cfg.node_name.clone()),
        ..Default::default()
    };
    kl.recorder.event_for(&node, EventType::Normal, "NodeShutdown", message);
}

/// Ends all pods, and notes when that began and ended.
async fn process(kl: &Arc<Kubelet>, periods: &[Period]) {
    let mut record = Record {
        start: Some(kl.host.now()),
        end: None,
    };
    note(kl, record);
    end_pods(kl, periods).await;
    record.end = Some(kl.host.now());
    note(kl, record);
    tracing::warn!("pods have been ended; the machine goes on");
}

fn note(kl: &Kubelet, record: Record) {
    if let Err(e) = record::save(&*kl.host, &kl.layout.root, record) {
        tracing::error!("failed to store graceful shutdown state: {e}");
    }
    tell(kl, record);
}

fn tell(kl: &Kubelet, record: Record) {
    let seconds = |t: Option<jiff::Timestamp>| t.map_or(0.0, |t| t.as_second() as f64);
    kl.metrics.shutdown_start.set(seconds(record.start));
    kl.metrics.shutdown_end.set(seconds(record.end));
}

async fn end_pods(kl: &Arc<Kubelet>, periods: &[Period]) {
    let mut by_period: Vec<Vec<Arc<Pod>>> = vec![Vec::new(); periods.len()];
    for pod in kl.workers.active("") {
        let priority = pods::spec(&pod).priority.unwrap_or(0);
        by_period[groups::index(periods, priority)].push(pod);
    }
    for (period, group) in periods.iter().zip(by_period).filter(|(_, group)| !group.is_empty()) {
        for pod in &group {
            end(kl, pod, period.seconds);
        }
        let uids: Vec<&str> = group.iter().map(|p| pods::uid(p)).collect();
        let time = Duration::from_secs(period.seconds.max(0) as u64);
        if tokio::time::timeout(time, ended(kl, &uids)).await.is_err() {
            tracing::warn!(priority = period.priority, "pods have not ended in their time");
        }
    }
}

fn end(kl: &Kubelet, pod: &Pod, seconds: i64) {
    let own = pods::spec(pod).termination_grace_period_seconds.unwrap_or(seconds);
    tracing::info!(pod = %pods::describe(pod), "ends since the machine stops");
    let condition = PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("TerminationByKubelet".into()),
        message: Some(MESSAGE.into()),
        observed_generation: pods::generation(pod),
        ..Default::default()
    };
    let eviction = Eviction {
        reason: REASON.into(),
        message: MESSAGE.into(),
        grace: Some(seconds.min(own)),
        condition: Some(condition),
    };
    kl.workers.evict(pods::uid(pod), eviction);
}

/// Waits until nothing of these pods is left but their objects, which say so.
async fn ended(kl: &Kubelet, uids: &[&str]) {
    let mut stages = kl.workers.stages.subscribe();
    let here = |uid: &&&str| kl.workers.get(uid).is_some_and(|h| h.stage() != Stage::Finished);
    loop {
        stages.mark_unchanged();
        if !uids.iter().any(|uid| here(&uid)) {
            break;
        }
        if stages.changed().await.is_err() {
            return;
        }
    }
    for uid in uids {
        kl.status.flush(uid).await;
    }
}
