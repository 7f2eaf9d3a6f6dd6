//! What the API says of nodes and pods, as far as it is needed here.

use crate::scrape::Address;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A kubelet's port where its node doesn't say.
const DEFAULT_PORT: u16 = 10250;
/// Of a node's addresses the first of these; a name may not resolve where this runs.
const ADDRESS_TYPES: [&str; 5] = ["InternalIP", "ExternalIP", "Hostname", "InternalDNS", "ExternalDNS"];

#[derive(Deserialize)]
pub struct Metadata {
    pub name: String,
    #[serde(default)]
    pub namespace: String,
    pub labels: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
pub struct Nodes {
    pub items: Vec<Node>,
}

#[derive(Deserialize)]
pub struct Node {
    pub metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    conditions: Vec<Condition>,
    addresses: Vec<NodeAddress>,
    daemon_endpoints: Endpoints,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    r#type: String,
    address: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Endpoints {
    kubelet_endpoint: Endpoint,
}

#[derive(Default, Deserialize)]
struct Endpoint {
    /// Whatever a node says of itself is readable: one must not hide the others.
    #[serde(default, rename = "Port")]
    port: i64,
}

impl Node {
    pub fn is_ready(&self) -> bool {
        let mut conditions = self.status.conditions.iter();
        conditions.any(|c| c.r#type == "Ready" && c.status == "True")
    }

    /// None: the node has no address yet.
    pub fn kubelet(&self) -> Option<Address> {
        let of = |wanted: &&str| self.status.addresses.iter().find(|a| a.r#type == *wanted);
        let host = ADDRESS_TYPES.iter().find_map(of)?.address.clone();
        let port = u16::try_from(self.status.daemon_endpoints.kubelet_endpoint.port);
        let port = port.ok().filter(|port| *port > 0).unwrap_or(DEFAULT_PORT);
        Some(Address { host, port })
    }
}

/// A pod, and the node it is bound to: a table's row, which says so in far fewer bytes than the object.
pub struct Pod {
    pub metadata: Metadata,
    pub node: String,
}

#[derive(Deserialize)]
struct Table {
    #[serde(default, rename = "columnDefinitions")]
    columns: Vec<Column>,
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

#[derive(Deserialize)]
struct Row {
    cells: Vec<Value>,
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

/// The pods of a table.
pub fn pods(table: &[u8]) -> Result<Vec<Pod>, String> {
    let table: Table = serde_json::from_slice(table).map_err(|e| e.to_string())?;
    let at = table.columns.iter().position(|c| c.name == "Node");
    let at = at.ok_or("the table of pods has no column Node")?;
    let pod = |row: Row| Pod {
        node: row
            .cells
            .get(at)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_string(),
        metadata: row.object.metadata,
    };
    Ok(table.rows.into_iter().map(pod).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kubelets_are_where_their_nodes_say() {
        let node = |status: Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n"}, "status": status})).unwrap()
        };
        assert_eq!(node(json!({})).kubelet(), None);
        let status = json!({
            "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10260}},
        });
        let address = |host: &str, port| {
            Some(Address {
                host: host.into(),
                port,
            })
        };
        assert_eq!(node(status).kubelet(), address("192.0.2.1", 10260));
        let status = json!({
            "addresses": [{"type": "Hostname", "address": "n"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 70000}},
        });
        assert_eq!(node(status).kubelet(), address("n", 10250));
    }
}
