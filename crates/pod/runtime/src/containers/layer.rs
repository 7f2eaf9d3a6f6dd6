//! What a container's writable layer takes on disk: found by walking it, a system call for each file, and so remembered
//! between questions. The more files there are the longer.

use std::path::Path;
use std::time::{Duration, Instant};

use keelson_cri::v1;
use parking_lot::Mutex;

use super::stats::filesystem;

const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(600);
/// So many times as long as a walk took its result stands: no layer costs more than a hundredth of a core.
const REST: u32 = 100;

#[derive(Default)]
pub struct Layer(Mutex<Option<Walk>>);

struct Walk {
    found: v1::FilesystemUsage,
    stands_until: Instant,
}

impl Layer {
    /// Blocks while the layer is walked, by whomever. The answer says when that was.
    pub fn usage(&self, directory: &Path, mount_point: &Path) -> v1::FilesystemUsage {
        self.usage_at(Instant::now(), directory, mount_point)
    }

    fn usage_at(&self, now: Instant, directory: &Path, mount_point: &Path) -> v1::FilesystemUsage {
        let mut walk = self.0.lock();
        if let Some(walk) = walk.as_ref().filter(|w| now < w.stands_until) {
            return walk.found.clone();
        }
        let began = Instant::now();
        let found = filesystem(directory, mount_point);
        let rest = began.elapsed().saturating_mul(REST).clamp(SHORTEST, LONGEST);
        *walk = Some(Walk {
            found: found.clone(),
            stands_until: now + rest,
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_walked_again_when_the_last_walk_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let inodes = |u: v1::FilesystemUsage| u.inodes_used.map(|v| v.value);
        let (layer, now) = (Layer::default(), Instant::now());
        let at = |now| inodes(layer.usage_at(now, dir.path(), dir.path()));
        assert_eq!(at(now), Some(0));
        std::fs::write(dir.path().join("file"), "text").unwrap();
        assert_eq!(at(now + SHORTEST / 2), Some(0));
        assert_eq!(at(now + LONGEST), Some(1));
    }
}
