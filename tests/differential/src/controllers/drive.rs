//! Plays scenarios over one server.

use crate::controllers::api::{Api, DRIVER};
use crate::controllers::outcome::Outcome;
use crate::controllers::player::{Player, Report, path, text};
use crate::controllers::scenario::{Change, Delete, Pods, Scenario, Step, Until};
use crate::controllers::seen::{Seen, Whose};
use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// So long nothing may change before the next step.
const QUIET: Duration = Duration::from_millis(2000);
/// Who never comes to rest isn't waited for.
const LONGEST: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

pub struct Stage {
    api: Api,
    seen: Seen,
    player: Player,
    tasks: JoinSet<Result<()>>,
}

impl Stage {
    /// A server with nodes, on which scenarios can be played.
    pub async fn set(client: kube::Client, scenarios: &[Scenario]) -> Result<Stage> {
        let api = Api::new(client).await?;
        let mut tasks = JoinSet::new();
        let names = scenarios.iter().map(|s| s.name.clone()).collect();
        let seen = Seen::start(&api, Whose::Of(names), &["Pod", "Node"], &mut tasks);
        let player = Player::new(api.clone());
        tasks.spawn(player.clone().play(seen.clone()));
        tokio::task::yield_now().await;
        player.nodes().await?;
        Ok(Stage {
            api,
            seen,
            player,
            tasks,
        })
    }

    /// Plays scenarios, `width` at a time, and hands each one's outcome on.
    pub async fn play(
        &mut self,
        scenarios: &[Scenario],
        width: usize,
        mut each: impl FnMut(&Scenario, Outcome) -> Result<()>,
    ) -> Result<()> {
        let (api, seen, player) = (&self.api, &self.seen, &self.player);
        let played = scenarios.iter().map(|scenario| async move {
            let mut act = Act {
                api,
                seen,
                player,
                place: &scenario.name,
                rest: QUIET,
                alone: false,
                notes: Vec::new(),
            };
            let played = act.all(scenario).await;
            played.with_context(|| format!("scenario {}", scenario.name))?;
            let outcome = Outcome::new(&seen.of(&scenario.name), act.notes);
            seen.forget(&scenario.name);
            anyhow::Ok((scenario, outcome))
        });
        let mut played = futures::stream::iter(played).buffer_unordered(width);
        loop {
            tokio::select! {
                next = played.next() => match next {
                    Some(next) => {
                        let (scenario, outcome) = next?;
                        each(scenario, outcome)?;
                    }
                    None => return Ok(()),
                },
                Some(ended) = self.tasks.join_next() => {
                    ended??;
                    bail!("what watches the server has ended");
                }
            }
        }
    }
}

pub(crate) struct Act<'a> {
    pub api: &'a Api,
    pub seen: &'a Seen,
    pub player: &'a Player,
    /// Whose it is, and the namespace of what says none.
    pub place: &'a str,
    /// So long nothing may change before the next step.
    pub rest: Duration,
    /// No controllers are there: a node has the taints that it is made with, and a namespace gets its account.
    pub alone: bool,
    /// What the server refused, and what never came.
    pub notes: Vec<String>,
}

impl Act<'_> {
    async fn all(&mut self, scenario: &Scenario) -> Result<()> {
        let name = &scenario.name;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.make(&namespace).await?;
        let account = Until {
            of: "v1 ServiceAccount default".into(),
            at: "/metadata/name".into(),
            is: "default".into(),
        };
        self.until(&account).await?;
        self.quiet().await;
        for step in &scenario.steps {
            self.step(step).await.with_context(|| format!("{step:?}"))?;
            self.quiet().await;
        }
        Ok(())
    }

    pub(crate) async fn quiet(&mut self) {
        let begun = Instant::now();
        let mut busy = begun;
        loop {
            if !self.seen.all_answered() {
                busy = Instant::now();
            }
            let last = self.seen.changed(self.place).map_or(busy, |c| c.max(busy));
            if last.elapsed() >= self.rest {
                return;
            }
            if begun.elapsed() >= LONGEST {
                self.notes.push("never came to rest".into());
                return;
            }
            sleep(LOOK).await;
        }
    }

    pub(crate) async fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Create(Value::Array(objects)) => {
                for object in objects {
                    self.make(object).await?;
                }
                Ok(())
            }
            Step::Create(object) => self.make(object).await,
            Step::Patch(change) => self.change(change).await,
            Step::Delete(delete) => self.delete(delete).await,
            Step::Pods(pods) => self.pods(pods).await,
            Step::Silence(node) => {
                self.player.silence(node);
                Ok(())
            }
            Step::Speak(node) => self.player.speak(node).await,
            Step::Wait(seconds) => {
                sleep(Duration::from_secs_f64(*seconds)).await;
                Ok(())
            }
            Step::Until(until) => self.until(until).await,
            Step::Together(steps) => {
                for step in steps {
                    Box::pin(self.step(step)).await?;
                }
                Ok(())
            }
        }
    }

    fn note(&mut self, what: &str, code: u16, body: &Value) {
        if code >= 400 {
            self.notes.push(format!("{what}: {code} {}", text(body, "/message")));
        }
    }

    pub(crate) async fn make(&mut self, object: &Value) -> Result<()> {
        let mut object = object.clone();
        self.fill(&mut object)?;
        let resource = self
            .api
            .resource(text(&object, "/apiVersion"), text(&object, "/kind"))?;
        let place = match text(&object, "/metadata/namespace") {
            "" => self.place.to_string(),
            other => other.to_string(),
        };
        if resource.namespaced {
            object["metadata"]["namespace"] = place.clone().into();
        }
        let (code, body) = self
            .api
            .ask("POST", &resource.collection(&place), "", Some(&object), DRIVER)
            .await?;
        self.note(&format!("creating {}", resource.kind), code, &body);
        if code < 400 && !object["status"].is_null() {
            let path = format!("{}/status", resource.path(&place, text(&body, "/metadata/name")));
            let status = json!({"status": object["status"]});
            let (code, body) = self
                .api
                .ask("PATCH", &path, "application/merge-patch+json", Some(&status), DRIVER)
                .await?;
            self.note(&format!("status of {}", resource.kind), code, &body);
        }
        if self.alone {
            self.complete(&object).await?;
        }
        Ok(())
    }

    /// What a controller would do, or undo.
    async fn complete(&mut self, object: &Value) -> Result<()> {
        let name = text(object, "/metadata/name");
        match text(object, "/kind") {
            "Node" => {
                if self.is_awaited() {
                    // Who waits for a node looks at it as it comes, and then as it is.
                    self.quiet().await;
                }
                let taints = json!({"spec": {"taints": object["spec"]["taints"]}});
                let path = format!("/api/v1/nodes/{name}");
                let form = "application/merge-patch+json";
                let (code, body) = self.api.ask("PATCH", &path, form, Some(&taints), DRIVER).await?;
                self.note("taints", code, &body);
            }
            "Namespace" => {
                let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
                let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
                let (code, body) = self.api.ask("POST", &path, "", Some(&account), DRIVER).await?;
                self.note("its account", code, &body);
            }
            _ => {}
        }
        Ok(())
    }

    fn is_awaited(&self) -> bool {
        let of = self.seen.of(self.place);
        let mut pods = of.objects.values().filter(|o| o["kind"] == "Pod");
        pods.any(|pod| text(pod, "/spec/nodeName").is_empty())
    }

    /// `uid of apps/v1 Deployment web` becomes that.
    fn fill(&self, value: &mut Value) -> Result<()> {
        match value {
            Value::Object(map) => map.values_mut().try_for_each(|v| self.fill(v)),
            Value::Array(items) => items.iter_mut().try_for_each(|v| self.fill(v)),
            Value::String(said) => {
                if let Some(of) = said.strip_prefix("uid of ") {
                    let object = self.find(of)?.with_context(|| format!("there is no {of}"))?;
                    *said = text(&object, "/metadata/uid").to_string();
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn find(&self, of: &str) -> Result<Option<Value>> {
        let (resource, namespace, name) = self.api.named(of, self.place)?;
        Ok(self.seen.object(self.place, resource, namespace, name))
    }

    async fn change(&mut self, change: &Change) -> Result<()> {
        let (resource, namespace, name) = self.api.named(&change.of, self.place)?;
        let mut at = resource.path(namespace, name);
        if !change.sub.is_empty() {
            at = format!("{at}/{}", change.sub);
        }
        let (form, body) = match (&change.merge, &change.json, &change.strategic) {
            (Some(body), None, None) => ("application/merge-patch+json", body),
            (None, Some(body), None) => ("application/json-patch+json", body),
            (None, None, Some(body)) => ("application/strategic-merge-patch+json", body),
            _ => bail!("a patch is of one form"),
        };
        let mut body = body.clone();
        self.fill(&mut body)?;
        let (code, answer) = self.api.ask("PATCH", &at, form, Some(&body), DRIVER).await?;
        self.note(&format!("patching {}", change.of), code, &answer);
        Ok(())
    }

    async fn delete(&mut self, delete: &Delete) -> Result<()> {
        let (resource, namespace, name) = self.api.named(&delete.of, self.place)?;
        let at = resource.path(namespace, name);
        let body = (!delete.options.is_null()).then_some(&delete.options);
        let (code, answer) = self.api.ask("DELETE", &at, "", body, DRIVER).await?;
        self.note(&format!("deleting {}", delete.of), code, &answer);
        Ok(())
    }

    async fn until(&mut self, until: &Until) -> Result<()> {
        let begun = Instant::now();
        loop {
            let found = self.find(&until.of)?;
            let there = found
                .as_ref()
                .and_then(|o| o.pointer(&until.at))
                .unwrap_or(&Value::Null);
            if *there == until.is {
                return Ok(());
            }
            if begun.elapsed() >= LONGEST {
                self.notes
                    .push(format!("{}{} never was {}", until.of, until.at, until.is));
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// The pods as the server has them now, the oldest first.
    async fn pods(&mut self, pods: &Pods) -> Result<()> {
        let listed = self.api.get(&format!("/api/v1/namespaces/{}/pods", self.place)).await?;
        let mut chosen: Vec<&Value> = listed["items"].as_array().into_iter().flatten().collect();
        chosen.retain(|p| pods.with.iter().all(|(k, v)| p["metadata"]["labels"][k] == *v));
        chosen.retain(|p| p.pointer("/metadata/deletionTimestamp").is_some() == pods.gone);
        chosen.sort_by_key(|p| (text(p, "/metadata/creationTimestamp"), text(p, "/metadata/name")));
        chosen.truncate(pods.count.unwrap_or(usize::MAX));
        ensure!(!chosen.is_empty() || pods.gone, "there are no such pods");
        for pod in chosen {
            if pods.gone {
                self.player.end(pod).await?;
            }
            if let Some(status) = &pods.status {
                self.player
                    .patch(&format!("{}/status", path(pod)), &json!({"status": status}))
                    .await?;
            }
            if pods.phase.is_some() || pods.ready.is_some() {
                let report = Report {
                    phase: pods.phase.clone().unwrap_or_else(|| "Running".into()),
                    ready: pods.ready.unwrap_or(true),
                    exit: pods
                        .exit
                        .unwrap_or_else(|| i64::from(pods.phase.as_deref() == Some("Failed"))),
                };
                self.player.report(pod, &report).await?;
            }
        }
        Ok(())
    }
}
