//! Removes images that no container uses, the longest unused first, when the disk is getting full.

use crate::kubelet::Kubelet;
use keelson_client::EventType;
use keelson_cri::v1 as cri;
use std::collections::{BTreeMap, HashSet};
use tokio::time::Instant;

/// When each image was first seen and last used.
#[derive(Default)]
pub struct Seen(BTreeMap<String, (Instant, Instant)>);

pub async fn collect(kl: &Kubelet, seen: &mut Seen) -> Result<(), String> {
    let now = Instant::now();
    let images = kl
        .cri
        .image
        .clone()
        .list_images(cri::ListImagesRequest { filter: None })
        .await
        .map_err(|e| crate::rpc_text(&e))?
        .into_inner()
        .images;
    let used = used(kl).await?;
    seen.0.retain(|id, _| images.iter().any(|i| i.id == *id));
    for i in &images {
        let entry = seen.0.entry(i.id.clone()).or_insert((now, now));
        if is_used(i, &used) {
            entry.1 = now;
        }
    }
    let fs = kl.host.fs_stats(&kl.layout.root).map_err(|e| e.to_string())?;
    let Some(need) = to_free(
        fs.capacity,
        fs.available,
        kl.cfg.image_gc_high_percent,
        kl.cfg.image_gc_low_percent,
    ) else {
        return Ok(());
    };
    let mut candidates: Vec<&cri::Image> = images.iter().filter(|i| !i.pinned && !is_used(i, &used)).collect();
    candidates.sort_by_key(|i| seen.0.get(&i.id).map(|s| (s.1, s.0)));
    let mut freed = 0;
    for image in candidates {
        let old_enough = seen
            .0
            .get(&image.id)
            .is_some_and(|s| now.duration_since(s.0) >= kl.cfg.image_min_age);
        if freed >= need || !old_enough {
            continue;
        }
        let spec = cri::ImageSpec {
            image: image.id.clone(),
            ..Default::default()
        };
        match kl
            .cri
            .image
            .clone()
            .remove_image(cri::RemoveImageRequest { image: Some(spec) })
            .await
        {
            Ok(_) => freed += image.size,
            Err(e) => tracing::warn!("the unused image {} can't be removed: {e}", image.id),
        }
    }
    kl.node.changed.notify_one();
    if freed < need {
        let node = k8s_openapi::api::core::v1::ObjectReference {
            kind: Some("Node".into()),
            name: Some(kl.cfg.node_name.clone()),
            uid: Some(kl.cfg.node_name.clone()),
            ..Default::default()
        };
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {need} bytes, but only found {freed} bytes eligible to free."
        );
        kl.recorder
            .event_for(&node, EventType::Warning, "FreeDiskSpaceFailed", message);
    }
    Ok(())
}

/// Bytes to free, once the disk is fuller than `high`: down to `low`.
fn to_free(capacity: u64, available: u64, high: u64, low: u64) -> Option<u64> {
    if capacity == 0 {
        return None;
    }
    let used = capacity.saturating_sub(available) as u128;
    (used * 100 >= capacity as u128 * high as u128)
        .then(|| (used - capacity as u128 * low as u128 / 100) as u64)
        .filter(|n| *n > 0)
}

async fn used(kl: &Kubelet) -> Result<HashSet<String>, String> {
    let request = cri::ListContainersRequest { filter: None };
    let containers = kl
        .cri
        .runtime
        .clone()
        .list_containers(request)
        .await
        .map_err(|e| crate::rpc_text(&e))?
        .into_inner();
    let mut used = HashSet::new();
    for c in containers.containers {
        used.extend([c.image_ref, c.image_id]);
        used.extend(c.image.map(|i| i.image));
    }
    used.remove("");
    Ok(used)
}

fn is_used(i: &cri::Image, used: &HashSet<String>) -> bool {
    used.contains(&i.id) || i.repo_tags.iter().chain(&i.repo_digests).any(|n| used.contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_freed_before_the_high_mark() {
        assert_eq!(to_free(1000, 200, 85, 80), None);
        assert_eq!(to_free(1000, 100, 85, 80), Some(100));
    }
}
