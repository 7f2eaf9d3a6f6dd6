//! A container's environment. Pure but for `Lookup`, which reads config maps, secrets and files.

use super::expand::expand;
use super::fields::{self, NodeFacts};
use crate::pods;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Where values come from that are not in the pod. `Ok(None)` means: it doesn't exist.
pub trait Lookup {
    fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>, String>;
    fn secret(&self, name: &str) -> Result<Option<Arc<Secret>>, String>;
    /// A variable of an environment file in a volume of the pod.
    fn file_key(&self, volume: &str, path: &str, key: &str) -> Result<Option<String>, String>;
}

fn not_found(resource: &str, name: &str) -> String {
    format!("{resource} \"{name}\" not found")
}

/// The variables in a defined order: the container's own as declared, then those of `envFrom` and of services.
pub fn environment(
    pod: &Pod,
    c: &Container,
    services: &BTreeMap<String, String>,
    facts: &NodeFacts,
    lookup: &dyn Lookup,
) -> Result<Vec<(String, String)>, String> {
    let mut values: HashMap<String, String> = HashMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |values: &mut HashMap<String, String>, name: String, value: String| {
        if values.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for source in c.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &source.config_map_ref {
            match lookup.config_map(&r.name)? {
                Some(cm) => {
                    for (k, v) in cm.data.iter().flatten() {
                        set(&mut values, format!("{prefix}{k}"), v.clone());
                    }
                }
                None if r.optional == Some(true) => {}
                None => return Err(not_found("configmap", &r.name)),
            }
        } else if let Some(r) = &source.secret_ref {
            match lookup.secret(&r.name)? {
                Some(s) => {
                    for (k, v) in s.data.iter().flatten() {
                        set(
                            &mut values,
                            format!("{prefix}{k}"),
                            String::from_utf8_lossy(&v.0).into_owned(),
                        );
                    }
                }
                None if r.optional == Some(true) => {}
                None => return Err(not_found("secret", &r.name)),
            }
        }
    }
    for var in c.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(v), _) if !v.is_empty() => {
                let known = |name: &str| values.get(name).or_else(|| services.get(name)).cloned();
                Some(expand(v, &known))
            }
            (_, Some(from)) => value_from(pod, c, from, facts, lookup)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut values, var.name.clone(), value);
        }
    }
    let mut result: Vec<(String, String)> = order
        .into_iter()
        .map(|n| (n.clone(), values.get(&n).cloned().unwrap_or_default()))
        .collect();
    result.extend(
        services
            .iter()
            .filter(|(k, _)| !values.contains_key(*k))
            .map(|(k, v)| (k.clone(), v.clone())),
    );
    Ok(result)
}

/// `Ok(None)` leaves the variable out: its source is optional and absent.
fn value_from(
    pod: &Pod,
    c: &Container,
    from: &k8s_openapi::api::core::v1::EnvVarSource,
    facts: &NodeFacts,
    lookup: &dyn Lookup,
) -> Result<Option<String>, String> {
    let ns = pods::namespace(pod);
    if let Some(f) = &from.field_ref {
        return fields::field(pod, &f.field_path, facts).map(Some);
    }
    if let Some(r) = &from.resource_field_ref {
        return fields::resource(pod, Some(c), r, facts.allocatable).map(Some);
    }
    if let Some(r) = &from.config_map_key_ref {
        let optional = r.optional == Some(true);
        let Some(cm) = lookup.config_map(&r.name)? else {
            return if optional {
                Ok(None)
            } else {
                Err(not_found("configmap", &r.name))
            };
        };
        return match cm.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(v) => Ok(Some(v.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {ns}/{}", r.key, r.name)),
        };
    }
    if let Some(r) = &from.secret_key_ref {
        let optional = r.optional == Some(true);
        let Some(s) = lookup.secret(&r.name)? else {
            return if optional {
                Ok(None)
            } else {
                Err(not_found("secret", &r.name))
            };
        };
        return match s.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(v) => Ok(Some(String::from_utf8_lossy(&v.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {ns}/{}", r.key, r.name)),
        };
    }
    if let Some(r) = &from.file_key_ref {
        return match lookup.file_key(&r.volume_name, &r.path, &r.key)? {
            Some(v) if !v.is_empty() => Ok(Some(v)),
            _ if r.optional == Some(true) => Ok(None),
            _ => Err(format!(
                "environment variable key \"{}\" not found in file \"{}\"",
                r.key, r.path
            )),
        };
    }
    Ok(Some(String::new()))
}

/// The variables that tell a pod of the services there are, in the style of Docker links.
pub fn service_variables(services: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let ns = service.metadata.namespace.as_deref().unwrap_or_default();
        let ip = service
            .spec
            .as_ref()
            .and_then(|s| s.cluster_ip.as_deref())
            .unwrap_or_default();
        if ip.is_empty() || ip == "None" {
            continue;
        }
        if ns == "default" && name == "kubernetes" {
            chosen.entry(name).or_insert(service);
        } else if ns == namespace && links {
            chosen.insert(name, service);
        }
    }
    let mut out = BTreeMap::new();
    for (name, service) in chosen {
        one_service(name, service, &mut out);
    }
    out
}

fn one_service(name: &str, service: &Service, out: &mut BTreeMap<String, String>) {
    let upper = |s: &str| s.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.clone().unwrap_or_default();
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.clone()
    };
    out.insert(format!("{prefix}_SERVICE_HOST"), ip.clone());
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if i == 0 {
            out.insert(format!("{prefix}_SERVICE_PORT"), port.port.to_string());
            out.insert(format!("{prefix}_PORT"), url.clone());
        }
        if let Some(n) = port.name.as_deref().filter(|n| !n.is_empty()) {
            out.insert(format!("{prefix}_SERVICE_PORT_{}", upper(n)), port.port.to_string());
        }
        let one = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        out.insert(one.clone(), url);
        out.insert(format!("{one}_PROTO"), protocol.to_lowercase());
        out.insert(format!("{one}_PORT"), port.port.to_string());
        out.insert(format!("{one}_ADDR"), ip.clone());
    }
}

/// Command and arguments with the environment filled in.
pub fn command_line(c: &Container, env: &[(String, String)]) -> (Vec<String>, Vec<String>) {
    let map: HashMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let known = |name: &str| map.get(name).map(|v| (*v).to_owned());
    let all = |list: &Option<Vec<String>>| list.iter().flatten().map(|s| expand(s, &known)).collect();
    (all(&c.command), all(&c.args))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Fixed;

    impl Lookup for Fixed {
        fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>, String> {
            let cm = json!({"data": {"k": "v", "x.y": "dotted"}});
            Ok((name == "cm").then(|| Arc::new(serde_json::from_value(cm).unwrap())))
        }
        fn secret(&self, _: &str) -> Result<Option<Arc<Secret>>, String> {
            Ok(None)
        }
        fn file_key(&self, _: &str, _: &str, _: &str) -> Result<Option<String>, String> {
            Ok(None)
        }
    }

    fn env(c: serde_json::Value) -> Result<Vec<(String, String)>, String> {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [c]}}))
                .unwrap();
        let facts = NodeFacts {
            host_ips: &["10.0.0.1".into()],
            pod_ips: &["10.1.0.2".into()],
            allocatable: &Default::default(),
        };
        let services = BTreeMap::from([("SVC_HOST".to_owned(), "10.96.0.1".to_owned())]);
        environment(&pod, &pods::containers(&pod)[0], &services, &facts, &Fixed)
    }

    #[test]
    fn declared_order_expansion_and_sources() {
        let got = env(json!({"name": "c",
            "envFrom": [{"prefix": "p_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "none", "optional": true}}],
            "env": [{"name": "A", "value": "$(p_k)-$(SVC_HOST)"}, {"name": "B", "value": "$(A)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "MISSING", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "no", "optional": true}}}]}))
        .unwrap();
        let want = [
            ("p_k", "v"),
            ("p_x.y", "dotted"),
            ("A", "v-10.96.0.1"),
            ("B", "v-10.96.0.1"),
            ("IP", "10.1.0.2"),
            ("SVC_HOST", "10.96.0.1"),
        ];
        assert_eq!(
            got.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(),
            want
        );
    }

    #[test]
    fn missing_sources_are_told() {
        let e =
            env(json!({"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}));
        assert_eq!(e.unwrap_err(), "secret \"s\" not found");
        let e = env(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "q"}}}]}),
        );
        assert_eq!(e.unwrap_err(), "couldn't find key q in ConfigMap n/cm");
    }

    #[test]
    fn services_become_variables() {
        let s: Service = serde_json::from_value(json!({"metadata": {"name": "my-svc", "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"name": "web", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}))
        .unwrap();
        let got = service_variables(&[Arc::new(s)], "n", true);
        assert_eq!(got["MY_SVC_SERVICE_HOST"], "10.96.0.9");
        assert_eq!(got["MY_SVC_SERVICE_PORT"], "80");
        assert_eq!(got["MY_SVC_SERVICE_PORT_DNS"], "53");
        assert_eq!(got["MY_SVC_PORT_53_UDP"], "udp://10.96.0.9:53");
        assert_eq!(got["MY_SVC_PORT_80_TCP_ADDR"], "10.96.0.9");
    }
}
