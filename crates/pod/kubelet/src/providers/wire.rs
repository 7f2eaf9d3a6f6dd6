//! What a plug-in is asked and what it answers: `CredentialProviderRequest` and `CredentialProviderResponse` of
//! `credentialprovider.kubelet.k8s.io`. What can't be read is told without a word of it: there may be passwords in it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

pub const V1: &str = "credentialprovider.kubelet.k8s.io/v1";
pub const VERSIONS: [&str; 3] = [
    V1,
    "credentialprovider.kubelet.k8s.io/v1alpha1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'static str,
    api_version: &'a str,
    image: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account_token: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_account_annotations: &'a BTreeMap<String, String>,
}

/// Only version 1 has room for a service account.
pub fn request(version: &str, image: &str, token: &str, annotations: &BTreeMap<String, String>) -> Vec<u8> {
    let request = Request {
        kind: "CredentialProviderRequest",
        api_version: version,
        image,
        service_account_token: token,
        service_account_annotations: annotations,
    };
    // Texts by name can always be written.
    let mut bytes = serde_json::to_vec(&request).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// For whom an answer is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    Image,
    Registry,
    Global,
}

#[derive(Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Login {
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password: String,
}

/// Logins by the patterns that they are for.
pub type Logins = BTreeMap<String, Login>;

pub struct Response {
    pub reach: Reach,
    /// How long it may be kept; `None`: as the settings have it.
    pub keep: Option<Duration>,
    pub logins: Logins,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    cache_key_type: String,
    cache_duration: Option<String>,
    auth: Option<Logins>,
}

/// Reads an answer, which has to be of the version that was asked in.
pub fn response(version: &str, bytes: &[u8]) -> Result<Response, String> {
    let unread = |e: serde_json::Error| {
        format!(
            "its answer can't be read as a CredentialProviderResponse, from line {} column {} on",
            e.line(),
            e.column()
        )
    };
    let head: Head = serde_json::from_slice(bytes).map_err(unread)?;
    if head.api_version != version || head.kind != "CredentialProviderResponse" {
        return Err(format!(
            "its answer isn't a CredentialProviderResponse of {version}, in which it was asked"
        ));
    }
    let body: Body = serde_json::from_slice(bytes).map_err(unread)?;
    let reach = match body.cache_key_type.as_str() {
        "Image" => Reach::Image,
        "Registry" => Reach::Registry,
        "Global" => Reach::Global,
        _ => return Err("the cacheKeyType of its answer must be Image, Registry or Global".into()),
    };
    let keep = body.cache_duration.map(|text| {
        let nanos =
            keelson_api::duration::parse(&text).map_err(|_| "the cacheDuration of its answer isn't a duration")?;
        Ok::<_, String>(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
    });
    Ok(Response {
        reach,
        keep: keep.transpose()?,
        logins: body.auth.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_upstreams() {
        let annotations = BTreeMap::from([("a.io/role".to_owned(), "x".to_owned())]);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(
            text(request(V1, "r.io/a", "t", &annotations)),
            "{\"kind\":\"CredentialProviderRequest\",\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\"image\":\"r.io/a\",\
             \"serviceAccountToken\":\"t\",\"serviceAccountAnnotations\":{\"a.io/role\":\"x\"}}\n"
        );
        assert_eq!(
            text(request(VERSIONS[2], "r.io/a", "", &BTreeMap::new())),
            "{\"kind\":\"CredentialProviderRequest\",\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1beta1\",\"image\":\"r.io/a\"}\n"
        );
    }

    #[test]
    fn an_answer_is_read_strictly_and_its_faults_tell_no_secret() {
        let with = |rest: &str| {
            let text = format!("{{\"apiVersion\":\"{V1}\",\"kind\":\"CredentialProviderResponse\"{rest}}}");
            response(V1, text.as_bytes())
        };
        let good =
            with(r#","cacheKeyType":"Registry","cacheDuration":"6h","auth":{"*.io":{"username":"u","password":"p"}}"#);
        let good = good.ok().unwrap();
        assert_eq!(
            (good.reach, good.keep),
            (Reach::Registry, Some(Duration::from_secs(6 * 3600)))
        );
        assert_eq!(good.logins["*.io"].password, "p");
        let bare = with(r#","cacheKeyType":"Image","auth":null"#).ok().unwrap();
        assert!(bare.keep.is_none() && bare.logins.is_empty());
        assert_eq!(
            with(r#","cacheKeyType":"Image","cacheDuration":"-1s""#)
                .ok()
                .unwrap()
                .keep,
            Some(Duration::ZERO)
        );
        for bad in [
            r#","auth":{}"#,
            r#","cacheKeyType":"hunter2""#,
            r#","cacheKeyType":"Image","cacheDuration":"hunter2""#,
            r#","cacheKeyType":"Image","auth":"hunter2""#,
            r#","cacheKeyType":"Image","auth":{"a":{"username":"u","hunter2":"p"}}"#,
            r#","cacheKeyType":"Image","hunter2":1"#,
        ] {
            let error = with(bad).err().unwrap();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(response(V1, b"{\"apiVersion\":\"v1\",\"kind\":\"CredentialProviderResponse\"}").is_err());
        assert!(response(V1, b"hunter2").is_err());
    }
}
