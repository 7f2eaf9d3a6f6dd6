//! Objects without what is each run's own: uids, revisions, moments, addresses, drawn names and hashes.

use crate::controllers::player::text;
use crate::controllers::seen::Of;
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

macro_rules! pattern {
    ($name:ident, $text:literal) => {
        #[allow(clippy::unwrap_used, reason = "a constant")]
        static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($text).unwrap());
    };
}
pattern!(UID, "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}");
pattern!(
    MOMENT,
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?[+-]\d\d:?\d\d)?( UTC)?( m=[+.0-9]+)?Z?"
);
pattern!(ADDRESS, r"\b10\.(244|96)\.\d+\.\d+(/\d+)?\b");
pattern!(MINUTE, r"-\d{8}\b");
// What a server draws from.
pattern!(DRAWN, "-[bcdfghjklmnpqrstvwxz2456789]{5}\\b");
pattern!(FINGERPRINT, "SHA256=[0-9a-f]{64}");
pattern!(ACCOUNT, "kube-api-access-[a-z0-9]{5}");

/// What this run drew, and what stands for it.
pub struct Mask {
    /// The longest first.
    drawn: Vec<(String, String)>,
    uids: HashMap<String, String>,
}

impl Mask {
    pub fn new(of: &Of) -> Mask {
        let mut drawn: BTreeMap<String, String> = BTreeMap::new();
        let mut uids = HashMap::new();
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for object in &of.ever {
            let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
            let hash = match kind {
                "ReplicaSet" => text(object, "/metadata/labels/pod-template-hash"),
                "ControllerRevision" => name.rsplit('-').next().unwrap_or_default(),
                _ => "",
            };
            if hash.len() > 4 {
                let what = if kind == "ReplicaSet" { "hash" } else { "revision" };
                let stem = name.rsplit_once('-').map_or(name, |(stem, _)| stem);
                let n = count.entry(format!("{kind} {stem}")).or_default();
                drawn.entry(hash.into()).or_insert_with(|| {
                    *n += 1;
                    format!("<{what} {n}>")
                });
            }
            let prefix = text(object, "/metadata/generateName");
            if !prefix.is_empty() && name.starts_with(prefix) && name != prefix {
                drawn.insert(name.into(), format!("{prefix}<drawn>"));
            }
            uids.insert(
                text(object, "/metadata/uid").to_string(),
                format!("<uid of {kind} {name}>"),
            );
        }
        let mut drawn: Vec<(String, String)> = drawn.into_iter().collect();
        drawn.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        let mut mask = Mask {
            drawn,
            uids: HashMap::new(),
        };
        mask.uids = uids.into_iter().map(|(uid, of)| (uid, mask.text(&of))).collect();
        mask
    }

    pub fn text(&self, said: &str) -> String {
        let mut out = said.to_string();
        for (name, mark) in &self.drawn {
            if out.contains(name) {
                out = out.replace(name, mark);
            }
        }
        let out = UID.replace_all(&out, |c: &regex::Captures<'_>| {
            self.uids.get(&c[0]).cloned().unwrap_or_else(|| "<uid>".into())
        });
        let out = MOMENT.replace_all(&out, "<moment>");
        let out = ADDRESS.replace_all(&out, "<address>");
        let out = MINUTE.replace_all(&out, "-<minute>");
        let out = FINGERPRINT.replace_all(&out, "<fingerprint>");
        let out = ACCOUNT.replace_all(&out, "<account>");
        DRAWN.replace_all(&out, "-<drawn>").into_owned()
    }

    pub fn object(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if text(&object, "/type") == "kubernetes.io/service-account-token" {
            object["data"] = match object["data"].as_object() {
                Some(data) => data.keys().cloned().collect(),
                None => Value::Null,
            };
        }
        let written = text(&object, "/kind") == "EndpointSlice";
        if let Some(meta) = object["metadata"].as_object_mut() {
            // Changes that come together are written together, or not.
            if written {
                meta.remove("generation");
            }
            for own in ["resourceVersion", "uid", "creationTimestamp"] {
                meta.remove(own);
            }
        }
        self.value("", &mut object);
        object
    }

    fn value(&self, key: &str, value: &mut Value) {
        match value {
            Value::Object(map) => self.map(map),
            Value::Array(items) => {
                items.iter_mut().for_each(|v| self.value(key, v));
                if is_set(key) {
                    items.sort_by_cached_key(|item| (text(item, "/type").to_string(), item.to_string()));
                }
            }
            Value::String(said) if said.contains("-----BEGIN") || key == "ca.crt" => *said = "<certificate>".into(),
            Value::String(said) => {
                *said = match key {
                    "resourceVersion" | "certificate" | "token" => format!("<{key}>"),
                    "clusterIP" | "clusterIPs" if said != "None" => "<address>".into(),
                    _ => self.text(said),
                }
            }
            Value::Number(_) if key == "nodePort" => *value = "<port>".into(),
            _ => {}
        }
    }

    fn map(&self, map: &mut Map<String, Value>) {
        for own in ["fieldsV1", "time"] {
            // Of managed fields who and what is compared, the fields themselves are the API server's.
            if map.contains_key("fieldsType") {
                map.remove(own);
            }
        }
        let entries = std::mem::take(map);
        for (key, mut value) in entries {
            self.value(&key, &mut value);
            map.insert(self.text(&key), value);
        }
    }
}

/// Lists whose order means nothing.
fn is_set(key: &str) -> bool {
    matches!(
        key,
        "conditions"
            | "ownerReferences"
            | "managedFields"
            | "endpoints"
            | "addresses"
            | "notReadyAddresses"
            | "finalizers"
            | "taints"
            | "subsets"
            | "volumesAttached"
            | "ports"
    )
}
