//! What extenders are told and answer, in JSON. Names are those of Go's fields; in answers their case doesn't matter, as in Go.

use crate::pod::PodInfo;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The most that an extender gives to a node.
pub const MAX_PREFERENCE: i64 = 10;

/// Of filter and prioritize. What isn't given is null.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Args<'a> {
    pod: &'a Pod,
    nodes: Option<NodeList<'a>>,
    node_names: Option<Vec<&'a str>>,
}

#[derive(Serialize)]
struct NodeList<'a> {
    metadata: Map<String, Value>,
    items: Vec<&'a Node>,
}

impl<'a> Args<'a> {
    pub fn nodes(pod: &'a Pod, nodes: &[&'a Node]) -> Args<'a> {
        let nodes = NodeList {
            metadata: Map::new(),
            items: nodes.to_vec(),
        };
        Args {
            pod,
            nodes: Some(nodes),
            node_names: None,
        }
    }
    pub fn names(pod: &'a Pod, nodes: &[&'a Node]) -> Args<'a> {
        let names = nodes.iter().filter_map(|node| node.metadata.name.as_deref());
        Args {
            pod,
            nodes: None,
            node_names: Some(names.collect()),
        }
    }
}

#[derive(Debug, Default)]
pub struct FilterResult {
    nodes: Option<Vec<String>>,
    node_names: Option<Vec<String>>,
    /// Why nodes won't do; and of those that wouldn't do whoever left them.
    pub failed: BTreeMap<String, String>,
    pub failed_for_good: BTreeMap<String, String>,
    pub error: String,
}

impl FilterResult {
    /// The names of the nodes that will do.
    pub fn left(&self, by_name: bool) -> &[String] {
        match (&self.node_names, &self.nodes) {
            (Some(names), _) if by_name => names,
            (_, Some(nodes)) => nodes,
            _ => &[],
        }
    }
}

/// Fields by their names in small letters.
fn fields<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Value>, D::Error> {
    let fields = BTreeMap::<String, Value>::deserialize(deserializer)?;
    Ok(fields
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect())
}

/// A field, or its default if it is absent or null.
fn field<'de, T, D>(fields: &mut BTreeMap<String, Value>, name: &str) -> Result<T, D::Error>
where
    T: serde::de::DeserializeOwned + Default,
    D: Deserializer<'de>,
{
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => serde_json::from_value(value).map_err(serde::de::Error::custom),
    }
}

/// Read as it comes: an answer may repeat all nodes, of which only the names are kept.
impl<'de> Deserialize<'de> for FilterResult {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FilterFields)
    }
}

struct FilterFields;

#[derive(Deserialize)]
struct NamedList {
    #[serde(default)]
    items: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct Named {
    metadata: Name,
}

#[derive(Deserialize)]
struct Name {
    #[serde(default)]
    name: String,
}

impl<'de> Visitor<'de> for FilterFields {
    type Value = FilterResult;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an ExtenderFilterResult")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FilterResult, A::Error> {
        let names = |list: NamedList| {
            let nodes = list.items.into_iter().flatten();
            nodes.map(|node| node.metadata.name).collect()
        };
        let mut result = FilterResult::default();
        while let Some(name) = map.next_key::<String>()? {
            match name.to_ascii_lowercase().as_str() {
                "nodes" => result.nodes = map.next_value::<Option<NamedList>>()?.map(names),
                "nodenames" => result.node_names = map.next_value()?,
                "failednodes" => result.failed = map.next_value::<Option<_>>()?.unwrap_or_default(),
                "failedandunresolvablenodes" => {
                    result.failed_for_good = map.next_value::<Option<_>>()?.unwrap_or_default();
                }
                "error" => result.error = map.next_value::<Option<_>>()?.unwrap_or_default(),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(result)
    }
}

/// Host and score.
#[derive(Debug)]
pub struct Preferences(pub Vec<(String, i64)>);

impl<'de> Deserialize<'de> for Preferences {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One(String, i64);
        impl<'de> Deserialize<'de> for One {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let mut all = fields(deserializer)?;
                Ok(One(field::<_, D>(&mut all, "host")?, field::<_, D>(&mut all, "score")?))
            }
        }
        let list = Option::<Vec<One>>::deserialize(deserializer)?;
        Ok(Preferences(
            list.into_iter().flatten().map(|one| (one.0, one.1)).collect(),
        ))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BindingArgs<'a> {
    pod_name: &'a str,
    pod_namespace: &'a str,
    #[serde(rename = "PodUID")]
    pod_uid: &'a str,
    node: &'a str,
}

impl<'a> BindingArgs<'a> {
    pub fn new(pod: &'a PodInfo, node: &'a str) -> BindingArgs<'a> {
        BindingArgs {
            pod_name: &pod.key.name,
            pod_namespace: &pod.key.namespace,
            pod_uid: pod.uid(),
            node,
        }
    }
}

#[derive(Debug)]
pub struct BindingResult {
    pub error: String,
}

impl<'de> Deserialize<'de> for BindingResult {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let error = field::<_, D>(&mut fields(deserializer)?, "error")?;
        Ok(BindingResult { error })
    }
}

/// Who would have to go on a node.
#[derive(Clone, Debug)]
pub struct Victims {
    pub pods: Vec<Arc<PodInfo>>,
    pub violations: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PreemptionArgs<'a> {
    pod: &'a Pod,
    node_name_to_victims: Option<BTreeMap<&'a str, Whole<'a>>>,
    node_name_to_meta_victims: Option<BTreeMap<&'a str, Meta<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Whole<'a> {
    pods: Vec<&'a Pod>,
    #[serde(rename = "NumPDBViolations")]
    violations: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Meta<'a> {
    pods: Vec<Uid<'a>>,
    #[serde(rename = "NumPDBViolations")]
    violations: usize,
}

#[derive(Serialize)]
struct Uid<'a> {
    #[serde(rename = "UID")]
    uid: &'a str,
}

impl<'a> PreemptionArgs<'a> {
    pub fn new(pod: &'a Pod, victims: &'a BTreeMap<String, Victims>, by_uid: bool) -> PreemptionArgs<'a> {
        let whole = |v: &'a Victims| Whole {
            pods: v.pods.iter().map(|p| &*p.pod).collect(),
            violations: v.violations,
        };
        let meta = |v: &'a Victims| Meta {
            pods: v.pods.iter().map(|p| Uid { uid: p.uid() }).collect(),
            violations: v.violations,
        };
        let named = || victims.iter().map(|(name, victims)| (name.as_str(), victims));
        PreemptionArgs {
            pod,
            node_name_to_victims: (!by_uid).then(|| named().map(|(name, v)| (name, whole(v))).collect()),
            node_name_to_meta_victims: by_uid.then(|| named().map(|(name, v)| (name, meta(v))).collect()),
        }
    }
}

/// By node: the uids of those who would have to go, and how many budgets that violates.
#[derive(Debug)]
pub struct PreemptionResult(pub BTreeMap<String, (Vec<String>, usize)>);

impl<'de> Deserialize<'de> for PreemptionResult {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Victim(String);
        impl<'de> Deserialize<'de> for Victim {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Victim(field::<_, D>(&mut fields(deserializer)?, "uid")?))
            }
        }
        #[derive(Default)]
        struct Node(Vec<Victim>, i64);
        impl<'de> Deserialize<'de> for Node {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let mut all = fields(deserializer)?;
                let pods = field::<_, D>(&mut all, "pods")?;
                Ok(Node(pods, field::<_, D>(&mut all, "numpdbviolations")?))
            }
        }
        let mut all = fields(deserializer)?;
        let nodes: BTreeMap<String, Option<Node>> = field::<_, D>(&mut all, "nodenametometavictims")?;
        let uids = |node: Node| {
            let pods = node.0.into_iter().map(|victim| victim.0).collect();
            (pods, usize::try_from(node.1).unwrap_or(0))
        };
        Ok(PreemptionResult(
            nodes
                .into_iter()
                .map(|(name, node)| (name, uids(node.unwrap_or_default())))
                .collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_gos_and_what_isnt_given_is_null() {
        let pod = Pod::default();
        let node = Node {
            metadata: serde_json::from_value(json!({"name": "n"})).unwrap(),
            ..Node::default()
        };
        let body = |args: Args| serde_json::to_value(args).unwrap();
        let by_name = body(Args::names(&pod, &[&node]));
        assert_eq!(
            (&by_name["NodeNames"], &by_name["Nodes"]),
            (&json!(["n"]), &Value::Null)
        );
        let whole = body(Args::nodes(&pod, &[&node]));
        assert_eq!(
            (&whole["NodeNames"], &whole["Nodes"]["items"][0]["metadata"]),
            (&Value::Null, &json!({"name": "n"}))
        );
        assert!(whole["Pod"].is_object());

        let info = |uid: &str| {
            let pod = json!({"metadata": {"name": uid, "namespace": "ns", "uid": uid}});
            Arc::new(PodInfo::of(Arc::new(serde_json::from_value(pod).unwrap())))
        };
        let bound = serde_json::to_value(BindingArgs::new(&info("u"), "n")).unwrap();
        assert_eq!(
            bound,
            json!({"PodName": "u", "PodNamespace": "ns", "PodUID": "u", "Node": "n"})
        );
        let victims = BTreeMap::from([(
            "n".to_owned(),
            Victims {
                pods: vec![info("v")],
                violations: 1,
            },
        )]);
        let body = |by_uid| serde_json::to_value(PreemptionArgs::new(&pod, &victims, by_uid)).unwrap();
        assert_eq!(
            body(true)["NodeNameToMetaVictims"],
            json!({"n": {"Pods": [{"UID": "v"}], "NumPDBViolations": 1}})
        );
        assert!(body(true)["NodeNameToVictims"].is_null());
        let whole = body(false);
        assert_eq!(whole["NodeNameToVictims"]["n"]["Pods"][0]["metadata"]["uid"], "v");
        assert!(whole["NodeNameToMetaVictims"].is_null());
    }

    #[test]
    fn answers_are_read_in_any_case() {
        let result: FilterResult = serde_json::from_value(json!({
            "nodenames": ["a"], "Nodes": {"items": [{"metadata": {"name": "b"}}]}, "failedNodes": {"c": "full"}, "Error": null,
        }))
        .unwrap();
        assert_eq!(
            (result.left(true), result.left(false)),
            (&["a".to_owned()][..], &["b".to_owned()][..])
        );
        assert_eq!(result.failed["c"], "full");
        let nothing: FilterResult = serde_json::from_value(json!({})).unwrap();
        assert!(nothing.left(true).is_empty() && nothing.left(false).is_empty());
        let Preferences(list) = serde_json::from_value(json!([{"Host": "a", "score": 7}, {"host": "b"}])).unwrap();
        assert_eq!(list, [("a".to_owned(), 7), ("b".to_owned(), 0)]);
        let PreemptionResult(nodes) = serde_json::from_value(
            json!({"nodeNameToMetaVictims": {"n": {"pods": [{"uid": "u"}], "numPDBViolations": 2}, "m": null}}),
        )
        .unwrap();
        assert_eq!(nodes["n"], (vec!["u".to_owned()], 2));
        assert!(nodes["m"].0.is_empty());
        assert!(serde_json::from_value::<FilterResult>(json!({"NodeNames": "a"})).is_err());
    }
}
