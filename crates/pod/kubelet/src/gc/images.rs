//! Removes images that no container uses: the long unused whatever the disk has, and others, the longest unused first,
//! when the disk is getting full. Images that no kubelet pulled go last: nobody may be able to bring them again.

use crate::act::images::place;
use crate::kubelet::Kubelet;
use keelson_client::EventType;
use keelson_cri::v1 as cri;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// When each image was first seen and last used, since the kubelet started.
pub struct Seen {
    began: Instant,
    images: BTreeMap<String, Times>,
}

#[derive(Clone, Copy)]
struct Times {
    first: Instant,
    used: Option<Instant>,
}

impl Default for Seen {
    fn default() -> Self {
        Seen {
            began: Instant::now(),
            images: BTreeMap::new(),
        }
    }
}

/// An image that nothing uses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unused {
    id: String,
    size: u64,
    /// Not pulled by a kubelet.
    preloaded: bool,
    used: Option<Instant>,
    first: Instant,
}

/// Once in a while: what is too old, and what the disk has no room for.
pub async fn collect(kl: &Kubelet) -> Result<(), String> {
    let mut seen = kl.image_gc.lock().await;
    let (now, began) = (Instant::now(), kl.host.now());
    let mut unused = look(kl, &mut seen, now).await?;
    if is_old_enough(now.duration_since(seen.began), kl.cfg.image_max_age) {
        let mut kept = Vec::new();
        for image in unused {
            let idle = image.used.map(|used| now.duration_since(used));
            if idle.is_some_and(|idle| idle <= kl.cfg.image_max_age) || !remove(kl, &image, "age").await {
                kept.push(image);
            }
        }
        unused = kept;
    }
    let disks = kl.disks().await;
    let fs = disks.measure(&*kl.host, &kl.layout.root, disks.images);
    let fs = fs.map_err(|e| e.to_string())?;
    let full = to_free(
        fs.capacity,
        fs.available,
        kl.cfg.image_gc_high_percent,
        kl.cfg.image_gc_low_percent,
    );
    let Some((percent, need)) = full else {
        return forget(kl, began).await;
    };
    let freed = free(kl, unused, need, now).await;
    kl.node.changed.notify_one();
    if freed < need {
        let node = k8s_openapi::api::core::v1::ObjectReference {
            kind: Some("Node".into()),
            name: Some(kl.cfg.node_name.clone()),
            uid: Some(kl.cfg.node_name.clone()),
            ..Default::default()
        };
        let message = format!(
            "Insufficient free disk space on the node's image filesystem ({percent}% of {} used). Failed to free \
             sufficient space by deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be \
             used by active images, logs, volumes, or other data.",
            readable(fs.capacity)
        );
        kl.recorder
            .event_for(&node, EventType::Warning, "FreeDiskSpaceFailed", message);
    }
    forget(kl, began).await
}

/// Under pressure: all unused images that are old enough.
pub async fn delete_unused(kl: &Kubelet) -> Result<(), String> {
    let mut seen = kl.image_gc.lock().await;
    let (now, began) = (Instant::now(), kl.host.now());
    let unused = look(kl, &mut seen, now).await?;
    free(kl, unused, u64::MAX, now).await;
    kl.node.changed.notify_one();
    forget(kl, began).await
}

/// Unused images in the order in which they go.
async fn look(kl: &Kubelet, seen: &mut Seen, now: Instant) -> Result<Vec<Unused>, String> {
    let images = list(kl).await?;
    let used = used(kl).await?;
    seen.images.retain(|id, _| images.iter().any(|i| i.id == *id));
    let mut unused = Vec::new();
    for image in &images {
        let times = seen
            .images
            .entry(image.id.clone())
            .or_insert(Times { first: now, used: None });
        if is_used(image, &used) {
            times.used = Some(now);
        } else if !image.pinned {
            unused.push(Unused {
                id: image.id.clone(),
                size: image.size,
                preloaded: !kl.images.pulled.knows(place(kl), &image.id),
                used: times.used,
                first: times.first,
            });
        }
    }
    unused.sort_by_key(order);
    Ok(unused)
}

fn order(image: &Unused) -> (bool, Option<Instant>, Instant) {
    (image.preloaded, image.used, image.first)
}

/// Removes images until so many bytes are free; says how many are.
async fn free(kl: &Kubelet, unused: Vec<Unused>, need: u64, now: Instant) -> u64 {
    let mut freed = 0;
    for image in unused {
        if freed >= need {
            break;
        }
        if now.duration_since(image.first) >= kl.cfg.image_min_age && remove(kl, &image, "space").await {
            freed += image.size;
        }
    }
    freed
}

async fn remove(kl: &Kubelet, image: &Unused, reason: &str) -> bool {
    let spec = cri::ImageSpec {
        image: image.id.clone(),
        ..Default::default()
    };
    let request = cri::RemoveImageRequest { image: Some(spec) };
    match kl.cri.image.clone().remove_image(request).await {
        Ok(_) => {
            kl.metrics.images_collected.with_label_values(&[reason]).inc();
            true
        }
        Err(e) => {
            tracing::warn!("the unused image {} can't be removed: {e}", image.id);
            false
        }
    }
}

/// Forgets what is known of images that are gone.
async fn forget(kl: &Kubelet, began: jiff::Timestamp) -> Result<(), String> {
    let present: HashSet<String> = list(kl).await?.into_iter().map(|i| i.id).collect();
    kl.images.pulled.prune(place(kl), &present, began);
    Ok(())
}

pub async fn list(kl: &Kubelet) -> Result<Vec<cri::Image>, String> {
    let request = cri::ListImagesRequest { filter: None };
    let answer = kl.cri.image.clone().list_images(request).await;
    Ok(answer.map_err(|e| crate::rpc_text(&e))?.into_inner().images)
}

/// What was used before the kubelet started is not known, so nothing is too old until it has run that long itself.
fn is_old_enough(running: Duration, max_age: Duration) -> bool {
    !max_age.is_zero() && running > max_age
}

/// Once the disk is as full as `high`: how full, in percent, and how many bytes to free down to `low`.
fn to_free(capacity: u64, available: u64, high: u64, low: u64) -> Option<(u64, u64)> {
    if capacity == 0 {
        return None;
    }
    let (capacity, available) = (u128::from(capacity), u128::from(available.min(capacity)));
    let percent = 100 - (available * 100 / capacity) as u64;
    let wanted = capacity * u128::from(100 - low.min(100)) / 100;
    (percent >= high).then(|| (percent, wanted.saturating_sub(available) as u64))
}

/// With the largest unit that fits.
pub fn readable(bytes: u64) -> String {
    let mut size = bytes as f64;
    if size < 1024.0 {
        return format!("{bytes} B");
    }
    let mut unit = "";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    format!("{size:.1} {unit}")
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
        assert_eq!(to_free(1000, 150, 85, 80), Some((85, 50)));
        assert_eq!(to_free(1000, 100, 85, 80), Some((90, 100)));
        assert_eq!(to_free(0, 0, 85, 80), None);
        assert_eq!(readable(100 << 30), "100.0 GiB");
        assert_eq!(readable(100), "100 B");
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_unused_goes_first_and_what_nobody_pulled_last() {
        let now = Instant::now();
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        let image = |id: &str, preloaded: bool, used: Option<u64>, first: u64| Unused {
            id: id.into(),
            size: 1,
            preloaded,
            used: used.map(at),
            first: at(first),
        };
        let mut list = [
            image("brought", true, None, 0),
            image("late", false, Some(9), 0),
            image("early", false, Some(5), 0),
            image("never, young", false, None, 7),
            image("never, old", false, None, 3),
        ];
        list.sort_by_key(order);
        let ids: Vec<&str> = list.iter().map(|i| i.id.as_str()).collect();
        assert_eq!(ids, ["never, old", "never, young", "early", "late", "brought"]);
        assert!(!is_old_enough(Duration::from_secs(9), Duration::ZERO));
        assert!(!is_old_enough(Duration::from_secs(9), Duration::from_secs(9)));
        assert!(is_old_enough(Duration::from_secs(10), Duration::from_secs(9)));
    }
}
