//! OwnerReferencesPermissionEnforcement: who gives an object an owner may delete it, and who lets it hold up its owner's
//! deletion may write the owner's finalizers.

use super::super::{Phase, Plugin, Review};
use crate::authz::Attributes;
use async_trait::async_trait;
use keelson_api::{ApiResult, Map, Object, Str, Value};
use keelson_registry::Operation;
use std::collections::HashSet;

pub struct OwnerReferencesPermissionEnforcement;

fn owners(object: &Object) -> impl Iterator<Item = &Map> {
    let list = object.at(&["metadata", "ownerReferences"]).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object)
}

fn holds_up(owner: &Map) -> bool {
    owner.get("blockOwnerDeletion").and_then(Value::as_bool) == Some(true)
}

fn uid(owner: &Map) -> &str {
    owner.str("uid").unwrap_or_default()
}

/// Those that hold up a deletion and didn't before.
fn held_up<'a>(new: &'a Object, old: Option<&Object>) -> Vec<&'a Map> {
    let old = old.into_iter().flat_map(owners);
    let before: HashSet<&str> = old.filter(|owner| holds_up(owner)).map(uid).collect();
    owners(new)
        .filter(|owner| holds_up(owner) && !before.contains(uid(owner)))
        .collect()
}

/// What may not be done, as upstream tells it: the reason, and what went wrong.
async fn refusal(review: &Review<'_>, attributes: &Attributes) -> Option<String> {
    let verdict = review.authorizer.authorize(attributes).await;
    let error = verdict.error.clone().unwrap_or_else(|| "<nil>".into());
    (!verdict.is_allowed()).then(|| format!("{}, {error}", verdict.reason()))
}

fn finalizers(review: &Review<'_>, group: Str, version: Str, resource: Str) -> Attributes {
    Attributes {
        user: review.cx.user.as_ref().clone(),
        verb: "update".into(),
        is_resource_request: true,
        api_group: group,
        api_version: version,
        resource,
        subresource: "finalizers".into(),
        ..Attributes::default()
    }
}

/// Writing the finalizers of an owner; what it is has to be known.
fn of_owner(review: &Review<'_>, owner: &Map) -> Result<Attributes, String> {
    let text = |key: &str| owner.str(key).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let table = review.lookup.engine().table.snapshot();
    let Some(def) = table.by_kind(group, version, kind) else {
        return Err(format!(
            "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {api_version} \
             Kind {kind}: no matches for kind {kind:?} in version {api_version:?}"
        ));
    };
    let gvr = &def.gvr;
    let mut attributes = finalizers(review, gvr.group.clone(), gvr.version.clone(), gvr.resource.clone());
    attributes.name = text("name").into();
    if def.namespaced {
        attributes.namespace = review.cx.namespace.as_str().into();
    }
    Ok(attributes)
}

#[async_trait]
impl Plugin for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let writes = matches!(review.op, Operation::Create | Operation::Update);
        // A pod's status has no owners to change.
        let Some(new) = new.filter(|_| writes && !review.is_sub("", "pods", "status")) else {
            return Ok(());
        };
        let changes = match old {
            Some(old) => !owners(new).eq(owners(old)),
            None => owners(new).next().is_some(),
        };
        if !changes {
            return Ok(());
        }
        let cx = review.cx;
        // Who makes something could as well not have made it.
        if review.op != Operation::Create {
            let deletes = Attributes {
                user: cx.user.as_ref().clone(),
                verb: "delete".into(),
                is_resource_request: true,
                api_group: cx.def.gvr.group.clone(),
                api_version: cx.def.gvr.version.clone(),
                resource: cx.def.gvr.resource.clone(),
                subresource: cx.subresource.clone(),
                namespace: cx.namespace.clone(),
                name: cx.name.clone(),
                ..Attributes::default()
            };
            if let Some(why) = refusal(review, &deletes).await {
                let why = format!("cannot set an ownerRef on a resource you can't delete: {why}");
                return Err(review.forbidden(Some(new), why));
            }
        }
        let held_up = held_up(new, old);
        if held_up.is_empty() {
            return Ok(());
        }
        let any = Str::const_new("*");
        let mut anything = finalizers(review, any.clone(), any.clone(), any.clone());
        anything.name = any;
        if refusal(review, &anything).await.is_none() {
            return Ok(());
        }
        for owner in held_up {
            let attributes = of_owner(review, owner).map_err(|why| review.forbidden(Some(new), why))?;
            if let Some(why) = refusal(review, &attributes).await {
                let why = format!(
                    "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {why}"
                );
                return Err(review.forbidden(Some(new), why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn however_many_owners_there_are_who_is_new_is_found_at_once() {
        let owned = |n: usize| {
            let owner = |i: usize| value!({"uid": format!("u{i}").as_str(), "blockOwnerDeletion": true});
            let owners: Vec<Value> = (0..n).map(owner).collect();
            let mut object = Object::new();
            object.set_at(&["metadata", "ownerReferences"], owners);
            object
        };
        let began = std::time::Instant::now();
        let (old, new) = (owned(30_000), owned(30_001));
        let found: Vec<&str> = held_up(&new, Some(&old)).into_iter().map(uid).collect();
        assert_eq!(found, ["u30000"]);
        assert_eq!(held_up(&old, None).len(), 30_000);
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    }
}
