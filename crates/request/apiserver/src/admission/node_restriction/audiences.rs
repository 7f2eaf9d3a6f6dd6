//! For whom a node may ask for a pod's tokens: the audiences that the pod's volumes name, directly or by their CSI drivers, and
//! those that somebody has allowed the node by `request-serviceaccounts-token-audience`.

use super::super::Review;
use crate::authz::Attributes;
use keelson_api::{Map, Object, Value};

/// `Err`: why not, in upstream's words.
pub async fn check(review: &Review<'_>, request: &Object, pod: &Object) -> Result<(), String> {
    let list = request.at(&["spec", "audiences"]).and_then(Value::as_array);
    let audience = match list.map_or(&[][..], |l| l) {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Err("node may only request 0 or 1 audiences".into()),
    };
    let mut failed = Vec::new();
    for volume in pod
        .at(&["spec", "volumes"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        match volume.as_object() {
            Some(volume) if names(volume, audience) => return Ok(()),
            Some(volume) => match by_driver(review, pod, volume, audience).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(why) => failed.push(why),
            },
            None => {}
        }
    }
    match failed.as_slice() {
        [] => {}
        [one] => return Err(format!("error validating audience {audience:?}: {one}")),
        all => return Err(format!("error validating audience {audience:?}: [{}]", all.join(", "))),
    }
    let cx = review.cx;
    let user = &cx.user.name;
    let asked = Attributes {
        user: (*cx.user).clone(),
        verb: "request-serviceaccounts-token-audience".into(),
        is_resource_request: true,
        api_group: cx.def.gvr.group.clone(),
        api_version: cx.def.gvr.version.clone(),
        resource: audience.into(),
        namespace: cx.namespace.clone(),
        name: cx.name.clone(),
        ..Attributes::default()
    };
    let verdict = review.authorizer.authorize(&asked).await;
    if verdict.is_allowed() {
        return Ok(());
    }
    match verdict.error {
        Some(error) => Err(format!(
            "error authorizing {user} to request tokens for audience {audience:?}: {error}"
        )),
        None => Err(format!(
            "{user} is not authorized to request tokens for audience {audience:?}"
        )),
    }
}

/// Whether the volume projects a token for the audience.
fn names(volume: &Map, audience: &str) -> bool {
    let sources = volume.obj("projected").and_then(|p| p.arr("sources"));
    let mut tokens = sources
        .into_iter()
        .flatten()
        .filter_map(|s| s.get("serviceAccountToken"));
    tokens.any(|token| token.get("audience").and_then(Value::as_str).unwrap_or_default() == audience)
}

/// Whether the volume's driver is told tokens for the audience.
async fn by_driver(review: &Review<'_>, pod: &Object, volume: &Map, audience: &str) -> Result<bool, String> {
    let claim = volume.obj("persistentVolumeClaim").and_then(|c| c.str("claimName"));
    let driver = match (volume.obj("ephemeral"), claim, volume.obj("csi")) {
        (Some(e), ..) if e.get("volumeClaimTemplate").is_some_and(|t| !t.is_null()) => {
            let name = format!("{}-{}", pod.name(), volume.str("name").unwrap_or_default());
            of_claim(review, &name).await?
        }
        (_, Some(claim), _) => of_claim(review, claim).await?,
        (_, None, Some(csi)) => csi.str("driver").unwrap_or_default().to_string(),
        _ => String::new(),
    };
    if driver.is_empty() {
        return Ok(false);
    }
    let found = found(review, "storage.k8s.io", "csidrivers", "", &driver).await?;
    let told = found.at(&["spec", "tokenRequests"]).and_then(Value::as_array);
    let mut told = told.into_iter().flatten();
    Ok(told.any(|r| r.get("audience").and_then(Value::as_str).unwrap_or_default() == audience))
}

/// The driver of a claim's volume; empty: it has none.
async fn of_claim(review: &Review<'_>, claim: &str) -> Result<String, String> {
    let claim = found(review, "", "persistentvolumeclaims", &review.cx.namespace, claim).await?;
    let volume = claim.str_at(&["spec", "volumeName"]).unwrap_or_default();
    if volume.is_empty() {
        return Err("persistentvolume \"\" not found".into());
    }
    let volume = found(review, "", "persistentvolumes", "", volume).await?;
    Ok(volume
        .str_at(&["spec", "csi", "driver"])
        .unwrap_or_default()
        .to_string())
}

async fn found(
    review: &Review<'_>,
    group: &str,
    resource: &str,
    namespace: &str,
    name: &str,
) -> Result<Object, String> {
    let object = review.lookup.cached(group, resource, namespace, name).await;
    let object = object.map_err(|e| e.message)?;
    // As listers name what they don't have.
    object.ok_or_else(|| match group {
        "" => format!("{} {name:?} not found", resource.trim_end_matches('s')),
        group => format!("{}.{group} {name:?} not found", resource.trim_end_matches('s')),
    })
}
