//! Prefers nodes that have the pod's images, the more so the larger they are and the more nodes have them.

use crate::framework::{Cycle, MAX_SCORE, Plugin, Scorer};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use std::sync::Arc;

const MIB: i64 = 1 << 20;
/// Below it an image is no reason; above it, for each container, it is no better one.
const LEAST: i64 = 23 * MIB;
const MOST: i64 = 1000 * MIB;

pub struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }
    fn scorer<'a>(&'a self, cycle: Cycle<'a>, _: &[&Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        let wanted: Vec<String> = images(cycle.pod).map(full_name).collect();
        // How many nodes have it. An image that none has is no reason for any.
        let spread = wanted.iter().map(|name| cycle.snapshot.nodes_with_image(name));
        let spread: Vec<usize> = spread.collect();
        let is_anywhere = spread.iter().any(|n| *n > 0);
        is_anywhere.then(|| {
            Box::new(Images {
                wanted: wanted.into_iter().zip(spread).collect(),
                nodes: cycle.snapshot.len(),
            }) as Box<dyn Scorer>
        })
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        images(a).eq(images(b))
    }
}

fn images(pod: &PodInfo) -> impl Iterator<Item = &str> {
    let spec = || pod.pod.spec.iter();
    let init = spec().flat_map(|spec| spec.init_containers.iter().flatten());
    let containers = init.chain(spec().flat_map(|spec| &spec.containers));
    let volumes = spec().flat_map(|spec| spec.volumes.iter().flatten());
    containers
        .filter_map(|c| c.image.as_deref())
        .chain(volumes.filter_map(|v| v.image.as_ref()?.reference.as_deref()))
}

struct Images {
    /// With the number of nodes that have it.
    wanted: Vec<(String, usize)>,
    nodes: usize,
}

impl Scorer for Images {
    fn score(&self, node: &NodeInfo) -> i64 {
        if node.images.is_empty() {
            return 0;
        }
        let here = self
            .wanted
            .iter()
            .filter_map(|(name, on)| Some((node.images.get(name)?, on)));
        let sum: i64 = here
            .map(|(size, on)| (*size as f64 * (*on as f64 / self.nodes as f64)) as i64)
            .sum();
        let most = MOST * self.wanted.len() as i64;
        MAX_SCORE * (sum.clamp(LEAST, most) - LEAST) / (most - LEAST)
    }
}

fn full_name(name: &str) -> String {
    let has_tag = name.rfind(':') > name.rfind('/');
    if has_tag {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}
