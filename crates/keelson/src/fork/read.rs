//! Reading all that a cluster has, and all that its copy has.

use crate::backup::selection::{name_of, object_of};
use anyhow::Context;
use keelson_apiserver::planted::{Kept, Places};
use keelson_client::discovery::preferred_resources;
use keelson_client::rest::{Error, JSON};
use keelson_client::{ResourceId, Rest, is_forbidden, is_not_found};
use keelson_fork::Picture;
use keelson_fork::copy::{Manner, copied, kept_in, kind_left};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

/// What is to be put into the copy's store.
pub struct Planted {
    pub kept: Kept,
    pub object: Value,
}

#[derive(Default)]
pub struct Read {
    pub objects: Vec<Planted>,
    /// The ranges of its services' addresses.
    pub service_ranges: Vec<String>,
    pub(super) kinds: usize,
    pub(super) nodes: usize,
    /// Kinds and objects that aren't in the copy, by the reason.
    pub(super) left: BTreeMap<String, Vec<String>>,
}

impl Read {
    /// Kinds that may not be read are left out, and told.
    pub async fn cluster(rest: &Rest, manner: Manner) -> anyhow::Result<Read> {
        let found = preferred_resources(rest).await?;
        let mut read = Read::default();
        for (version, why) in found.failed {
            read.leave(&format!("not to be discovered ({why})"), version);
        }
        let places = Places::default();
        let mut kinds: Vec<ResourceId> = found
            .found
            .into_iter()
            .filter(|kind| kind.can("list") && kind.can("create"))
            .map(|kind| kind.id)
            .collect();
        // Definitions say in which version their objects are kept.
        kinds.sort_by_key(|id| id.plural != ResourceId::DEFINITIONS.plural);
        let mut custom = HashMap::new();
        for id in &kinds {
            let name = name_of(id);
            if let Some(why) = kind_left(&name) {
                read.leave(why, name);
                continue;
            }
            let known = places.built_in(&id.group, &id.plural).or_else(|| custom.get(&name));
            let Some(kept) = known.cloned() else {
                read.leave("the copy has no such kind", name);
                continue;
            };
            let objects = match all(rest, id, &kept).await {
                Ok(objects) => objects,
                Err(error) if is_forbidden(&error) => {
                    read.leave("you may not list them", name);
                    continue;
                }
                Err(error) if is_not_found(&error) => {
                    read.leave("the cluster has them in another version", name);
                    continue;
                }
                Err(error) => return Err(error).with_context(|| format!("listing {name}")),
            };
            if *id == ResourceId::DEFINITIONS {
                custom = objects.iter().filter_map(defined).collect();
            }
            read.take(&name, &kept, objects, manner);
        }
        Ok(read)
    }

    fn leave(&mut self, why: &str, what: String) {
        self.left.entry(why.to_owned()).or_default().push(what);
    }

    fn take(&mut self, resource: &str, kept: &Kept, objects: Vec<Value>, manner: Manner) {
        self.kinds += usize::from(!objects.is_empty());
        for object in objects {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            match resource {
                "nodes" => self.nodes += 1,
                "servicecidrs.networking.k8s.io" if name == "kubernetes" => {
                    let ranges = object["spec"]["cidrs"].as_array().into_iter().flatten();
                    self.service_ranges = ranges.filter_map(Value::as_str).map(str::to_owned).collect();
                }
                _ => {}
            }
            match copied(resource, object, manner) {
                Ok(object) => self.objects.push(Planted {
                    kept: kept.clone(),
                    object,
                }),
                Err(why) => self.leave(why, format!("{resource}/{name}")),
            }
        }
    }

    /// What the copy is.
    pub fn told(&self, manner: Manner) -> String {
        let (objects, kinds, nodes) = (self.objects.len(), self.kinds, self.nodes);
        let mut text = format!("copied: {objects} objects of {kinds} kinds; {nodes} nodes are played\n");
        for (why, what) in &self.left {
            let _ = writeln!(text, "left out: {}: {why}", what.join(", "));
        }
        if !manner.secrets {
            text += "left out: values of secrets but Helm's (--secret-values copies them)\n";
        }
        text += "not in it: webhooks aren't called, cron jobs don't start, nothing is measured, pods run nothing\n";
        text
    }
}

/// A definition's resource, and how its objects are kept.
fn defined(definition: &Value) -> Option<(String, Kept)> {
    let text = |path: &str| definition.pointer(path).and_then(Value::as_str);
    let (group, plural) = (text("/spec/group")?, text("/spec/names/plural")?);
    let kept = Places::custom(group, plural, kept_in(definition)?);
    Some((format!("{plural}.{group}"), kept))
}

/// All objects of a kind, in the version in which they are kept.
async fn all(rest: &Rest, id: &ResourceId, kept: &Kept) -> Result<Vec<Value>, Error> {
    let version = kept.api_version.rsplit('/').next().unwrap_or_default();
    let id = ResourceId {
        version: Cow::Owned(version.to_owned()),
        ..id.clone()
    };
    list(rest, &id).await
}

async fn list(rest: &Rest, id: &ResourceId) -> Result<Vec<Value>, Error> {
    let mut found = Vec::new();
    let mut each = |json: &[u8]| {
        found.push(object_of(id, json).map_err(Error::SerdeError)?.value);
        Ok(())
    };
    rest.list_raw(id, "", "", "", JSON, &mut each).await?;
    Ok(found)
}

/// All that there is now.
pub async fn picture(rest: &Rest) -> anyhow::Result<Picture> {
    let kinds = preferred_resources(rest).await?.found;
    let mut picture = Picture::default();
    for kind in kinds.iter().filter(|kind| kind.can("list") && kind.can("create")) {
        let name = name_of(&kind.id);
        match list(rest, &kind.id).await {
            Ok(objects) => objects.into_iter().for_each(|object| picture.add(&name, object)),
            // Its definition went meanwhile.
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("listing the copy's {name}")),
        }
    }
    Ok(picture)
}
