//! The files of config map, secret, downward API and projected volumes. Pure: objects and tokens come from `Sources`.

use super::certificates::Bundle;
use crate::act::fields::{self, NodeFacts};
use crate::host::{Payload, PayloadFile};
use crate::pods;
use k8s_openapi::api::core::v1 as api;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where content comes from. `Ok(None)`: it doesn't exist.
pub trait Sources {
    fn config_map(&self, name: &str) -> Result<Option<Arc<api::ConfigMap>>, String>;
    fn secret(&self, name: &str) -> Result<Option<Arc<api::Secret>>, String>;
    /// The token for this projection, fetched before.
    fn token(&self, audience: &str, seconds: i64) -> Result<String, String>;
    /// The certificates of a trust bundle projection, fetched before.
    fn trust_bundle(&self, p: &api::ClusterTrustBundleProjection) -> Result<Option<String>, String>;
    /// The certificate of the projection at this place of the volume, issued before.
    fn certificate(&self, volume: &str, index: usize) -> Result<Bundle, String>;
}

pub struct Context<'a> {
    pub pod: &'a api::Pod,
    pub facts: NodeFacts<'a>,
    pub sources: &'a dyn Sources,
}

const DEFAULT_MODE: i32 = 0o644;

/// The whole content of a volume, or `None` when it isn't made of files.
pub fn build(volume: &api::Volume, cx: &Context) -> Result<Option<Payload>, String> {
    let mut out = Payload::new();
    if let Some(s) = &volume.config_map {
        let mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        config_map(cx, &s.name, s.optional, s.items.as_ref(), mode, &mut out)?;
    } else if let Some(s) = &volume.secret {
        let mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        let name = s.secret_name.as_deref().unwrap_or_default();
        secret(cx, name, s.optional, s.items.as_ref(), mode, &mut out)?;
    } else if let Some(s) = &volume.downward_api {
        downward(cx, s.items.as_ref(), s.default_mode.unwrap_or(DEFAULT_MODE), &mut out)?;
    } else if let Some(s) = &volume.projected {
        let mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        for (i, source) in s.sources.iter().flatten().enumerate() {
            projection(cx, source, mode, &mut out)?;
            if let Some(p) = &source.pod_certificate {
                certificate(cx, p, &cx.sources.certificate(&volume.name, i)?, mode, &mut out);
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(out))
}

fn projection(cx: &Context, s: &api::VolumeProjection, mode: i32, out: &mut Payload) -> Result<(), String> {
    if let Some(p) = &s.config_map {
        config_map(cx, &p.name, p.optional, p.items.as_ref(), mode, out)?;
    }
    if let Some(p) = &s.secret {
        secret(cx, &p.name, p.optional, p.items.as_ref(), mode, out)?;
    }
    if let Some(p) = &s.downward_api {
        downward(cx, p.items.as_ref(), mode, out)?;
    }
    if let Some(p) = &s.service_account_token {
        let token = cx.sources.token(
            p.audience.as_deref().unwrap_or_default(),
            p.expiration_seconds.unwrap_or(3600),
        )?;
        out.insert(clean(&p.path), private(cx, token.into_bytes(), None, mode));
    }
    if let Some(p) = &s.cluster_trust_bundle {
        let optional = p.optional == Some(true);
        match cx.sources.trust_bundle(p)? {
            Some(pem) => {
                out.insert(clean(&p.path), private(cx, pem.into_bytes(), p.user, mode));
            }
            None if optional => {
                out.insert(clean(&p.path), private(cx, Vec::new(), p.user, mode));
            }
            None => {
                return Err("combination of signerName and labelSelector matched zero ClusterTrustBundles".into());
            }
        }
    }
    Ok(())
}

fn certificate(cx: &Context, p: &api::PodCertificateProjection, b: &Bundle, mode: i32, out: &mut Payload) {
    let parts = [
        (&p.credential_bundle_path, format!("{}{}", b.key, b.chain)),
        (&p.key_path, b.key.clone()),
        (&p.certificate_chain_path, b.chain.clone()),
    ];
    for (path, text) in parts {
        if let Some(path) = path.as_deref().filter(|p| !p.is_empty()) {
            out.insert(clean(path), private(cx, text.into_bytes(), p.user, mode));
        }
    }
}

/// A file for the pod's user (or group) alone, where one is known.
fn private(cx: &Context, data: Vec<u8>, user: Option<i64>, mode: i32) -> PayloadFile {
    let user = user.map(|u| u as u32).or_else(|| sole_user(cx.pod));
    let group = pods::spec(cx.pod).security_context.as_ref().and_then(|s| s.fs_group);
    let mode = if user.is_some() || group.is_some() { 0o600 } else { mode };
    PayloadFile {
        data,
        mode: mode as u32,
        user,
    }
}

fn file(data: Vec<u8>, mode: i32) -> PayloadFile {
    PayloadFile {
        data,
        mode: mode as u32,
        user: None,
    }
}

fn clean(path: &str) -> String {
    path.split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .collect::<Vec<_>>()
        .join("/")
}

/// The user all containers run as, if it is one and the same.
pub fn sole_user(pod: &api::Pod) -> Option<u32> {
    let pod_user = pods::spec(pod).security_context.as_ref().and_then(|s| s.run_as_user);
    let mut all = pods::containers(pod)
        .iter()
        .chain(pods::init_containers(pod))
        .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod_user));
    let first = all.next()??;
    all.all(|u| u == Some(first)).then_some(first as u32)
}

fn config_map(
    cx: &Context,
    name: &str,
    optional: Option<bool>,
    items: Option<&Vec<api::KeyToPath>>,
    mode: i32,
    out: &mut Payload,
) -> Result<(), String> {
    let optional = optional == Some(true);
    let Some(cm) = cx.sources.config_map(name)? else {
        return if optional {
            Ok(())
        } else {
            Err(format!("configmap \"{name}\" not found"))
        };
    };
    let mut data: BTreeMap<&str, Vec<u8>> = cm
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.clone().into_bytes()))
        .collect();
    data.extend(cm.binary_data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.clone())));
    keys(&data, items, optional, mode, out, |k| {
        format!("configmap references non-existent config key: {k}")
    })
}

fn secret(
    cx: &Context,
    name: &str,
    optional: Option<bool>,
    items: Option<&Vec<api::KeyToPath>>,
    mode: i32,
    out: &mut Payload,
) -> Result<(), String> {
    let optional = optional == Some(true);
    let Some(s) = cx.sources.secret(name)? else {
        return if optional {
            Ok(())
        } else {
            Err(format!("secret \"{name}\" not found"))
        };
    };
    let data: BTreeMap<&str, Vec<u8>> = s
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.0.clone()))
        .collect();
    keys(&data, items, optional, mode, out, |k| {
        format!("references non-existent secret key: {k}")
    })
}

fn keys(
    data: &BTreeMap<&str, Vec<u8>>,
    items: Option<&Vec<api::KeyToPath>>,
    optional: bool,
    mode: i32,
    out: &mut Payload,
    missing: impl Fn(&str) -> String,
) -> Result<(), String> {
    match items.filter(|i| !i.is_empty()) {
        None => out.extend(data.iter().map(|(k, v)| ((*k).to_owned(), file(v.clone(), mode)))),
        Some(items) => {
            for item in items {
                match data.get(item.key.as_str()) {
                    Some(v) => {
                        out.insert(clean(&item.path), file(v.clone(), item.mode.unwrap_or(mode)));
                    }
                    None if optional => {}
                    None => return Err(missing(&item.key)),
                }
            }
        }
    }
    Ok(())
}

fn downward(
    cx: &Context,
    items: Option<&Vec<api::DownwardAPIVolumeFile>>,
    mode: i32,
    out: &mut Payload,
) -> Result<(), String> {
    for item in items.into_iter().flatten() {
        let text = if let Some(f) = &item.field_ref {
            fields::field(cx.pod, &f.field_path, &cx.facts)?
        } else if let Some(r) = &item.resource_field_ref {
            fields::resource(cx.pod, None, r, cx.facts.allocatable)?
        } else {
            continue;
        };
        out.insert(clean(&item.path), file(text.into_bytes(), item.mode.unwrap_or(mode)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Fixed;

    impl Sources for Fixed {
        fn config_map(&self, name: &str) -> Result<Option<Arc<api::ConfigMap>>, String> {
            let cm = json!({"data": {"a": "1"}, "binaryData": {"b": "AAE="}});
            Ok((name == "cm").then(|| Arc::new(serde_json::from_value(cm).unwrap())))
        }
        fn secret(&self, _: &str) -> Result<Option<Arc<api::Secret>>, String> {
            Ok(None)
        }
        fn token(&self, _: &str, _: i64) -> Result<String, String> {
            Ok("tok".into())
        }
        fn trust_bundle(&self, _: &api::ClusterTrustBundleProjection) -> Result<Option<String>, String> {
            Ok(None)
        }
        fn certificate(&self, _: &str, _: usize) -> Result<Bundle, String> {
            Err("none".into())
        }
    }

    fn make(volume: serde_json::Value) -> Result<Payload, String> {
        let pod: api::Pod = serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"k": "v"}},
            "spec": {"securityContext": {"runAsUser": 7}, "containers": [{"name": "c"}]}}))
        .unwrap();
        let volume = serde_json::from_value(volume).unwrap();
        let facts = NodeFacts {
            host_ips: &[],
            pod_ips: &[],
            allocatable: &Default::default(),
        };
        build(
            &volume,
            &Context {
                pod: &pod,
                facts,
                sources: &Fixed,
            },
        )
        .map(Option::unwrap)
    }

    #[test]
    fn items_choose_paths_and_modes() {
        let p = make(json!({"name": "v", "configMap": {"name": "cm", "defaultMode": 256, "items": [{"key": "a", "path": "x/y", "mode": 448}]}})).unwrap();
        assert_eq!(
            p["x/y"],
            PayloadFile {
                data: b"1".to_vec(),
                mode: 0o700,
                user: None
            }
        );
        let e =
            make(json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}})).unwrap_err();
        assert_eq!(e, "configmap references non-existent config key: z");
        assert_eq!(
            make(json!({"name": "v", "secret": {"secretName": "s"}})).unwrap_err(),
            "secret \"s\" not found"
        );
        assert!(
            make(json!({"name": "v", "secret": {"secretName": "s", "optional": true}}))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn projections_are_combined() {
        let p = make(json!({"name": "v", "projected": {"sources": [
            {"configMap": {"name": "cm"}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"serviceAccountToken": {"path": "token"}}]}}))
        .unwrap();
        assert_eq!(p.keys().collect::<Vec<_>>(), ["a", "b", "labels", "token"]);
        assert_eq!(p["labels"].data, b"k=\"v\"");
        assert_eq!(
            p["token"],
            PayloadFile {
                data: b"tok".to_vec(),
                mode: 0o600,
                user: Some(7)
            }
        );
    }
}
