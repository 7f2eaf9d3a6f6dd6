//! Files of volumes that would be written over each other.

use super::{Errs, s};
use keelson_api::Map;

/// A file, and what it comes from.
#[derive(Clone, PartialEq)]
struct File {
    path: String,
    source: String,
}

impl File {
    fn new(path: &str, source: &str) -> File {
        File {
            path: path.trim_end_matches('/').into(),
            source: source.into(),
        }
    }
    fn shown(&self) -> String {
        match self.source.is_empty() {
            true => format!("{:?}", self.path),
            false => format!("{:?} ({})", self.path, self.source),
        }
    }
    /// Whether one is the other, or lies in it.
    fn overlaps(&self, other: &File) -> bool {
        let (a, b) = (format!("{}/", self.path), format!("{}/", other.path));
        !other.path.is_empty() && (a.starts_with(&b) || b.starts_with(&a))
    }
}

/// Files in order, and what those before them they overlap.
#[derive(Default)]
struct Files(Vec<File>);

impl Files {
    fn add(&mut self, e: &mut Errs, volume: &str, of: &str, file: File) {
        if !file.path.is_empty() {
            for other in self.0.iter().filter(|other| file.overlaps(other)) {
                e.remark(format!(
                    "volume {volume:?} ({of}): overlapping paths: {} with {}",
                    file.shown(),
                    other.shown()
                ));
            }
        }
        self.0.push(file);
    }
    fn add_items(&mut self, e: &mut Errs, volume: &str, of: &str, o: &Map, source: &str) {
        for item in o.arr("items").into_iter().flatten().filter_map(|i| i.as_object()) {
            self.add(e, volume, of, File::new(s(item, "path"), source));
        }
    }
}

pub fn overlaps(e: &mut Errs, volume: &Map) {
    let name = s(volume, "name");
    if let Some(map) = volume.obj("configMap") {
        let of = format!("ConfigMap {:?}", s(map, "name"));
        Files::default().add_items(e, name, &of, map, "");
    }
    if let Some(secret) = volume.obj("secret") {
        let of = format!("Secret {:?}", s(secret, "secretName"));
        Files::default().add_items(e, name, &of, secret, "");
    }
    if let Some(downward) = volume.obj("downwardAPI") {
        Files::default().add_items(e, name, "DownwardAPI", downward, "");
    }
    if let Some(projected) = volume.obj("projected") {
        let mut files = Files::default();
        for source in projected
            .arr("sources")
            .into_iter()
            .flatten()
            .filter_map(|v| v.as_object())
        {
            projection(e, name, source, &mut files);
        }
    }
}

fn projection(e: &mut Errs, name: &str, source: &Map, files: &mut Files) {
    if source.is_empty() {
        return e.remark(format!("volume {name:?} (Projected) has no sources provided"));
    }
    for (key, kind) in [("configMap", "ConfigMap"), ("secret", "Secret")] {
        if let Some(o) = source.obj(key) {
            return files.add_items(e, name, "Projected", o, &format!("{kind} {:?}", s(o, "name")));
        }
    }
    if let Some(o) = source.obj("downwardAPI") {
        files.add_items(e, name, "Projected", o, "DownwardAPI");
    } else if let Some(o) = source.obj("serviceAccountToken") {
        files.add(e, name, "Projected", File::new(s(o, "path"), "ServiceAccountToken"));
    } else if let Some(o) = source.obj("clusterTrustBundle") {
        let of = o.str("name").unwrap_or_else(|| s(o, "signerName"));
        files.add(
            e,
            name,
            "Projected",
            File::new(s(o, "path"), &format!("ClusterTrustBundle {of:?}")),
        );
    } else if let Some(o) = source.obj("podCertificate") {
        for (key, what) in [
            ("certificateChainPath", "chain"),
            ("keyPath", "key"),
            ("credentialBundlePath", "credential bundle"),
        ] {
            if !s(o, key).is_empty() {
                files.add(
                    e,
                    name,
                    "Projected",
                    File::new(s(o, key), &format!("PodCertificate {what}")),
                );
            }
        }
    }
}
