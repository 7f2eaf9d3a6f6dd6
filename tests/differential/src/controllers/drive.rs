//! Plays scenarios over one server.

use crate::controllers::api::{Api, DRIVER};
use crate::controllers::outcome::Outcome;
use crate::controllers::player::{Player, Report, path, text};
use crate::controllers::scenario::{Change, Delete, Pods, Scenario, Step, Until};
use crate::controllers::seen::Seen;
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
        let seen = Seen::start(&api, names, &mut tasks);
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
                scenario,
                notes: Vec::new(),
            };
            act.all().await.with_context(|| format!("scenario {}", scenario.name))?;
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

struct Act<'a> {
    api: &'a Api,
    seen: &'a Seen,
    player: &'a Player,
    scenario: &'a Scenario,
    /// What the server refused, and what never came.
    notes: Vec<String>,
}

impl Act<'_> {
    async fn all(&mut self) -> Result<()> {
        let name = &self.scenario.name;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.make(&namespace).await?;
        let account = Until {
            of: "v1 ServiceAccount default".into(),
            at: "/metadata/name".into(),
            is: "default".into(),
        };
        self.until(&account).await?;
        self.quiet().await;
        for step in &self.scenario.steps {
            self.step(step).await.with_context(|| format!("{step:?}"))?;
            self.quiet().await;
        }
        Ok(())
    }

    async fn quiet(&mut self) {
        let begun = Instant::now();
        let mut busy = begun;
        loop {
            if !self.seen.all_answered() {
                busy = Instant::now();
            }
            let last = self.seen.changed(&self.scenario.name).map_or(busy, |c| c.max(busy));
            if last.elapsed() >= QUIET {
                return;
            }
            if begun.elapsed() >= LONGEST {
                self.notes.push("never came to rest".into());
                return;
            }
            sleep(LOOK).await;
        }
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
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

    async fn make(&mut self, object: &Value) -> Result<()> {
        let mut object = object.clone();
        self.fill(&mut object)?;
        let resource = self
            .api
            .resource(text(&object, "/apiVersion"), text(&object, "/kind"))?;
        let place = match text(&object, "/metadata/namespace") {
            "" => self.scenario.name.clone(),
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
        Ok(())
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
        let (resource, namespace, name) = self.api.named(of, &self.scenario.name)?;
        Ok(self.seen.object(&self.scenario.name, resource, namespace, name))
    }

    async fn change(&mut self, change: &Change) -> Result<()> {
        let (resource, namespace, name) = self.api.named(&change.of, &self.scenario.name)?;
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
        let (resource, namespace, name) = self.api.named(&delete.of, &self.scenario.name)?;
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
        let listed = self
            .api
            .get(&format!("/api/v1/namespaces/{}/pods", self.scenario.name))
            .await?;
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
