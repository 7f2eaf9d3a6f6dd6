//! The custom resources of `snapshot.storage.k8s.io/v1`: names, columns and rules are upstream's.

use keelson_client::snapshots::GROUP;
use serde_json::{Value, json};

/// Of upstream's review of the kinds: a group under k8s.io has to say where it was approved.
const APPROVED: &str = "https://github.com/kubernetes-csi/external-snapshotter/pull";
/// On definitions of ours: others are left as they are.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const US: &str = "keelson";
const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// What a definition is made of.
struct Kind {
    name: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
    /// The number of the review.
    review: u32,
    description: &'static str,
    columns: Value,
    properties: Value,
    required: &'static [&'static str],
    has_status: bool,
}

pub fn all() -> Vec<Value> {
    [snapshots(), contents(), classes()]
        .into_iter()
        .map(definition)
        .collect()
}

fn definition(kind: Kind) -> Value {
    let singular = kind.name.to_lowercase();
    let plural = match singular.strip_suffix("class") {
        Some(_) => format!("{singular}es"),
        None => format!("{singular}s"),
    };
    let mut properties = kind.properties;
    properties["apiVersion"] = json!({"type": "string"});
    properties["kind"] = json!({"type": "string"});
    properties["metadata"] = json!({"type": "object"});
    let mut version = json!({
        "name": "v1", "served": true, "storage": true,
        "additionalPrinterColumns": kind.columns,
        "schema": {"openAPIV3Schema": {"type": "object", "description": kind.description, "properties": properties,
            "required": kind.required}},
    });
    if kind.has_status {
        version["subresources"] = json!({"status": {}});
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}"), "labels": {MANAGED_BY: US},
            "annotations": {"api-approved.kubernetes.io": format!("{APPROVED}/{}", kind.review)}},
        "spec": {
            "group": GROUP, "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "names": {"kind": kind.name, "listKind": format!("{}List", kind.name), "plural": plural, "singular": singular,
                "shortNames": kind.short},
            "versions": [version],
        },
    })
}

fn column(name: &str, kind: &str, path: &str, description: &str) -> Value {
    let mut column = json!({"name": name, "type": kind, "jsonPath": path});
    if !description.is_empty() {
        column["description"] = description.into();
    }
    column
}

fn age() -> Value {
    column("Age", "date", ".metadata.creationTimestamp", "")
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn rule(message: &str, rule: &str) -> Value {
    json!({"message": message, "rule": rule})
}

/// A text that stays what it is.
fn fixed(name: &str, description: &str) -> Value {
    let mut field = text(description);
    field["x-kubernetes-validations"] = json!([rule(&format!("{name} is immutable"), "self == oldSelf")]);
    field
}

/// Two fields, one of which is set and stays set.
fn one_of(a: &str, b: &str) -> Value {
    let stays = |name: &str| {
        rule(
            &format!("{name} is required once set"),
            &format!("!has(oldSelf.{name}) || has(self.{name})"),
        )
    };
    json!([
        stays(a),
        stays(b),
        rule(
            &format!("exactly one of {b} and {a} must be set"),
            &format!("(has(self.{b}) && !has(self.{a})) || (!has(self.{b}) && has(self.{a}))"),
        ),
    ])
}

fn error() -> Value {
    json!({"type": "object", "description": "The last failure; cleared by success.", "properties": {
        "message": text("What happened."),
        "time": {"type": "string", "format": "date-time", "description": "When it happened."}}})
}

fn policy(description: &str) -> Value {
    json!({"type": "string", "enum": ["Delete", "Retain"], "description": description})
}

fn snapshots() -> Kind {
    let (claim, content) = ("persistentVolumeClaimName", "volumeSnapshotContentName");
    let class = json!({"type": "string",
        "description": "The class. Without one, the default class of the volume's driver.",
        "x-kubernetes-validations": [rule("volumeSnapshotClassName must not be the empty string when set", "size(self) > 0")]});
    Kind {
        name: "VolumeSnapshot",
        short: &["vs"],
        namespaced: true,
        review: 814,
        description: "A wish for a picture of a volume, or for one that is there.",
        columns: json!([
            column(
                "ReadyToUse",
                "boolean",
                ".status.readyToUse",
                "Whether claims can be filled from it."
            ),
            column(
                "SourcePVC",
                "string",
                ".spec.source.persistentVolumeClaimName",
                "The claim that it is of."
            ),
            column(
                "SourceSnapshotContent",
                "string",
                ".spec.source.volumeSnapshotContentName",
                "The content that was there before."
            ),
            column(
                "RestoreSize",
                "string",
                ".status.restoreSize",
                "The least size of a volume that is filled from it."
            ),
            column("SnapshotClass", "string", ".spec.volumeSnapshotClassName", "Its class."),
            column(
                "SnapshotContent",
                "string",
                ".status.boundVolumeSnapshotContentName",
                "Its content. The two have to name each other."
            ),
            column(
                "CreationTime",
                "date",
                ".status.creationTime",
                "When the picture was taken."
            ),
            age(),
        ]),
        properties: json!({
            "spec": {"type": "object", "required": ["source"], "description": "What is wished for.", "properties": {
                "source": {"type": "object", "description": "Where it comes from. Can't be changed.",
                    "properties": {
                        claim: fixed(claim, "The claim, of the same namespace, that a picture is to be taken of."),
                        content: fixed(content, "The content of a picture that is there.")},
                    "x-kubernetes-validations": one_of(claim, content)},
                "volumeSnapshotClassName": class}},
            "status": {"type": "object", "description": "What became of it.", "properties": {
                "boundVolumeSnapshotContentName": text("Its content. Trust it only if the content names this snapshot."),
                "creationTime": {"type": "string", "format": "date-time", "description": "When the picture was taken."},
                "error": error(),
                "readyToUse": {"type": "boolean", "description": "Whether claims can be filled from it."},
                "restoreSize": {"type": "string", "pattern": QUANTITY, "x-kubernetes-int-or-string": true,
                    "description": "The least size of a volume that is filled from it."},
                "volumeGroupSnapshotName": text("The group that it belongs to.")}},
        }),
        required: &["spec"],
        has_status: true,
    }
}

fn contents() -> Kind {
    let (volume, snapshot) = ("volumeHandle", "snapshotHandle");
    let part = |name: &str| (name.to_string(), json!({"type": "string"}));
    let reference: serde_json::Map<_, _> = [
        "apiVersion",
        "fieldPath",
        "kind",
        "name",
        "namespace",
        "resourceVersion",
        "uid",
    ]
    .into_iter()
    .map(part)
    .collect();
    Kind {
        name: "VolumeSnapshotContent",
        short: &["vsc", "vscs"],
        namespaced: false,
        review: 955,
        description: "A picture of a volume that a driver has, or is to make.",
        columns: json!([
            column(
                "ReadyToUse",
                "boolean",
                ".status.readyToUse",
                "Whether claims can be filled from it."
            ),
            column("RestoreSize", "integer", ".status.restoreSize", "Its size in bytes."),
            column(
                "DeletionPolicy",
                "string",
                ".spec.deletionPolicy",
                "Whether the picture goes with its snapshot."
            ),
            column("Driver", "string", ".spec.driver", "Whose it is."),
            column(
                "VolumeSnapshotClass",
                "string",
                ".spec.volumeSnapshotClassName",
                "Its class."
            ),
            column(
                "VolumeSnapshot",
                "string",
                ".spec.volumeSnapshotRef.name",
                "Its snapshot's name."
            ),
            column(
                "VolumeSnapshotNamespace",
                "string",
                ".spec.volumeSnapshotRef.namespace",
                "Its snapshot's namespace."
            ),
            age(),
        ]),
        properties: json!({
            "spec": {"type": "object", "required": ["deletionPolicy", "driver", "source", "volumeSnapshotRef"],
                "description": "What it is.",
                "properties": {
                    "deletionPolicy": policy("Whether content and picture go with the snapshot (Delete), or stay (Retain)."),
                    "driver": text("The CSI driver's name."),
                    "source": {"type": "object", "description": "Where it comes from. Can't be changed.",
                        "properties": {
                            snapshot: fixed(snapshot, "The driver's name of a picture that was there before."),
                            volume: fixed(volume, "The driver's name of the volume that the picture is to be of.")},
                        "x-kubernetes-validations": one_of(volume, snapshot)},
                    "sourceVolumeMode": fixed("sourceVolumeMode", "Filesystem or Block, if it is known."),
                    "volumeSnapshotClassName": text("The class by which it was made, which may be another by now."),
                    "volumeSnapshotRef": {"type": "object", "description": "Its snapshot.", "properties": reference,
                        "x-kubernetes-map-type": "atomic",
                        "x-kubernetes-validations": [rule(
                            "both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set",
                            "has(self.name) && has(self.__namespace__)")]}},
                "x-kubernetes-validations": [rule("sourceVolumeMode is required once set",
                    "!has(oldSelf.sourceVolumeMode) || has(self.sourceVolumeMode)")]},
            "status": {"type": "object", "description": "What the driver says.", "properties": {
                "creationTime": {"type": "integer", "format": "int64",
                    "description": "When the picture was taken, in nanoseconds since 1970."},
                "error": error(),
                "readyToUse": {"type": "boolean", "description": "Whether claims can be filled from it."},
                "restoreSize": {"type": "integer", "format": "int64", "minimum": 0, "description": "Its size in bytes."},
                "snapshotHandle": text("The driver's name of the picture."),
                "volumeGroupSnapshotHandle": text("The driver's name of the group that it belongs to.")}},
        }),
        required: &["spec"],
        has_status: true,
    }
}

fn classes() -> Kind {
    Kind {
        name: "VolumeSnapshotClass",
        short: &["vsclass", "vsclasses"],
        namespaced: false,
        review: 814,
        description: "How a driver takes pictures.",
        columns: json!([
            column("Driver", "string", ".driver", ""),
            column(
                "DeletionPolicy",
                "string",
                ".deletionPolicy",
                "Whether pictures go with their snapshots."
            ),
            age(),
        ]),
        properties: json!({
            "deletionPolicy": policy("Whether contents and pictures go with their snapshots (Delete), or stay (Retain)."),
            "driver": text("The CSI driver's name."),
            "parameters": {"type": "object", "additionalProperties": {"type": "string"},
                "description": "What the driver is told; it alone knows what they mean."},
        }),
        required: &["deletionPolicy", "driver"],
        has_status: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        let names: Vec<_> = all().iter().map(|d| d["metadata"]["name"].clone()).collect();
        let wanted = ["volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses"];
        assert_eq!(names, wanted.map(|n| json!(format!("{n}.{GROUP}"))));
    }
}
