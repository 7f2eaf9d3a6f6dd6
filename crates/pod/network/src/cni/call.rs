//! What a plug-in is told: its configuration, completed as libcni completes it, and its environment. Pure.

use super::config::Network;
use crate::{PodNetworkRequest, Protocol};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

/// The pod's link, which all plug-ins of a network work on.
pub const LINK: &str = "eth0";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

impl Verb {
    pub fn word(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
        }
    }
}

/// A sandbox that has, or is to have, the network.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Attachment {
    pub sandbox: String,
    pub netns: String,
    /// `K8S_POD_NAME` and the like.
    pub args: String,
    /// What plug-ins with the capability are given.
    pub capabilities: Map<String, Value>,
}

impl Attachment {
    pub fn of(request: &PodNetworkRequest, ranges: &[IpNet]) -> Attachment {
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &request.namespace),
            ("K8S_POD_NAME", &request.name),
            ("K8S_POD_INFRA_CONTAINER_ID", &request.sandbox_id),
            ("K8S_POD_UID", &request.uid),
        ];
        Attachment {
            sandbox: request.sandbox_id.clone(),
            netns: request.netns.display().to_string(),
            args: args.map(|(name, value)| format!("{name}={value}")).join(";"),
            capabilities: capabilities(request, ranges),
        }
    }
}

fn capabilities(request: &PodNetworkRequest, ranges: &[IpNet]) -> Map<String, Value> {
    let mut all = Map::new();
    if !request.port_mappings.is_empty() {
        let mappings = request.port_mappings.iter().map(|m| {
            let protocol = match m.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            let ip = m.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            json!({"hostPort": m.host_port, "containerPort": m.container_port, "protocol": protocol, "hostIP": ip})
        });
        all.insert("portMappings".into(), mappings.collect());
    }
    let rates = [
        ("ingressRate", "ingressBurst", request.ingress_bandwidth),
        ("egressRate", "egressBurst", request.egress_bandwidth),
    ];
    let mut bandwidth = Map::new();
    for (rate, burst, bits) in rates.into_iter().filter(|(.., bits)| *bits > 0) {
        bandwidth.insert(rate.into(), json!(bits));
        // As large as the plug-in takes, which is what containerd says.
        bandwidth.insert(burst.into(), json!(u32::MAX));
    }
    if !bandwidth.is_empty() {
        all.insert("bandwidth".into(), bandwidth.into());
    }
    if !ranges.is_empty() {
        let sets = ranges.iter().map(|range| json!([{"subnet": range.to_string()}]));
        all.insert("ipRanges".into(), sets.collect());
    }
    all
}

/// The configuration that a plug-in reads. `before`: what stands when it is asked.
pub fn configuration(
    network: &Network,
    plugin: &Map<String, Value>,
    capabilities: &Map<String, Value>,
    before: Option<&Value>,
) -> Map<String, Value> {
    let mut all = plugin.clone();
    all.insert("name".into(), json!(network.name));
    all.insert("cniVersion".into(), json!(network.version));
    if let Some(before) = before {
        all.insert("prevResult".into(), before.clone());
    }
    let wants = plugin.get("capabilities").and_then(Value::as_object);
    let given: Map<String, Value> = wants
        .into_iter()
        .flatten()
        .filter(|(_, wanted)| wanted.as_bool() == Some(true))
        .filter_map(|(name, _)| Some((name.clone(), capabilities.get(name)?.clone())))
        .collect();
    if !given.is_empty() {
        all.insert("runtimeConfig".into(), given.into());
    }
    all
}

/// Its environment. What is asked of a network as a whole names no sandbox.
pub fn environment(verb: Verb, attachment: Option<&Attachment>, path: &str) -> Vec<(&'static str, String)> {
    let mut all = vec![("CNI_COMMAND", verb.word().to_owned()), ("CNI_PATH", path.to_owned())];
    if let Some(of) = attachment {
        all.extend([
            ("CNI_CONTAINERID", of.sandbox.clone()),
            ("CNI_NETNS", of.netns.clone()),
            ("CNI_ARGS", of.args.clone()),
            ("CNI_IFNAME", LINK.to_owned()),
        ]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::config::parse;
    use super::*;
    use crate::PortMapping;

    #[test]
    fn a_plugin_gets_what_it_can_do_something_with() {
        let network = parse(
            br#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge"},
                {"type": "portmap", "snat": true, "capabilities": {"portMappings": true, "bandwidth": false, "dns": true}}]}"#,
            true,
        )
        .unwrap();
        let request = PodNetworkRequest {
            sandbox_id: "s1".into(),
            netns: "/run/ns".into(),
            namespace: "default".into(),
            name: "web".into(),
            uid: "u".into(),
            port_mappings: vec![PortMapping {
                protocol: Protocol::Udp,
                container_port: 53,
                host_port: 5353,
                host_ip: None,
            }],
            egress_bandwidth: 1_000_000,
            ..PodNetworkRequest::default()
        };
        let pod = Attachment::of(&request, &["10.244.1.0/24".parse().unwrap()]);
        assert_eq!(
            Value::Object(pod.capabilities.clone()),
            json!({
                "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": ""}],
                "bandwidth": {"egressRate": 1_000_000, "egressBurst": 4_294_967_295_u32},
                "ipRanges": [[{"subnet": "10.244.1.0/24"}]],
            })
        );
        let told = |at: usize, before| configuration(&network, &network.plugins[at], &pod.capabilities, before);
        assert_eq!(
            Value::Object(told(0, None)),
            json!({"type": "bridge", "name": "n", "cniVersion": "1.0.0"})
        );
        let before = json!({"ips": []});
        assert_eq!(
            Value::Object(told(1, Some(&before))),
            json!({"type": "portmap", "snat": true, "name": "n", "cniVersion": "1.0.0", "prevResult": {"ips": []},
                "capabilities": {"portMappings": true, "bandwidth": false, "dns": true},
                "runtimeConfig": {"portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": ""}]}})
        );
        assert_eq!(
            environment(Verb::Add, Some(&pod), "/opt/cni/bin"),
            [
                ("CNI_COMMAND", "ADD"),
                ("CNI_PATH", "/opt/cni/bin"),
                ("CNI_CONTAINERID", "s1"),
                ("CNI_NETNS", "/run/ns"),
                (
                    "CNI_ARGS",
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=s1;K8S_POD_UID=u"
                ),
                ("CNI_IFNAME", "eth0"),
            ]
            .map(|(name, value)| (name, value.to_owned()))
        );
        assert_eq!(environment(Verb::Status, None, "/b").len(), 2);
    }
}
