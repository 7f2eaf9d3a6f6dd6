//! Files of volumes that would be written over each other.

use super::{Errs, MOST, s};
use keelson_api::Map;

/// A file, and what it comes from.
#[derive(Clone, PartialEq)]
struct File {
    /// With a slash at its end.
    path: String,
    source: String,
}

impl File {
    fn new(path: &str, source: &str) -> File {
        File {
            path: format!("{}/", path.trim_end_matches('/')),
            source: source.into(),
        }
    }
    fn is_named(&self) -> bool {
        self.path != "/"
    }
    fn shown(&self) -> String {
        let path = self.path.trim_end_matches('/');
        match self.source.is_empty() {
            true => format!("{path:?}"),
            false => format!("{path:?} ({})", self.source),
        }
    }
    /// Whether one is the other, or lies in it.
    fn overlaps(&self, other: &File) -> bool {
        other.is_named() && (self.path.starts_with(&other.path) || other.path.starts_with(&self.path))
    }
}

/// Files in order, and what those before them they overlap.
#[derive(Default)]
struct Files(Vec<File>);

impl Files {
    fn add(&mut self, e: &mut Errs, volume: &str, of: &str, file: File) {
        if self.0.len() >= MOST {
            return;
        }
        if file.is_named() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::{Value, value};

    fn warnings(items: Vec<Value>) -> Vec<String> {
        let volume = value!({"name": "v", "configMap": {"name": "m", "items": Value::Array(items)}});
        let mut e = Errs::default();
        overlaps(&mut e, volume.as_object().expect("a map"));
        e.list.into_iter().map(super::super::shown).collect()
    }

    #[test]
    fn files_that_lie_in_each_other_are_told_by_their_paths() {
        let item = |path: &str| value!({"key": "k", "path": path});
        assert_eq!(
            warnings(vec![item("a"), item("b"), item("a/c/"), item("ab")]),
            [r#"volume "v" (ConfigMap "m"): overlapping paths: "a/c" with "a""#]
        );
    }

    #[test]
    fn a_request_full_of_files_costs_little() {
        let began = std::time::Instant::now();
        let same = warnings(vec![value!({"key": "k", "path": "a"}); 60_000]);
        assert_eq!(same.len(), MOST);
        let others = (0..60_000).map(|n| value!({"key": "k", "path": n.to_string()}));
        assert_eq!(warnings(others.collect()), [] as [String; 0]);
        // Compared each with each it would be minutes; a busy machine is slow, too.
        assert!(
            began.elapsed() < std::time::Duration::from_secs(30),
            "{:?}",
            began.elapsed()
        );
    }
}
