//! Static pods: manifests in a directory, which the kernel tells about. Each runs whether or not the API is there, and
//! is shown in the API by a mirror.

use super::mirror::Mirrors;
use crate::kubelet::Kubelet;
use crate::pods;
use k8s_openapi::api::core::v1::Pod;
use keelson_follow::{Target, Watch};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long what couldn't be watched is left alone.
const AGAIN: Duration = Duration::from_secs(5);

/// Reads the directory and follows it; the present manifests have been read when this returns.
pub fn start(kl: &Arc<Kubelet>, mirrors: &Arc<Mirrors>) -> anyhow::Result<()> {
    let Some(dir) = kl.cfg.static_pod_path.clone() else {
        return Ok(());
    };
    std::fs::create_dir_all(&dir)?;
    let mut watch = Watch::new(vec![Target::Directory(dir.clone())])?;
    let mut known = BTreeMap::new();
    apply(kl, mirrors, read_dir(&dir, &kl.cfg.node_name), &mut known);
    let (kl, mirrors) = (kl.clone(), mirrors.clone());
    tokio::spawn(async move {
        loop {
            let changed = tokio::select! {
                () = kl.stop.cancelled() => return,
                changed = watch.changed() => changed,
            };
            if let Err(e) = changed {
                tracing::warn!("following the static pod manifests failed: {e}");
                tokio::time::sleep(AGAIN).await;
            }
            let (from, node) = (dir.clone(), kl.cfg.node_name.clone());
            match tokio::task::spawn_blocking(move || read_dir(&from, &node)).await {
                Ok(now) => apply(&kl, &mirrors, now, &mut known),
                Err(e) => tracing::error!("reading the static pod manifests ended: {e}"),
            }
        }
    });
    Ok(())
}

fn apply(
    kl: &Arc<Kubelet>,
    mirrors: &Arc<Mirrors>,
    now: std::io::Result<BTreeMap<String, Arc<Pod>>>,
    known: &mut BTreeMap<String, Arc<Pod>>,
) {
    let now = match now {
        Ok(now) => now,
        Err(e) => {
            tracing::warn!("the static pod manifests can't be read: {e}");
            return;
        }
    };
    let gone: BTreeSet<String> = known.keys().filter(|k| !now.contains_key(*k)).cloned().collect();
    for uid in gone {
        known.remove(&uid);
        mirrors.unwanted(kl, &uid);
        kl.workers.remove(&uid);
    }
    for (uid, pod) in now {
        if let std::collections::btree_map::Entry::Vacant(place) = known.entry(uid) {
            place.insert(pod.clone());
            mirrors.wanted(kl, &pod);
            kl.workers.update(kl, pod);
        }
    }
}

fn read_dir(dir: &Path, node: &str) -> std::io::Result<BTreeMap<String, Arc<Pod>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        let text = std::fs::read(&path)?;
        match parse(&text, node) {
            Ok(pod) => {
                found.insert(pods::uid(&pod).to_owned(), Arc::new(pod));
            }
            Err(e) => tracing::warn!("the static pod manifest {} is left out: {e}", path.display()),
        }
    }
    Ok(found)
}

/// A manifest as the pod it stands for: named after the node, identified by its content.
pub fn parse(text: &[u8], node: &str) -> Result<Pod, String> {
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    if value["kind"] != "Pod" {
        return Err("it is not a Pod".into());
    }
    let hash = format!("{:016x}", pods::hash(&[&value.to_string(), node]));
    let mut pod: Pod = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let meta = &mut pod.metadata;
    let name = meta.name.clone().filter(|n| !n.is_empty()).ok_or("it has no name")?;
    meta.name = Some(format!("{name}-{node}"));
    meta.namespace.get_or_insert_with(|| "default".into());
    meta.uid.get_or_insert_with(|| hash.clone());
    let notes = meta.annotations.get_or_insert_default();
    notes.insert(pods::HASH_ANNOTATION.into(), hash);
    notes.insert(pods::SOURCE_ANNOTATION.into(), "file".into());
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node.to_owned());
    defaults(spec);
    Ok(pod)
}

/// What the API server would have filled in.
fn defaults(spec: &mut k8s_openapi::api::core::v1::PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    let tolerations = spec.tolerations.get_or_insert_default();
    tolerations.push(k8s_openapi::api::core::v1::Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Default::default()
    });
    for c in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        c.termination_message_path
            .get_or_insert_with(|| "/dev/termination-log".into());
        c.termination_message_policy.get_or_insert_with(|| "File".into());
        if c.image_pull_policy.is_none() {
            let latest =
                crate::act::image_name::parse(c.image.as_deref().unwrap_or_default()).is_ok_and(|n| n.is_latest);
            c.image_pull_policy = Some(if latest { "Always" } else { "IfNotPresent" }.into());
        }
        if let Some(r) = c.resources.as_mut()
            && let Some(limits) = &r.limits
        {
            let requests = r.requests.get_or_insert_default();
            for (k, v) in limits {
                requests.entry(k.clone()).or_insert_with(|| v.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_becomes_a_pod() {
        let text =
            b"apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: c, image: busybox}\n";
        let pod = parse(text, "n1").unwrap();
        assert_eq!((pods::name(&pod), pods::namespace(&pod)), ("web-n1", "default"));
        assert!(pods::is_static(&pod));
        assert_eq!(pods::containers(&pod)[0].image_pull_policy.as_deref(), Some("Always"));
        assert_eq!(parse(text, "n1").unwrap().metadata.uid, pod.metadata.uid);
        // A new release must not take it for another pod.
        assert_eq!(pod.metadata.uid.as_deref(), Some("1584b00c395338e0"));
        assert!(parse(b"kind: Service", "n1").is_err());
    }
}
