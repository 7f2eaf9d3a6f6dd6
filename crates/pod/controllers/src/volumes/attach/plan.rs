//! What is to be attached to a node, and what detached from it. Pure.

use super::world::Volume;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use keelson_client::ApiObject;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A volume that nobody wants is given this long to be unmounted; a node that isn't healthy loses it then all the same.
pub const UNMOUNT: Duration = Duration::from_secs(6 * 60);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume that pods of the node want, and these pods.
pub struct Wanted {
    pub volume: Volume,
    pub pods: Vec<Arc<Pod>>,
}

/// One node, as far as attaching goes. Volumes are known by their unique names.
pub struct Facts<'a> {
    /// None: it is gone.
    pub node: Option<&'a Node>,
    pub wanted: &'a BTreeMap<String, Wanted>,
    pub attached: &'a BTreeMap<String, Arc<VolumeAttachment>>,
    /// What the node said last that it has in use. None: it was never heard, and may have anything.
    pub in_use: Option<&'a BTreeSet<String>>,
    /// For how long a volume has been unwanted.
    pub unwanted: &'a dyn Fn(&str) -> Duration,
    /// The other nodes that a volume is attached to.
    pub elsewhere: &'a dyn Fn(&Volume) -> Vec<String>,
}

#[derive(Debug, PartialEq)]
pub struct Detach {
    pub name: String,
    pub attachment: String,
    pub uid: String,
    /// The node itself is asked once more whether it has the volume in use.
    pub asks: bool,
}

/// What a volume that is wanted waits for.
#[derive(Debug, PartialEq)]
pub enum Waits {
    /// Its attachment is to be made.
    Creation,
    /// The driver's attacher.
    Attacher,
    /// The attacher again: this is what came of it.
    Failed(String),
    /// Other nodes that have it.
    Nodes(Vec<String>),
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub detach: Vec<Detach>,
    pub waits: BTreeMap<String, Waits>,
    /// What the node's status says is attached.
    pub reported: BTreeSet<String>,
    /// When time alone changes something.
    pub again: Option<Duration>,
}

pub fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|s| s.attached)
}

fn is_healthy(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.into_iter().any(|t| t.key == OUT_OF_SERVICE)
}

/// Whether a node, as it stands in the API now, keeps a volume from being detached: it says that it has it in use, or it is told still
/// that it has it and may begin to use it.
pub fn keeps(node: &Node, volume: &str) -> bool {
    let status = node.status.as_ref();
    let used = status.and_then(|s| s.volumes_in_use.as_ref());
    let told = status.and_then(|s| s.volumes_attached.as_ref());
    used.into_iter().flatten().any(|name| name == volume) || told.into_iter().flatten().any(|v| v.name == volume)
}

pub fn plan(facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    let healthy = facts.node.is_some_and(is_healthy);
    let out = facts.node.is_some_and(is_out_of_service);
    for (name, attachment) in facts.attached.iter().filter(|(n, _)| !facts.wanted.contains_key(*n)) {
        if attachment.is_deleting() {
            continue;
        }
        let waited = (facts.unwanted)(name);
        let late = waited >= UNMOUNT;
        let mounted = facts.in_use.is_none_or(|all| all.contains(name));
        if mounted && !out && (healthy || !late) {
            if !late {
                let rest = UNMOUNT - waited;
                plan.again = Some(plan.again.map_or(rest, |a| a.min(rest)));
            }
            if is_attached(attachment) {
                plan.reported.insert(name.clone());
            }
            continue;
        }
        plan.detach.push(Detach {
            name: name.clone(),
            attachment: attachment.name().into(),
            uid: attachment.uid().into(),
            asks: !out && (healthy || !late),
        });
    }
    for (name, wanted) in facts.wanted {
        let waits = match facts.attached.get(name) {
            Some(attachment) if attachment.is_deleting() => Waits::Failed("volume attachment is being deleted".into()),
            Some(attachment) if is_attached(attachment) => {
                plan.reported.insert(name.clone());
                continue;
            }
            Some(attachment) => match attachment.status.as_ref().and_then(|s| s.attach_error.as_ref()) {
                Some(error) => Waits::Failed(error.message.clone().unwrap_or_default()),
                None => Waits::Attacher,
            },
            None if wanted.volume.shared => Waits::Creation,
            None => match (facts.elsewhere)(&wanted.volume) {
                none if none.is_empty() => Waits::Creation,
                others => Waits::Nodes(others),
            },
        };
        plan.waits.insert(name.clone(), waits);
    }
    plan
}

/// What a pod is told whose volume other nodes have. Names of pods of other namespaces are not for it.
pub fn taken(pod: &Pod, users: &[Arc<Pod>]) -> String {
    if users.is_empty() {
        return "Volume is already exclusively attached to one node, waiting on detach before it can be attached to another node"
            .into();
    }
    let (near, far): (Vec<_>, Vec<_>) = users.iter().partition(|u| u.namespace() == pod.namespace());
    if near.is_empty() {
        return format!("Volume is already used by {} pod(s) in different namespaces", far.len());
    }
    let names: Vec<_> = near.iter().map(|p| p.name()).collect();
    let mut text = format!("Volume is already used by pod(s) {}", names.join(", "));
    if !far.is_empty() {
        text += &format!(" and {} pod(s) in different namespaces", far.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(more: &str) -> Node {
        Node::decode(format!(r#"{{"metadata":{{"name":"n"}}{more}}}"#).as_bytes()).expect("a node")
    }

    fn attachment(attached: bool, more: &str) -> Arc<VolumeAttachment> {
        let text = format!(
            r#"{{"metadata":{{"name":"csi-1","uid":"u"{more}}},"spec":{{"attacher":"d","nodeName":"n","source":{{}}}},"status":{{"attached":{attached}}}}}"#
        );
        Arc::new(VolumeAttachment::decode(text.as_bytes()).expect("an attachment"))
    }

    const READY: &str = r#","status":{"conditions":[{"type":"Ready","status":"True"}]}"#;
    const SILENT: &str = r#","status":{"conditions":[{"type":"Ready","status":"Unknown"}]}"#;
    const OUT: &str =
        r#","spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","value":"x","effect":"NoExecute"}]}"#;

    #[test]
    fn what_nobody_wants_goes_once_it_is_unmounted_or_the_node_is_given_up() {
        let attached = BTreeMap::from([("v".to_string(), attachment(true, ""))]);
        let used = BTreeSet::from(["v".to_string()]);
        let free = BTreeSet::new();
        let judge = |node: Option<&Node>, in_use: Option<&BTreeSet<String>>, waited: u64| {
            plan(&Facts {
                node,
                wanted: &BTreeMap::new(),
                attached: &attached,
                in_use,
                unwanted: &|_| Duration::from_secs(waited),
                elsewhere: &|_| Vec::new(),
            })
        };
        let (ready, silent, out) = (node(READY), node(SILENT), node(OUT));
        let asks = |p: &Plan| p.detach.first().map(|d| d.asks);
        assert_eq!(asks(&judge(Some(&ready), Some(&free), 0)), Some(true));
        let held = judge(Some(&ready), Some(&used), 10);
        assert_eq!((asks(&held), held.again), (None, Some(Duration::from_secs(350))));
        assert!(held.reported.contains("v"), "what isn't detached is reported");
        assert_eq!(
            asks(&judge(Some(&ready), Some(&used), 3600)),
            None,
            "a healthy node keeps it"
        );
        assert_eq!(
            asks(&judge(Some(&ready), Some(&free), 3600)),
            Some(true),
            "what it said is old by now"
        );
        assert_eq!(asks(&judge(Some(&silent), Some(&used), 359)), None);
        assert_eq!(asks(&judge(Some(&silent), Some(&used), 360)), Some(false));
        assert_eq!(asks(&judge(Some(&out), Some(&used), 0)), Some(false));
        assert_eq!(asks(&judge(None, None, 10)), None, "it may be mounted");
        assert_eq!(asks(&judge(None, Some(&free), 10)), Some(true));
        assert_eq!(asks(&judge(None, None, 360)), Some(false));
    }

    #[test]
    fn a_node_that_is_told_that_it_has_a_volume_may_use_it() {
        let told = |status: &str| keeps(&node(&format!(r#","status":{{{status}}}"#)), "v");
        assert!(told(r#""volumesInUse":["v"]"#));
        assert!(told(r#""volumesAttached":[{"name":"v","devicePath":""}]"#));
        assert!(!told(
            r#""volumesInUse":["w"],"volumesAttached":[{"name":"w","devicePath":""}]"#
        ));
        assert!(!told(""));
    }

    #[test]
    fn what_pods_are_told() {
        let pod = |ns: &str, name: &str| {
            let text = format!(r#"{{"metadata":{{"namespace":"{ns}","name":"{name}"}}}}"#);
            Arc::new(Pod::decode(text.as_bytes()).expect("a pod"))
        };
        let (a, b, c) = (pod("x", "a"), pod("x", "b"), pod("y", "c"));
        assert_eq!(
            taken(&a, &[b.clone(), c.clone()]),
            "Volume is already used by pod(s) b and 1 pod(s) in different namespaces"
        );
        assert_eq!(
            taken(&c, &[a, b]),
            "Volume is already used by 2 pod(s) in different namespaces"
        );
        assert!(taken(&c, &[]).starts_with("Volume is already exclusively attached to one node"));
    }
}
