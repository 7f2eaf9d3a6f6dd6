//! Plays scenarios over one server, one after the other.

use crate::controllers::api::{Api, DRIVER};
use crate::controllers::drive::Act;
use crate::controllers::outcome::Outcome;
use crate::controllers::player::{Player, text};
use crate::controllers::seen::{Of, Seen, Whose};
use crate::scheduler::player;
use crate::scheduler::scenario::Scenario;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const PLACE: &str = "default";
/// So long nothing may change before something is taken for decided. A second is how long a pod waits that was refused.
const QUIET: Duration = Duration::from_millis(1300);
/// So long until a scheduler has heard of what there is.
const SETTLED: Duration = Duration::from_millis(600);
const LOOK: Duration = Duration::from_millis(50);
/// What has no decision by then has none.
const LONGEST: Duration = Duration::from_secs(10);

/// What is compared.
const SHOWN: &[&str] = &[
    "Pod",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "ResourceClaim",
    "Event",
];
/// What a scenario may leave, in the order in which it goes.
const SWEPT: &[&str] = &[
    "Pod",
    "PodDisruptionBudget",
    "ResourceClaim",
    "ResourceClaimTemplate",
    "ResourceSlice",
    "DeviceClass",
    "DeviceTaintRule",
    "PersistentVolumeClaim",
    "PersistentVolume",
    "StorageClass",
    "CSINode",
    "CSIDriver",
    "CSIStorageCapacity",
    "VolumeAttachment",
    "Service",
    "ReplicaSet",
    "ReplicationController",
    "StatefulSet",
    "Node",
    "Event",
    "Namespace",
];
/// Classes of pods' priorities, which every scenario has.
const CLASSES: &[(&str, i64, &str)] = &[
    ("negative", -10, "PreemptLowerPriority"),
    ("low", 10, "PreemptLowerPriority"),
    ("middle", 100, "PreemptLowerPriority"),
    ("high", 1000, "PreemptLowerPriority"),
    ("higher", 2000, "PreemptLowerPriority"),
    ("patient", 1000, "Never"),
];

pub struct Stage {
    api: Api,
    seen: Seen,
    player: Player,
    tasks: JoinSet<Result<()>>,
}

impl Stage {
    pub async fn set(client: kube::Client) -> Result<Stage> {
        let api = Api::new(client).await?;
        let mut tasks = JoinSet::new();
        let told = &["Pod", "PersistentVolume", "PersistentVolumeClaim"];
        let seen = Seen::start(&api, Whose::All(PLACE.into()), told, &mut tasks);
        tasks.spawn(player::play(api.clone(), seen.clone()));
        tokio::task::yield_now().await;
        let player = Player::new(api.clone());
        let stage = Stage {
            api,
            seen,
            player,
            tasks,
        };
        stage.furnish().await?;
        Ok(stage)
    }

    /// What pods need that no controller makes here.
    async fn furnish(&self) -> Result<()> {
        let named = |kind: &str, version: &str, name: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
        let mut all = vec![named("ServiceAccount", "v1", "default")];
        for (name, value, preemption) in CLASSES {
            let mut class = named("PriorityClass", "scheduling.k8s.io/v1", name);
            class["value"] = (*value).into();
            class["preemptionPolicy"] = (*preemption).into();
            all.push(class);
        }
        let namespace = named("Namespace", "v1", PLACE);
        self.ask("POST", "/api/v1/namespaces", Some(&namespace)).await?;
        for object in all {
            let resource = self
                .api
                .resource(text(&object, "/apiVersion"), text(&object, "/kind"))?;
            self.ask("POST", &resource.collection(PLACE), Some(&object)).await?;
        }
        let mut act = self.act();
        act.quiet().await;
        self.seen.forget(PLACE);
        Ok(())
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<()> {
        let form = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            ""
        };
        let (code, answer) = self.api.ask(method, path, form, body, DRIVER).await?;
        ensure!(code < 400 || matches!(code, 404 | 409), "{method} {path}: {answer}");
        Ok(())
    }

    fn act(&self) -> Act<'_> {
        Act {
            api: &self.api,
            seen: &self.seen,
            player: &self.player,
            place: PLACE,
            rest: QUIET,
            alone: true,
            notes: Vec::new(),
        }
    }

    /// Plays scenarios, and hands each one's outcome on.
    pub async fn play<'a>(
        &mut self,
        scenarios: impl Iterator<Item = &'a Scenario>,
        mut each: impl FnMut(&Scenario, Outcome) -> Result<()>,
    ) -> Result<()> {
        let mut tasks = std::mem::take(&mut self.tasks);
        for scenario in scenarios {
            let outcome = tokio::select! {
                outcome = self.one(scenario) => outcome,
                Some(ended) = tasks.join_next() => {
                    ended??;
                    bail!("what watches the server has ended");
                }
            };
            let outcome = outcome.with_context(|| format!("scenario {}", scenario.name))?;
            each(scenario, outcome)?;
        }
        self.tasks = tasks;
        Ok(())
    }

    async fn one(&self, scenario: &Scenario) -> Result<Outcome> {
        let mut act = self.act();
        for object in scenario.nodes.values().chain(&scenario.objects).chain(&scenario.there) {
            act.make(object).await?;
        }
        act.rest = SETTLED;
        act.quiet().await;
        act.rest = QUIET;
        let mut is_calm = false;
        for pod in &scenario.pods {
            act.make(pod).await?;
            is_calm = !self.is_decided(pod).await;
            if is_calm {
                act.quiet().await;
            }
            if scenario.apart && is_calm {
                self.goes(&mut act, text(pod, "/metadata/name")).await?;
            }
        }
        if !is_calm {
            act.quiet().await;
        }
        for step in &scenario.then {
            act.step(step).await.with_context(|| format!("{step:?}"))?;
            act.quiet().await;
        }
        let mut of = self.seen.of(PLACE);
        // What is told late is of pods of a scenario before.
        let own: HashSet<String> = of.ever.iter().map(|o| text(o, "/metadata/uid").to_string()).collect();
        of.ever
            .retain(|o| o["kind"] != "Event" || own.contains(text(o, "/involvedObject/uid")));
        if scenario.apart {
            // What each was, though it is gone.
            let pods = of.ever.iter().filter(|o| o["kind"] == "Pod");
            of.objects = pods.map(|pod| (key(pod), pod.clone())).collect();
        }
        of.objects.retain(|(_, kind, ..), _| SHOWN.contains(&kind.as_str()));
        let outcome = Outcome::new(&of, act.notes);
        self.sweep().await?;
        Ok(outcome)
    }

    /// Waits until a pod has a node; `false` if it has none, for whatever reason.
    async fn is_decided(&self, pod: &Value) -> bool {
        let begun = Instant::now();
        let namespace = Some(text(pod, "/metadata/namespace"))
            .filter(|n| !n.is_empty())
            .unwrap_or(PLACE);
        let Ok(resource) = self.api.resource("v1", "Pod") else {
            return false;
        };
        while begun.elapsed() < LONGEST {
            let found = self
                .seen
                .object(PLACE, resource, namespace, text(pod, "/metadata/name"));
            let Some(found) = found else {
                if begun.elapsed() > SETTLED {
                    return false;
                }
                sleep(LOOK).await;
                continue;
            };
            if !text(&found, "/spec/nodeName").is_empty() {
                return true;
            }
            if found.pointer("/status/conditions").is_some() {
                return false;
            }
            sleep(LOOK).await;
        }
        false
    }

    /// A pod that has no node goes: it isn't to be tried again beside others.
    async fn goes(&self, act: &mut Act<'_>, name: &str) -> Result<()> {
        let resource = self.api.resource("v1", "Pod")?;
        let found = self.seen.object(PLACE, resource, PLACE, name);
        if found.is_none_or(|pod| !text(&pod, "/spec/nodeName").is_empty()) {
            return Ok(());
        }
        let now = json!({"gracePeriodSeconds": 0});
        self.ask("DELETE", &resource.path(PLACE, name), Some(&now)).await?;
        act.rest = SETTLED;
        act.quiet().await;
        act.rest = QUIET;
        Ok(())
    }

    /// Clears everything away.
    async fn sweep(&self) -> Result<()> {
        for _ in 0..100 {
            let of = self.seen.of(PLACE);
            if left(&of).next().is_none() {
                self.seen.forget(PLACE);
                return Ok(());
            }
            for kind in SWEPT {
                for object in left(&of).filter(|o| o["kind"] == *kind) {
                    self.clear(object).await?;
                }
            }
            sleep(LOOK * 2).await;
        }
        let of = self.seen.of(PLACE);
        let names: Vec<&str> = left(&of).map(|o| text(o, "/metadata/name")).collect();
        bail!("these don't go: {names:?}")
    }

    async fn clear(&self, object: &Value) -> Result<()> {
        let kind = text(object, "/kind");
        let resource = self.api.resource(text(object, "/apiVersion"), kind)?;
        let name = text(object, "/metadata/name");
        let path = resource.path(text(object, "/metadata/namespace"), name);
        let now = json!({"gracePeriodSeconds": 0});
        let ends = object.pointer("/metadata/deletionTimestamp").is_some();
        if object.pointer("/metadata/finalizers").is_some() {
            let none = json!({"metadata": {"finalizers": null}});
            self.ask("PATCH", &path, Some(&none)).await?;
        }
        if kind == "Namespace" && ends {
            let mut done = object.clone();
            done["spec"]["finalizers"] = json!([]);
            return self.ask("PUT", &format!("{path}/finalize"), Some(&done)).await;
        }
        self.ask("DELETE", &path, Some(&now)).await
    }
}

fn key(object: &Value) -> (String, String, String, String) {
    let part = |at: &str| text(object, at).to_string();
    (
        part("/apiVersion"),
        part("/kind"),
        part("/metadata/namespace"),
        part("/metadata/name"),
    )
}

fn left(of: &Of) -> impl Iterator<Item = &Value> {
    let own = |o: &&Value| {
        let (kind, name) = (text(o, "/kind"), text(o, "/metadata/name"));
        SWEPT.contains(&kind)
            && !(kind == "Namespace" && (name == PLACE || name.starts_with("kube-")))
            && !(kind == "Service" && name == "kubernetes")
    };
    of.objects.values().filter(own)
}
