//! What both servers have in them: the set-up, and sound objects of every kind.

use crate::case::{NAMESPACE, Request};
use crate::side::Side;
use anyhow::{Context, Result};
use keelson_api::resources::{self, ResourceFacts};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

const SETUP: &str = include_str!("../objects/setup.yaml");
const STATUSES: &str = include_str!("../objects/statuses.yaml");
/// The objects by which validation is held to upstream's strategies, and those that they lack.
const OBJECTS: [&str; 2] = [
    include_str!("../../../tools/validation/objects.yaml"),
    include_str!("../objects/more.yaml"),
];
/// Where what bounds others is, so that it bounds nothing of ours.
const BOUNDING: &str = "bounds";

/// A sound object.
#[derive(Clone, Debug)]
pub struct Seed {
    pub facts: &'static ResourceFacts,
    pub object: Value,
    pub namespace: Option<String>,
    pub name: String,
    /// What `/status` is asked with, if the kind has one.
    pub status: Option<Value>,
}

impl Seed {
    fn new(mut object: Value) -> Result<Seed> {
        let text = |at: &str| {
            object
                .pointer(at)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_string()
        };
        let (api_version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let facts = resources::all()
            .find(|r| r.group == group && r.version == version && r.kind == kind)
            .with_context(|| format!("no resource of kind {api_version} {kind}"))?;
        let namespace = facts.namespaced.then(|| match kind.as_str() {
            "ResourceQuota" | "LimitRange" => BOUNDING.to_string(),
            _ => NAMESPACE.to_string(),
        });
        if let Some(namespace) = &namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let status = object.as_object_mut().and_then(|o| o.remove("status"));
        Ok(Seed {
            facts,
            object,
            namespace,
            name,
            status,
        })
    }

    /// `apps/v1 Deployment`
    pub fn kind(&self) -> String {
        match self.facts.group {
            "" => format!("{} {}", self.facts.version, self.facts.kind),
            group => format!("{group}/{} {}", self.facts.version, self.facts.kind),
        }
    }
    /// Whether it can be read after it was made: reviews and bindings can't.
    pub fn kept(&self) -> bool {
        self.facts.has_verb("get")
    }
    pub fn collection(&self) -> String {
        collection(self.facts, self.namespace.as_deref())
    }
    pub fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }
    pub fn has_status(&self) -> bool {
        self.facts.subresource("status").is_some()
    }
    /// The object with its status in it.
    pub fn whole(&self) -> Value {
        let mut whole = self.object.clone();
        if let Some(status) = &self.status {
            whole["status"] = status.clone();
        }
        whole
    }
}

pub fn collection(facts: &ResourceFacts, namespace: Option<&str>) -> String {
    let head = match facts.group {
        "" => format!("/api/{}", facts.version),
        group => format!("/apis/{group}/{}", facts.version),
    };
    match namespace {
        Some(namespace) => format!("{head}/namespaces/{namespace}/{}", facts.resource),
        None => format!("{head}/{}", facts.resource),
    }
}

fn documents(text: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(text).context("the objects are no YAML")
}

/// The sound objects, in the order in which they are made.
pub fn seeds() -> Result<Vec<Seed>> {
    let mut taken: HashSet<(String, String)> = HashSet::new();
    for object in documents(SETUP)? {
        taken.insert((object["kind"].to_string(), object["metadata"]["name"].to_string()));
    }
    let mut statuses = documents(STATUSES)?;
    let mut seeds = Vec::new();
    for object in OBJECTS
        .iter()
        .map(|text| documents(text))
        .collect::<Result<Vec<_>>>()?
        .concat()
    {
        let mut object = object;
        while !taken.insert((object["kind"].to_string(), object["metadata"]["name"].to_string())) {
            let name = object["metadata"]["name"].as_str().unwrap_or("review");
            object["metadata"]["name"] = json!(format!("{name}-2"));
        }
        let mut seed = Seed::new(object)?;
        let kind = &seed.object["kind"];
        if let Some(at) = statuses
            .iter()
            .position(|s| s["kind"] == *kind && s["apiVersion"] == seed.object["apiVersion"])
        {
            seed.status = Some(statuses.swap_remove(at)["status"].take());
        }
        if !seed.kept() {
            seed.object["metadata"] = Value::Object(Map::new());
        }
        seeds.push(seed);
    }
    Ok(seeds)
}

fn made(object: &Value) -> Result<Request> {
    let seed = Seed::new(object.clone())?;
    let collection = match object.pointer("/metadata/namespace").and_then(Value::as_str) {
        Some(namespace) => collection(seed.facts, Some(namespace)),
        None => seed.collection(),
    };
    Ok(Request::new("POST", format!("{collection}?fieldManager=setup")).json(object))
}

/// Makes what everything else needs.
pub async fn set_up(side: &Side) -> Result<()> {
    for object in documents(SETUP)? {
        let request = made(&object)?;
        let answer = side.ask(&request).await?;
        anyhow::ensure!(answer.code == 201, "{}: {}", request.path, answer.text());
    }
    Ok(())
}

/// Makes the sound objects. Tells of those that weren't taken: what is tried on them says little.
pub async fn sow(side: &Side, seeds: &[Seed]) -> Result<Vec<String>> {
    let mut refused = Vec::new();
    for seed in seeds.iter().filter(|s| s.kept()) {
        let path = format!("{}?fieldManager=setup", seed.collection());
        let answer = side.ask(&Request::new("POST", path).json(&seed.object)).await?;
        if answer.code != 201 {
            refused.push(format!("{}: {} {}", seed.path(), answer.code, answer.body["message"]));
        }
    }
    // Controllers within the server write statuses of some kinds at once.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_that_can_be_made_has_a_sound_object() {
        let seeds = seeds().unwrap_or_default();
        let without: Vec<&str> = resources::all()
            .filter(|r| r.has_verb("create") && seeds.iter().all(|s| !std::ptr::eq(s.facts, *r)))
            .map(|r| r.kind)
            .collect();
        // A binding is of a pod that exists; a pod's request for a certificate comes from its own node only.
        assert_eq!(without, ["Binding", "PodCertificateRequest"]);
    }
}
