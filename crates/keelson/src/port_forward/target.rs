//! Which pod, and which port of it: of a service or of what makes pods one that is Ready, as long as it can be reached.

use super::channel::{self, Lost, Socket};
use super::ports::{Port, Protocol, Remote};
use anyhow::{Context, anyhow, bail, ensure};
use keelson_client::Rest;
use keelson_client::rest::{Error, JSON};
use serde_json::Value;
use std::cell::RefCell;

/// Kinds that have pods, by what people call them: their API's path and their resource.
const KINDS: [(&[&str], &str, &str); 7] = [
    (&["pod", "pods", "po"], "/api/v1", "pods"),
    (&["service", "services", "svc"], "/api/v1", "services"),
    (
        &["replicationcontroller", "replicationcontrollers", "rc"],
        "/api/v1",
        "replicationcontrollers",
    ),
    (&["deployment", "deployments", "deploy"], "/apis/apps/v1", "deployments"),
    (&["statefulset", "statefulsets", "sts"], "/apis/apps/v1", "statefulsets"),
    (&["replicaset", "replicasets", "rs"], "/apis/apps/v1", "replicasets"),
    (&["daemonset", "daemonsets", "ds"], "/apis/apps/v1", "daemonsets"),
];

pub struct Target {
    rest: Rest,
    namespace: String,
    api: &'static str,
    resource: &'static str,
    name: String,
    remote: Remote,
    protocol: Protocol,
    /// What was found last.
    found: RefCell<Option<Place>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub pod: String,
    pub port: u16,
}

impl Target {
    pub fn new(rest: &Rest, namespace: &str, named: &str, port: &Port) -> anyhow::Result<Target> {
        let (kind, name) = named.split_once('/').unwrap_or(("pod", named));
        let known = KINDS
            .iter()
            .find(|(names, ..)| names.contains(&kind.to_ascii_lowercase().as_str()));
        let (_, api, resource) = known
            .with_context(|| format!("{kind}/{name}: ports are forwarded to pods, services and what makes pods"))?;
        ensure!(!name.is_empty() && !name.contains('/'), "{named:?} names nothing");
        Ok(Target {
            rest: rest.clone(),
            namespace: namespace.to_owned(),
            api,
            resource,
            name: name.to_owned(),
            remote: port.remote.clone(),
            protocol: port.protocol,
            found: RefCell::default(),
        })
    }

    /// Opens what carries the port. A pod that was found before and isn't there any more is looked for again.
    pub async fn open(&self, protocol: &'static str) -> anyhow::Result<Socket> {
        let known = self.found.borrow().clone();
        if let Some(place) = known {
            match self.open_at(&place, protocol).await {
                Err(error) if error.is::<Lost>() => drop(self.found.take()),
                done => return done,
            }
        }
        let place = self.pod().await?;
        self.open_at(&place, protocol).await
    }

    async fn open_at(&self, place: &Place, protocol: &'static str) -> anyhow::Result<Socket> {
        channel::open(self.rest.client(), &self.namespace, place, protocol).await
    }

    /// Finds the pod.
    pub async fn pod(&self) -> anyhow::Result<Place> {
        let object = self
            .get(&format!("{}/{}", self.resource, encoded(&self.name)), self.api)
            .await?;
        let place = match self.resource {
            "pods" => place(&object, &self.remote, self.protocol)?,
            _ => {
                let selector =
                    selector(&object).with_context(|| format!("{}/{} selects no pods", self.resource, self.name))?;
                let query = form_urlencoded::Serializer::new(String::new())
                    .append_pair("labelSelector", &selector)
                    .finish();
                let pods = self.get(&format!("pods?{query}"), "/api/v1").await?;
                let pod =
                    best(&pods).with_context(|| format!("no pod of {}/{} is running", self.resource, self.name))?;
                let remote = match self.resource {
                    "services" => behind(&object, &self.remote, self.protocol)?,
                    _ => self.remote.clone(),
                };
                self::place(pod, &remote, self.protocol)?
            }
        };
        *self.found.borrow_mut() = Some(place.clone());
        Ok(place)
    }

    async fn get(&self, path: &str, api: &str) -> anyhow::Result<Value> {
        let uri = format!("{api}/namespaces/{}/{path}", encoded(&self.namespace));
        match self.rest.get(&uri, JSON).await {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(Error::Api(status)) => bail!("{}", status.message),
            Err(error) => Err(error.into()),
        }
    }
}

/// Of a path.
fn encoded(name: &str) -> String {
    form_urlencoded::byte_serialize(name.as_bytes()).collect()
}

/// What an object's pods have, as queries say it; nothing if it says of no pods.
fn selector(object: &Value) -> Option<String> {
    let selector = object["spec"]["selector"].as_object()?;
    let mut said = Vec::new();
    let labels = match selector.get("matchLabels") {
        Some(labels) => labels.as_object(),
        None => Some(selector).filter(|selector| !selector.contains_key("matchExpressions")),
    };
    for (key, value) in labels.into_iter().flatten() {
        said.push(format!("{key}={}", value.as_str()?));
    }
    for expression in selector
        .get("matchExpressions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let key = expression["key"].as_str()?;
        let values = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let values = values.collect::<Vec<_>>().join(",");
        said.push(match expression["operator"].as_str()? {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        });
    }
    (!said.is_empty()).then(|| said.join(","))
}

/// A running pod that isn't on its way out: one that is Ready if there is any.
fn best(pods: &Value) -> Option<&Value> {
    let pods = pods["items"].as_array()?;
    let is_ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    let running = pods
        .iter()
        .filter(|pod| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null());
    running.max_by_key(|pod| is_ready(pod))
}

/// The pods' port behind a service's.
fn behind(service: &Value, remote: &Remote, protocol: Protocol) -> anyhow::Result<Remote> {
    let ports = service["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let is_it = |port: &&Value| {
        let same = match remote {
            Remote::Number(number) => port["port"] == *number,
            Remote::Name(name) => port["name"] == **name,
        };
        same && of(port) == protocol.to_string()
    };
    let port = ports
        .iter()
        .find(is_it)
        .ok_or_else(|| anyhow!("the service has no port {remote} of {protocol}"))?;
    let behind = match &port["targetPort"] {
        Value::String(name) => Some(Remote::Name(name.clone())),
        Value::Number(number) if number.as_u64() != Some(0) => {
            number.as_u64().and_then(|n| u16::try_from(n).ok()).map(Remote::Number)
        }
        _ => port["port"]
            .as_u64()
            .and_then(|n| u16::try_from(n).ok())
            .map(Remote::Number),
    };
    behind.context("the service's port leads nowhere")
}

fn of(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

fn place(pod: &Value, remote: &Remote, protocol: Protocol) -> anyhow::Result<Place> {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    ensure!(
        phase == "Running",
        "unable to forward port because pod is not running. Current status={phase}"
    );
    let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
    let port = match remote {
        Remote::Number(number) => *number,
        Remote::Name(wanted) => {
            let containers = ["containers", "initContainers"].map(|of| pod["spec"][of].as_array());
            let mut ports = containers
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|c| c["ports"].as_array())
                .flatten();
            let port = ports.find(|port| port["name"] == **wanted && of(port) == protocol.to_string());
            let number = port
                .and_then(|port| port["containerPort"].as_u64())
                .and_then(|n| u16::try_from(n).ok());
            number.with_context(|| format!("pod {name} has no port {wanted} of {protocol}"))?
        }
    };
    let pod = name.to_owned();
    Ok(Place { pod, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, phase: &str, ready: &str) -> Value {
        json!({"metadata": {"name": name}, "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
            "spec": {"containers": [{"ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"name": "dns", "containerPort": 54}]}]}})
    }

    #[test]
    fn one_that_is_ready_is_taken() {
        let mut leaving = pod("leaving", "Running", "True");
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        let pods = json!({"items": [pod("pending", "Pending", "True"), pod("not", "Running", "False"), leaving, pod("ready", "Running", "True"), pod("last", "Running", "False")]});
        assert_eq!(best(&pods).unwrap()["metadata"]["name"], "ready");
        assert_eq!(best(&json!({"items": [pod("pending", "Pending", "True")]})), None);
    }

    #[test]
    fn names_are_of_a_protocol() {
        let found = |protocol| place(&pod("a", "Running", "True"), &Remote::Name("dns".into()), protocol);
        assert_eq!(found(Protocol::Udp).unwrap().port, 53);
        assert_eq!(found(Protocol::Tcp).unwrap().port, 54);
        let refused = place(&pod("a", "Pending", "False"), &Remote::Number(1), Protocol::Tcp).unwrap_err();
        assert!(refused.to_string().contains("Current status=Pending"));
    }

    #[test]
    fn a_services_port_is_its_pods() {
        let service = json!({"spec": {"ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
            {"name": "dns-tcp", "port": 53, "targetPort": 1053},
            {"port": 80}]}});
        let found = |remote: Remote, protocol| behind(&service, &remote, protocol).map(|found| found.to_string());
        assert_eq!(found(Remote::Number(53), Protocol::Udp).unwrap(), "dns");
        assert_eq!(found(Remote::Name("dns-tcp".into()), Protocol::Tcp).unwrap(), "1053");
        assert_eq!(found(Remote::Number(80), Protocol::Tcp).unwrap(), "80");
        assert!(found(Remote::Number(80), Protocol::Udp).is_err());
    }

    #[test]
    fn pods_are_selected_as_their_owner_does() {
        let of = |selector: Value| selector_of(&selector);
        fn selector_of(selector: &Value) -> Option<String> {
            super::selector(&json!({"spec": {"selector": selector}}))
        }
        assert_eq!(of(json!({"app": "a", "tier": ""})).unwrap(), "app=a,tier=");
        let both = json!({"matchLabels": {"app": "a"}, "matchExpressions": [
            {"key": "x", "operator": "In", "values": ["1", "2"]}, {"key": "y", "operator": "DoesNotExist"}]});
        assert_eq!(of(both).unwrap(), "app=a,x in (1,2),!y");
        assert_eq!(
            of(json!({"matchExpressions": [{"key": "z", "operator": "Exists"}]})).unwrap(),
            "z"
        );
        assert_eq!((of(json!({})), of(json!(null))), (None, None));
    }
}
