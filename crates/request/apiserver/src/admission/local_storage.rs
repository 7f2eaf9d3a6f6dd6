//! NodeRestriction, for who makes volumes of a node's own disk: each node writes its own volumes, the claims that are to get one from it,
//! and how much room it has. What RBAC grants to all of them together is divided among them here.

use super::Review;
use keelson_api::{ApiResult, Object, Value};
use keelson_registry::Operation;
use keelson_registry::strategy::same;

const DRIVER: &str = "local.keelson.dev";
const TOPOLOGY: &str = "topology.local.keelson.dev/node";
const MANAGED_BY: &str = "snapshot.storage.kubernetes.io/managed-by";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

pub async fn check(review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
    let user = review.cx.user.clone();
    let Some(node) = user.local_storage_node() else {
        return Err(review.forbidden(new, "only nodes make volumes of their disks, each under its own name"));
    };
    let def = &review.cx.def;
    let done = match (
        def.gvr.group.as_str(),
        def.gvr.resource.as_str(),
        review.cx.subresource.as_str(),
    ) {
        ("", "persistentvolumes", "") => volume(review, node, new, old).await?,
        ("", "persistentvolumeclaims", "") => claim(review, node, new, old).await?,
        ("", "persistentvolumeclaims", "status") => claim_status(review, node, new, old).await?,
        ("storage.k8s.io", "csistoragecapacities", "") => [new, old]
            .into_iter()
            .flatten()
            .all(|o| is_room_of(o, node))
            .then_some(())
            .ok_or("can only tell its own room"),
        ("snapshot.storage.k8s.io", "volumesnapshotcontents", "" | "status") => content(review, node, new, old),
        ("" | "events.k8s.io", "events", "") => Ok(()),
        _ => Err("may not write this"),
    };
    done.map_err(|why| review.forbidden(new.or(old), format!("node {node:?} {why}")))
}

type Judged = Result<(), &'static str>;

/// Whether a volume is of the node's own disk, and of no other's too.
fn is_volume_of(volume: &Object, node: &str) -> bool {
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let path = ["spec", "nodeAffinity", "required", "nodeSelectorTerms"];
    let terms = list(volume.at(&path));
    let [term] = terms.as_slice() else { return false };
    let expressions = list(term.get("matchExpressions"));
    let [here] = expressions.as_slice() else { return false };
    let text = |key: &str| here.get(key).and_then(Value::as_str);
    let values = list(here.get("values"));
    volume.str_at(&["spec", "csi", "driver"]) == Some(DRIVER)
        && text("key") == Some(TOPOLOGY)
        && text("operator") == Some("In")
        && matches!(values.as_slice(), [only] if only.as_str() == Some(node))
}

/// Whether a volume says no more than who makes them writes. A node may read the secrets that volumes of its pods name.
fn is_plain(volume: &Object) -> bool {
    const KNOWN: [&str; 4] = ["driver", "volumeHandle", "fsType", "volumeAttributes"];
    let csi = volume.at(&["spec", "csi"]).and_then(Value::as_object);
    csi.is_some_and(|csi| csi.keys().all(|key| KNOWN.contains(&key.as_str())))
}

fn is_room_of(room: &Object, node: &str) -> bool {
    let labels = room.at(&["nodeTopology", "matchLabels"]).and_then(Value::as_object);
    let only = labels.is_some_and(|l| l.len() == 1 && l.str(TOPOLOGY) == Some(node));
    only && room.at(&["nodeTopology", "matchExpressions"]).is_none()
}

/// A picture is for the node that its label names, whoever decided that.
fn is_content_of(content: &Object, node: &str) -> bool {
    let label = content.labels().and_then(|l| l.str(MANAGED_BY));
    label == Some(node) && content.str_at(&["spec", "driver"]) == Some(DRIVER)
}

fn content(review: &Review<'_>, node: &str, new: Option<&Object>, old: Option<&Object>) -> Judged {
    let (Operation::Update, Some(new), Some(old)) = (review.op, new, old) else {
        return Err("can only update contents of snapshots");
    };
    if !is_content_of(old, node) || !is_content_of(new, node) {
        return Err("can only write contents of snapshots of its own disk");
    }
    let apart: [&[&str]; 3] = [&["metadata", "finalizers"], &["metadata", "annotations"], &["status"]];
    differ_only(new, old, &apart)
        .then_some(())
        .ok_or("can only change status, finalizers and annotations of contents of snapshots")
}

fn bare(object: &Object, apart: &[&[&str]]) -> Value {
    let mut object = object.clone();
    for path in apart {
        object.remove_at(path);
    }
    object.set_meta("resourceVersion", "");
    object.meta_mut().remove("managedFields");
    Value::Object(object.0)
}

fn differ_only(new: &Object, old: &Object, apart: &[&[&str]]) -> bool {
    same(Some(&bare(new, apart)), Some(&bare(old, apart)))
}

async fn volume(review: &Review<'_>, node: &str, new: Option<&Object>, old: Option<&Object>) -> ApiResult<Judged> {
    if !old.into_iter().chain(new).all(|v| is_volume_of(v, node)) {
        return Ok(Err("can only write volumes of its own disk"));
    }
    Ok(match (review.op, new, old) {
        (Operation::Create, Some(new), _) => return made_for(review, node, new).await,
        (Operation::Update, Some(new), Some(old)) => {
            let apart: [&[&str]; 3] = [
                &["metadata", "finalizers"],
                &["metadata", "annotations"],
                &["spec", "capacity"],
            ];
            differ_only(new, old, &apart)
                .then_some(())
                .ok_or("can only change size, finalizers and annotations of volumes")
        }
        (Operation::Delete, _, Some(_)) => Ok(()),
        _ => Err("can only create, update and delete volumes"),
    })
}

/// A volume is made for a claim that waits for one from this node: else it would be given whatever its node likes.
async fn made_for(review: &Review<'_>, node: &str, volume: &Object) -> ApiResult<Judged> {
    let text = |key: &str| volume.str_at(&["spec", "claimRef", key]).unwrap_or_default();
    if volume.name() != format!("pvc-{}", text("uid")) {
        return Ok(Err("can only create volumes that are named after their claims"));
    }
    if !is_plain(volume) {
        return Ok(Err("can only create volumes that name no secrets"));
    }
    let found = review
        .lookup
        .get("", "persistentvolumeclaims", text("namespace"), text("name"))
        .await?;
    let waits = found.is_some_and(|claim| {
        claim.uid() == text("uid")
            && claim.annotation(SELECTED_NODE) == Some(node)
            && claim.str_at(&["spec", "volumeName"]).unwrap_or_default().is_empty()
    });
    Ok(waits
        .then_some(())
        .ok_or("can only create volumes for claims that wait for it"))
}

/// A node offers itself for a claim that may be anywhere, and gives back one that it has no room for.
async fn claim(review: &Review<'_>, node: &str, new: Option<&Object>, old: Option<&Object>) -> ApiResult<Judged> {
    let (Operation::Update, Some(new), Some(old)) = (review.op, new, old) else {
        return Ok(Err("can only update claims"));
    };
    // A claim whose only annotation comes or goes has the map or hasn't.
    let without = |object: &Object| {
        let mut object = object.clone();
        let annotations = object
            .at(&["metadata", "annotations"])
            .and_then(Value::as_object)
            .cloned();
        let mut annotations = annotations.unwrap_or_default();
        annotations.remove(SELECTED_NODE);
        object.remove_at(&["metadata", "annotations"]);
        (annotations, object)
    };
    let ((new_annotations, new_rest), (old_annotations, old_rest)) = (without(new), without(old));
    if new_annotations != old_annotations || !differ_only(&new_rest, &old_rest, &[]) {
        return Ok(Err("can only change the selected node of claims"));
    }
    Ok(match (old.annotation(SELECTED_NODE), new.annotation(SELECTED_NODE)) {
        (before, after) if before == after => Ok(()),
        (Some(before), None) if before == node => Ok(()),
        (None, Some(after)) if after == node => {
            let class = old.str_at(&["spec", "storageClassName"]).unwrap_or_default();
            let class = review
                .lookup
                .cached("storage.k8s.io", "storageclasses", "", class)
                .await?;
            let anywhere = class.is_some_and(|c| {
                c.str_at(&["provisioner"]) == Some(DRIVER)
                    && c.str_at(&["volumeBindingMode"]) != Some("WaitForFirstConsumer")
            });
            let unbound = old.str_at(&["spec", "volumeName"]).unwrap_or_default().is_empty();
            (anywhere && unbound)
                .then_some(())
                .ok_or("can only offer itself for claims that may be anywhere")
        }
        _ => Err("can only offer itself for claims, and give them back"),
    })
}

/// Claims grow with the node's volumes.
async fn claim_status(
    review: &Review<'_>,
    node: &str,
    new: Option<&Object>,
    old: Option<&Object>,
) -> ApiResult<Judged> {
    let (Some(new), Some(old)) = (new, old) else {
        return Ok(Err("can only update the status of claims"));
    };
    let name = old.str_at(&["spec", "volumeName"]).unwrap_or_default();
    let found = match name.is_empty() {
        true => None,
        false => review.lookup.cached("", "persistentvolumes", "", name).await?,
    };
    let bound = found.is_some_and(|v| {
        is_volume_of(&v, node)
            && v.str_at(&["spec", "claimRef", "uid"])
                .is_some_and(|uid| uid == old.uid())
    });
    if !bound {
        return Ok(Err(
            "can only update the status of claims that have volumes of its own disk",
        ));
    }
    let apart: [&[&str]; 3] = [
        &["status", "conditions"],
        &["status", "allocatedResourceStatuses"],
        &["status", "allocatedResources"],
    ];
    Ok(differ_only(new, old, &apart)
        .then_some(())
        .ok_or("can only tell of claims how their growing goes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn object(value: Value) -> Object {
        Object::try_from(value).expect("an object")
    }

    #[test]
    fn whose_a_volume_is() {
        let volume = |driver: &str, terms: Value| {
            object(value!({"metadata": {"name": "v"}, "spec": {"csi": {"driver": driver},
                "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}}))
        };
        let on = |node: &str| value!({"matchExpressions": [{"key": TOPOLOGY, "operator": "In", "values": [node]}]});
        assert!(is_volume_of(&volume(DRIVER, value!([(on("n1"))])), "n1"));
        assert!(!is_volume_of(&volume(DRIVER, value!([(on("n2"))])), "n1"));
        assert!(!is_volume_of(&volume("other.example", value!([(on("n1"))])), "n1"));
        assert!(
            !is_volume_of(&volume(DRIVER, value!([(on("n1")), (on("n2"))])), "n1"),
            "another's too"
        );
        assert!(!is_volume_of(&volume(DRIVER, value!([])), "n1"), "anybody's");
        let both = value!([{"matchExpressions": [{"key": TOPOLOGY, "operator": "In", "values": ["n1", "n2"]}]}]);
        assert!(!is_volume_of(&volume(DRIVER, both), "n1"));
        assert!(is_plain(&volume(DRIVER, value!([]))));
        let reads = value!({"spec": {"csi": {"driver": DRIVER, "nodePublishSecretRef": {"namespace": "kube-system", "name": "s"}}}});
        assert!(!is_plain(&object(reads)) && !is_plain(&object(value!({"spec": {}}))));
        let room = |labels: Value| object(value!({"metadata": {"name": "r"}, "nodeTopology": {"matchLabels": labels}}));
        assert!(is_room_of(&room(value!({TOPOLOGY: "n1"})), "n1"));
        assert!(!is_room_of(&room(value!({TOPOLOGY: "n2"})), "n1"));
        assert!(!is_room_of(&room(value!({})), "n1"));
    }
}
