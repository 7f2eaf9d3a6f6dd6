//! A ConfigMap or a Secret as far as it is followed: a print of its content, and what it says of being followed. The content itself isn't kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::ApiObject;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Of Reloader: it is followed by those that search; by nobody.
const MATCH: &str = "reloader.stakater.com/match";
const IGNORE: &str = "reloader.stakater.com/ignore";
/// So many bytes are told.
const TOLD: usize = 8;

#[derive(Clone, Debug, Serialize)]
pub struct Print {
    metadata: ObjectMeta,
    #[serde(skip)]
    print: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    binary_data: Value,
}

impl Print {
    /// Who may read a workload sees it, and is not to find out a secret's value by trying: it is of the object's uid, too.
    pub fn text(&self) -> &str {
        &self.print
    }

    pub fn is_followed(&self, only_matching: bool) -> bool {
        let says = |key: &str| {
            self.metadata
                .annotations
                .as_ref()
                .is_some_and(|a| a.get(key).is_some_and(|v| v == "true"))
        };
        !says(IGNORE) && (!only_matching || says(MATCH))
    }
}

impl ApiObject for Print {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
    fn decode(json: &[u8]) -> serde_json::Result<Self> {
        let Content {
            metadata,
            data,
            binary_data,
        } = serde_json::from_slice(json)?;
        let mut sum = Sha256::new();
        sum.update(metadata.uid.as_deref().unwrap_or_default());
        for part in [data, binary_data] {
            sum.update([0]);
            sum.update(serde_json::to_vec(&part)?);
        }
        let print = hex::encode(&sum.finalize()[..TOLD]);
        Ok(Print { metadata, print })
    }
    fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// What isn't asked for isn't kept.
pub fn strip(print: &mut Print) {
    let meta = &mut print.metadata;
    (meta.managed_fields, meta.labels, meta.owner_references) = (None, None, None);
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|key, _| key == MATCH || key == IGNORE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_print_is_of_the_content_and_the_object() {
        let print = |uid: &str, data: Value, annotations: Value| {
            let object = json!({"metadata": {"name": "a", "uid": uid, "annotations": annotations}, "data": data});
            Print::decode(object.to_string().as_bytes()).unwrap()
        };
        let one = print("u", json!({"a": "1"}), json!({}));
        assert_eq!(one.text(), print("u", json!({"a": "1"}), json!({"x": "y"})).text());
        assert_ne!(one.text(), print("u", json!({"a": "2"}), json!({})).text());
        assert_ne!(one.text(), print("v", json!({"a": "1"}), json!({})).text());
        assert!(one.is_followed(false) && !one.is_followed(true));
        assert!(print("u", json!({}), json!({MATCH: "true"})).is_followed(true));
        assert!(!print("u", json!({}), json!({IGNORE: "true"})).is_followed(false));
    }
}
