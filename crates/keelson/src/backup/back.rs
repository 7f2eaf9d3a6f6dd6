//! Objects, back into the cluster that runs: of a backup, or of the cluster's own past. What is to be done is decided before anything is
//! ([`keelson_backup::objects`]); what fails is told, and the rest goes on.

use super::selection::Kinds;
use super::volume::CLAIMS;
use anyhow::Context;
use http::Method;
use keelson_backup::objects::Object;
use keelson_backup::objects::{Planned, Step, clean, owned};
use keelson_client::is_already_exists;
use keelson_client::rest::{JSON, Rest};
use serde_json::Value;
use std::collections::BTreeMap;

/// Finds the volumes of claims that come back.
pub trait Claims {
    /// Of the claim that is to be made (`value`), and had the volume of this name. Says what became of its data. `None`: there is nothing to say.
    ///
    /// # Errors
    ///
    /// If the claim had better not be made.
    async fn fill(&self, to: &Rest, claim: &Object, name: &str, value: &mut Value) -> anyhow::Result<Option<String>>;
}

pub struct Back<'a, C> {
    pub to: &'a Rest,
    /// What the cluster has.
    pub kinds: &'a Kinds,
    pub dry_run: bool,
    pub claims: C,
}

impl<C: Claims> Back<'_, C> {
    /// Says how many steps failed.
    pub async fn run(&self, planned: &[Planned]) -> usize {
        // Uids as they were, and are.
        let mut now = BTreeMap::new();
        let mut failed = 0;
        let mut left: BTreeMap<&str, usize> = BTreeMap::new();
        for step in planned {
            let object = &step.object;
            let told = format!("{}/{}", object.resource, object.name());
            if let Some(live) = &step.live {
                now.insert(object.uid().to_string(), live.clone());
            }
            if let Step::Left(why) = step.step {
                *left.entry(why).or_default() += 1;
                continue;
            }
            let (word, lines) = words(step);
            let acts = matches!(step.step, Step::Create | Step::Update(_));
            let done = match acts && !self.dry_run {
                true => self.act(step, &mut now).await,
                false => Ok(Vec::new()),
            };
            match done {
                Ok(notes) => {
                    println!("{word:<9} {told}");
                    lines.iter().chain(&notes).for_each(|line| println!("          {line}"));
                }
                Err(error) => {
                    failed += 1;
                    println!("failed    {told}\n          {error:#}");
                }
            }
        }
        for (why, many) in left {
            println!("left      {many}: {why}");
        }
        failed
    }

    /// Gives what else is to be told.
    async fn act(&self, step: &Planned, now: &mut BTreeMap<String, String>) -> anyhow::Result<Vec<String>> {
        let object = &step.object;
        let id = self
            .kinds
            .get(&object.resource)
            .context("the cluster doesn't know that kind")?;
        let (mut value, lost) = owned(object, clean(object), now);
        let mut notes = Vec::new();
        if lost > 0 {
            notes.push(format!("without {lost} owners that aren't there"));
        }
        let (namespace, name) = (object.namespace(), object.name());
        let answer = match step.step {
            Step::Create => {
                let volume = object.value.pointer("/spec/volumeName").and_then(Value::as_str);
                if object.resource == CLAIMS.plural
                    && let Some(volume) = volume
                {
                    notes.extend(self.claims.fill(self.to, object, volume, &mut value).await?);
                }
                match self.to.create_raw(id, namespace, serde_json::to_vec(&value)?).await {
                    // Its controller was quicker, as with every namespace's account.
                    Err(error) if is_already_exists(&error) => {
                        notes.push("somebody has made it meanwhile: it stays so".into());
                        self.to.get_raw(id, namespace, name, "", JSON).await?
                    }
                    answer => answer?,
                }
            }
            _ => {
                let live = self.to.get_raw(id, namespace, name, "", JSON).await?;
                let live: Value = serde_json::from_slice(&live)?;
                value["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
                if object.resource == CLAIMS.plural {
                    value["spec"]["volumeName"] = live["spec"]["volumeName"].clone();
                }
                let path = format!("{}/{name}", id.path(namespace));
                self.to
                    .call(Method::PUT, &path, JSON, serde_json::to_vec(&value)?)
                    .await?
            }
        };
        let made: Value = serde_json::from_slice(&answer)?;
        if let Some(uid) = made.pointer("/metadata/uid").and_then(Value::as_str) {
            now.insert(object.uid().to_string(), uid.to_string());
        }
        Ok(notes)
    }
}

fn words(step: &Planned) -> (&'static str, Vec<String>) {
    match &step.step {
        Step::Create => ("create", Vec::new()),
        Step::Update(lines) => ("update", lines.clone()),
        Step::Same => ("same", Vec::new()),
        Step::Kept(lines) => ("kept", lines.clone()),
        Step::Left(_) => ("left", Vec::new()),
    }
}
