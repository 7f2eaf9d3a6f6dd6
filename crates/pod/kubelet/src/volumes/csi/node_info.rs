//! What the cluster is told of a node's drivers: the node's own id with each (an annotation), where it is for them (labels),
//! and the CSINode object, by which the scheduler counts and places volumes.

use super::drivers::in_time;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::{Error, Objects, Patch, Rest, delete_options, is_already_exists, is_conflict, is_not_found};
use keelson_csi::{Driver, v1 as csi};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

/// Tries of a write that others were faster than.
const TRIES: u32 = 4;

/// What a driver says of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub node_id: String,
    /// How many volumes it can have; 0 says nothing.
    pub limit: i64,
    pub topology: BTreeMap<String, String>,
}

/// A change of the node's objects.
#[derive(Clone, Copy)]
enum Change<'a> {
    Initialize,
    /// What the node's own object says of a driver.
    Node(&'a str, Option<&'a Facts>),
    Put(&'a str, &'a Facts),
    Drop(&'a str),
}

impl Facts {
    /// As the driver says now.
    pub async fn ask(driver: &Driver) -> Result<Facts, String> {
        let mut node = driver.node();
        let answer = in_time(node.node_get_info(csi::NodeGetInfoRequest {})).await;
        let answer = answer.map_err(|e| crate::rpc_text(&e))?;
        let topology = answer.accessible_topology.map(|t| t.segments.into_iter().collect());
        Ok(Facts {
            node_id: answer.node_id,
            limit: answer.max_volumes_per_node,
            topology: topology.unwrap_or_default(),
        })
    }
}

pub struct NodeInfo {
    rest: Rest,
    node: String,
    /// One change of the node's objects at a time.
    one: tokio::sync::Mutex<()>,
}

impl NodeInfo {
    pub fn new(rest: Rest, node: String) -> Self {
        NodeInfo {
            rest,
            node,
            one: tokio::sync::Mutex::default(),
        }
    }

    /// Makes sure that the node has its object.
    pub async fn initialize(&self) -> Result<(), String> {
        self.again(Change::Initialize).await
    }

    pub async fn install(&self, driver: &str, facts: &Facts) -> Result<(), String> {
        if facts.node_id.is_empty() {
            return Err("error adding CSI driver node info: driverNodeID must not be empty".into());
        }
        let node = self.again(Change::Node(driver, Some(facts))).await;
        node.map_err(|e| format!("error updating Node object with CSI driver node info: {e}"))?;
        self.update(driver, facts).await
    }

    /// Brings what stands in the CSINode of a driver up to date.
    pub async fn update(&self, driver: &str, facts: &Facts) -> Result<(), String> {
        let object = self.again(Change::Put(driver, facts)).await;
        object.map_err(|e| format!("error updating CSINode object with CSI driver node info: {e}"))
    }

    pub async fn uninstall(&self, driver: &str) -> Result<(), String> {
        let object = self.again(Change::Drop(driver)).await;
        object.map_err(|e| format!("error uninstalling CSI driver from CSINode object {e}"))?;
        let node = self.again(Change::Node(driver, None)).await;
        node.map_err(|e| format!("error removing CSI driver node info from Node object {e}"))
    }

    /// Makes a change, again if others were faster.
    async fn again(&self, change: Change<'_>) -> Result<(), String> {
        let mut delay = Duration::from_millis(10);
        let mut tries = 0;
        loop {
            let done = {
                let _one = self.one.lock().await;
                match change {
                    Change::Initialize => self.csi_node().await.map(drop),
                    Change::Node(driver, facts) => self.patch_node(driver, facts).await,
                    Change::Put(driver, facts) => self.write(|spec| put(spec, driver, facts)).await,
                    Change::Drop(driver) => self.write(|spec| drop_driver(spec, driver)).await,
                }
            };
            tries += 1;
            match done {
                Err(_) if tries < TRIES => tokio::time::sleep(delay).await,
                done => return done,
            }
            delay *= 6;
        }
    }

    async fn patch_node(&self, driver: &str, facts: Option<&Facts>) -> Result<(), String> {
        let nodes = Objects::<Node>::new(&self.rest);
        let text = |e: Error| crate::error_text(&e);
        let node = nodes.get("", &self.node).await.map_err(text)?;
        let Some(patch) = node_patch(&node, driver, facts)? else {
            return Ok(());
        };
        nodes
            .patch_status("", &self.node, Patch::Strategic(&patch))
            .await
            .map(drop)
            .map_err(text)
    }

    /// The node's object, made if it is missing, and again if it is another node's that had the name before.
    async fn csi_node(&self) -> Result<CSINode, String> {
        let text = |e: Error| crate::error_text(&e);
        let node = Objects::<Node>::new(&self.rest)
            .get("", &self.node)
            .await
            .map_err(text)?;
        let uid = node.metadata.uid.unwrap_or_default();
        let objects = Objects::<CSINode>::new(&self.rest);
        match objects.get("", &self.node).await {
            Ok(found) if is_of(&found, &self.node, &uid) => Ok(found),
            Ok(_) => {
                objects
                    .delete("", &self.node, &delete_options(None, None, None))
                    .await
                    .map_err(text)?;
                Err(format!(
                    "CSINode \"{}\" was owned by different node, deleted it",
                    self.node
                ))
            }
            Err(e) if is_not_found(&e) => match objects.create(&fresh(&self.node, &uid)).await {
                Err(e) if is_already_exists(&e) => Err(text(e)),
                other => other.map_err(text),
            },
            Err(e) => Err(text(e)),
        }
    }

    async fn write(&self, change: impl Fn(&mut CSINodeSpec) -> bool) -> Result<(), String> {
        let mut object = self.csi_node().await?;
        if !change(&mut object.spec) {
            return Ok(());
        }
        match Objects::<CSINode>::new(&self.rest).update(&object).await {
            Err(e) if is_conflict(&e) => Err(crate::error_text(&e)),
            other => other.map(drop).map_err(|e| crate::error_text(&e)),
        }
    }
}

fn fresh(node: &str, uid: &str) -> CSINode {
    CSINode {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: node.to_owned(),
                uid: uid.to_owned(),
                ..Default::default()
            }]),
            ..Default::default()
        },
        spec: CSINodeSpec { drivers: Vec::new() },
        ..Default::default()
    }
}

fn is_of(object: &CSINode, node: &str, uid: &str) -> bool {
    let mut owners = object.metadata.owner_references.iter().flatten();
    owners.any(|o| o.kind == "Node" && o.name == node && o.uid == uid)
}

/// Puts the driver into the list. False if it stands there so already.
fn put(spec: &mut CSINodeSpec, driver: &str, facts: &Facts) -> bool {
    let count = (facts.limit > 0).then(|| i32::try_from(facts.limit).unwrap_or(i32::MAX));
    let wanted = CSINodeDriver {
        name: driver.to_owned(),
        node_id: facts.node_id.clone(),
        topology_keys: Some(facts.topology.keys().cloned().collect()),
        allocatable: count.map(|c| VolumeNodeResources { count: Some(c) }),
    };
    let keys = |d: &CSINodeDriver| {
        let mut keys = d.topology_keys.clone().unwrap_or_default();
        keys.sort();
        keys
    };
    let limit = |d: &CSINodeDriver| d.allocatable.as_ref().and_then(|a| a.count);
    let same = |d: &CSINodeDriver| d.node_id == wanted.node_id && keys(d) == keys(&wanted) && limit(d) == count;
    if spec.drivers.iter().any(|d| d.name == driver && same(d)) {
        return false;
    }
    spec.drivers.retain(|d| d.name != driver);
    spec.drivers.push(wanted);
    true
}

fn drop_driver(spec: &mut CSINodeSpec, driver: &str) -> bool {
    let before = spec.drivers.len();
    spec.drivers.retain(|d| d.name != driver);
    spec.drivers.len() != before
}

/// What is to be changed of the node's own object, if anything. A label that says something else already is an error: two
/// drivers can't disagree about where the node is.
fn node_patch(node: &Node, driver: &str, facts: Option<&Facts>) -> Result<Option<Value>, String> {
    let annotation = node.metadata.annotations.as_ref().and_then(|a| a.get(NODE_IDS));
    let mut ids: BTreeMap<String, String> = match annotation.filter(|a| !a.is_empty()) {
        Some(text) => serde_json::from_str(text)
            .map_err(|e| format!("failed to parse node's {NODE_IDS:?} annotation value ({text:?}) err={e}"))?,
        None => BTreeMap::new(),
    };
    let before = ids.clone();
    let mut labels = serde_json::Map::new();
    match facts {
        Some(facts) => {
            ids.insert(driver.to_owned(), facts.node_id.clone());
            for (key, value) in &facts.topology {
                match node.metadata.labels.as_ref().and_then(|l| l.get(key)) {
                    Some(have) if have == value => {}
                    Some(have) => {
                        return Err(format!(
                            "detected topology value collision: driver reported {key:?}:{value:?} but existing label is \
                             {key:?}:{have:?}"
                        ));
                    }
                    None => {
                        labels.insert(key.clone(), value.clone().into());
                    }
                }
            }
        }
        None => {
            ids.remove(driver);
        }
    }
    let mut metadata = serde_json::Map::new();
    if ids != before {
        let text = if ids.is_empty() {
            Value::Null
        } else {
            serde_json::to_string(&ids).map_err(|e| e.to_string())?.into()
        };
        metadata.insert("annotations".into(), json!({ NODE_IDS: text }));
    }
    if !labels.is_empty() {
        metadata.insert("labels".into(), labels.into());
    }
    Ok((!metadata.is_empty()).then(|| json!({ "metadata": metadata })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(id: &str, zone: &str) -> Facts {
        Facts {
            node_id: id.into(),
            limit: 8,
            topology: BTreeMap::from([("topology.d/zone".into(), zone.into())]),
        }
    }

    #[test]
    fn a_node_says_its_ids_and_where_it_is() {
        let mut node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
        let patch = node_patch(&node, "d", Some(&facts("i", "z"))).unwrap().unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"annotations": {NODE_IDS: "{\"d\":\"i\"}"}, "labels": {"topology.d/zone": "z"}}})
        );
        node.metadata.labels = Some(BTreeMap::from([("topology.d/zone".into(), "other".into())]));
        assert_eq!(
            node_patch(&node, "d", Some(&facts("i", "z"))).unwrap_err(),
            "detected topology value collision: driver reported \"topology.d/zone\":\"z\" but existing label is \
             \"topology.d/zone\":\"other\""
        );
        node.metadata.annotations = Some(BTreeMap::from([(NODE_IDS.into(), "{\"d\":\"i\"}".into())]));
        let patch = node_patch(&node, "d", None).unwrap().unwrap();
        assert_eq!(patch, json!({"metadata": {"annotations": {NODE_IDS: null}}}));
        assert_eq!(node_patch(&node, "other", None).unwrap(), None);
    }

    #[test]
    fn a_driver_is_written_once() {
        let mut spec = CSINodeSpec { drivers: Vec::new() };
        assert!(put(&mut spec, "d", &facts("i", "z")));
        assert!(
            !put(&mut spec, "d", &facts("i", "elsewhere")),
            "only the keys stand there"
        );
        assert!(put(&mut spec, "d", &facts("j", "z")));
        assert_eq!(spec.drivers.len(), 1);
        assert_eq!(spec.drivers[0].allocatable.as_ref().unwrap().count, Some(8));
        assert!(drop_driver(&mut spec, "d") && !drop_driver(&mut spec, "d"));
    }
}
