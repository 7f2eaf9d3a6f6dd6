//! A daemon set that isn't on the nodes where it should be.

use super::{creation, of_pods, unobserved};
use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::{Picture, labels_of};
use serde_json::Value;

pub fn diagnose(set: &Value, picture: &Picture, report: &mut Report) {
    report.add_all(creation(set, picture));
    let pods = picture.controlled_by("Pod", set);
    of_pods(&pods, picture, report);
    report.add_all(nowhere(set, picture));
    let (wanted, new) = (
        set.number("/status/desiredNumberScheduled").unwrap_or(0),
        set.number("/status/updatedNumberScheduled").unwrap_or(0),
    );
    if set.text("/spec/updateStrategy/type") == "OnDelete" && new < wanted {
        report.add(
            Finding::certain(
                "update-on-delete",
                set.shown(),
                format!("{} of its pods still run the old template: with updateStrategy OnDelete they change when somebody deletes them", wanted - new),
            )
            .mended_by("Delete them one after the other, or set updateStrategy to RollingUpdate."),
        );
    }
    report.add_all(unobserved(set, picture));
}

fn nowhere(set: &Value, picture: &Picture) -> Option<Finding> {
    if set.number("/status/desiredNumberScheduled") != Some(0) || !picture.knows("Node", "") {
        return None;
    }
    let nodes: Vec<&Value> = picture.all("Node", "").collect();
    if nodes.is_empty() {
        return Some(
            Finding::certain("no-nodes", set.shown(), "the cluster has no node")
                .mended_by("Start a node: keelson agent --server … --token …"),
        );
    }
    let wanted = set.pairs("/spec/template/spec/nodeSelector");
    let fits = |n: &&&Value| {
        let has = labels_of(n);
        wanted.iter().all(|(k, v)| has.get(*k).map(String::as_str) == Some(*v))
    };
    let labelled = nodes.iter().filter(fits).count();
    Some(match labelled {
        0 => Finding::certain(
            "node-selector",
            set.shown(),
            "no node has the labels of its nodeSelector, so it wants no pods",
        )
        .shown_by_all(wanted.iter().map(|(k, v)| format!("nodeSelector {k}={v}")))
        .mended_by("Label the nodes that it is for (kubectl label node NAME key=value), or correct the nodeSelector."),
        _ => Finding::likely(
            "no-node-fits",
            set.shown(),
            "no node is one for it, so it wants no pods",
        )
        .shown_by(format!("{labelled} nodes have the labels of its nodeSelector"))
        .mended_by("See the template's node affinity and tolerations against the nodes' labels and taints."),
    })
}
