//! What `keelson user`, `certificate` and `token` take back: records in the cluster's list ([`keelson_pki::revocation`]), which every
//! server follows. The moment of a record is the server's, so that the clock of whoever revokes doesn't matter.

use anyhow::{Context, bail};
use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use keelson_client::objects::Objects;
use keelson_client::rest::{JSON, Rest};
use keelson_pki::kubeconfig::Auth;
use keelson_pki::revocation::{MOST, NAME, NAMESPACE, Record, Table};
use keelson_pki::{Kubeconfig, files};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The certificate that a server makes for its administrator names him so.
const ADMINISTRATOR: &str = "kubernetes-admin";
/// Files of credentials are small.
const LONGEST_FILE: u64 = 1024 * 1024;

/// All that has been revoked.
pub async fn list(rest: &Rest) -> anyhow::Result<Table> {
    let map = Objects::<ConfigMap>::new(rest).find(NAMESPACE, NAME).await;
    let data = map
        .context("the list of what has been revoked")?
        .and_then(|map| map.data);
    Ok(table(&data.unwrap_or_default()))
}

fn table(data: &BTreeMap<String, String>) -> Table {
    let texts = data.iter().map(|(key, text)| (key.as_str(), text.as_str()));
    Table::read(texts, |key, error| {
        eprintln!("{NAMESPACE}/{NAME}: {key} can't be read: {error:#}")
    })
}

/// Puts a record into the list, in place of one about the same; the list as it is then.
pub async fn add(rest: &Rest, record: &Record) -> anyhow::Result<Table> {
    let (key, text) = (record.key(), record.to_json()?);
    let wanted = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(key.clone(), text.clone())])),
        ..ConfigMap::default()
    };
    let now = Timestamp::now();
    let merge = |live: &mut ConfigMap| {
        put(live.data.get_or_insert_default(), &key, &text, now);
        true
    };
    let written = Objects::<ConfigMap>::new(rest).create_or_update(&wanted, merge).await;
    let data = written.context("it could not be revoked")?.data.unwrap_or_default();
    if data.len() * 10 > MOST * 9 {
        eprintln!("{NAMESPACE}/{NAME} has {} of {MOST} records", data.len());
    }
    Ok(table(&data))
}

/// A record among the others; those go that nobody needs any more.
fn put(data: &mut BTreeMap<String, String>, key: &str, text: &str, now: Timestamp) {
    data.retain(|key, text| !Record::read(key, text).is_ok_and(|record| record.is_over(now)));
    data.insert(key.into(), text.into());
}

/// Under which name the caller is known.
pub async fn myself(rest: &Rest) -> anyhow::Result<String> {
    let review = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = rest
        .call(Method::POST, path, JSON, review.to_string().into_bytes())
        .await;
    let answer: serde_json::Value = serde_json::from_slice(&answer.context("who you are")?)?;
    let name = answer["status"]["userInfo"]["username"].as_str();
    Ok(name.context("who you are isn't told")?.to_string())
}

/// Administrators that are left when some go: the server's own, and users that are bound to cluster-admin, unless what they have has
/// been revoked. `issued`: when a user's newest certificate was, in Unix seconds, as far as that is written down.
pub fn administrators_without(
    leaving: &[String],
    bindings: &[ClusterRoleBinding],
    revoked: &Table,
    issued: impl Fn(&ClusterRoleBinding) -> Option<i64>,
) -> BTreeSet<String> {
    let counts = |name: &str, issued: Option<i64>| {
        let taken_back = revoked.of_name(name);
        let is_newer = |at: Timestamp| issued.is_some_and(|issued| issued > at.as_second());
        !leaving.iter().any(|l| l == name) && taken_back.is_none_or(is_newer)
    };
    let mut left = BTreeSet::new();
    if counts(ADMINISTRATOR, None) {
        left.insert(ADMINISTRATOR.to_string());
    }
    for binding in bindings.iter().filter(|b| b.role_ref.name == "cluster-admin") {
        let users = binding.subjects.iter().flatten().filter(|s| s.kind == "User");
        for user in users.filter(|user| counts(&user.name, issued(binding))) {
            left.insert(user.name.clone());
        }
    }
    left
}

/// What a certificate is revoked by: a file that has it (a kubeconfig, or PEM), or its serial number.
pub fn certificate(given: &str, now: Timestamp) -> anyhow::Result<Record> {
    let path = Path::new(given);
    if !path.exists() {
        let record = Record::of_serial(given, None, now);
        return record
            .with_context(|| format!("{given:?} is neither a file nor a serial number in hexadecimal digits"));
    }
    let text = text_of(path)?;
    let pem = match text.contains("-----BEGIN CERTIFICATE-----") {
        true => text,
        false => match Kubeconfig::read(path)?.auth {
            Auth::Certificate { cert_pem, .. } => cert_pem,
            Auth::Token(_) => bail!("{given} has a token: keelson token revoke {given}"),
            Auth::None | Auth::Basic { .. } => bail!("{given} has no client certificate"),
        },
    };
    Record::of_certificate(&pem, now).with_context(|| given.to_string())
}

/// What a token is revoked by: a file that has it (alone, or in a kubeconfig), or its id. A token itself isn't taken here, where
/// others see it among the processes.
pub fn token(given: &str, now: Timestamp) -> anyhow::Result<Record> {
    let path = Path::new(given);
    if path.exists() {
        let text = text_of(path)?;
        let token = match text.contains("apiVersion") {
            true => match Kubeconfig::read(path)?.auth {
                Auth::Token(token) => token,
                Auth::Certificate { .. } => bail!("{given} has a certificate: keelson certificate revoke {given}"),
                Auth::None | Auth::Basic { .. } => bail!("{given} has no token"),
            },
            false => text,
        };
        return Record::of_token(&token, now).with_context(|| given.to_string());
    }
    let id = given.strip_prefix("JTI=").unwrap_or(given);
    // A file that isn't there is no id: it would be said that its token is revoked.
    if id.len() > 128 || id.is_empty() || id.contains(|c: char| matches!(c, '.' | '/') || c.is_whitespace()) {
        bail!(
            "give a file that has the token, or its id (jti; authentication.kubernetes.io/credential-id in the audit log)"
        );
    }
    Ok(Record {
        revoked: keelson_pki::revocation::Subject::Token(id.into()),
        ..Record::of_name("", now)
    })
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    let length = std::fs::metadata(path)
        .with_context(|| path.display().to_string())?
        .len();
    if length > LONGEST_FILE {
        bail!("{} is too long to be a credential", path.display());
    }
    files::read(path)?.with_context(|| format!("there is no file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::rbac::v1::{RoleRef, Subject};
    use keelson_pki::{Authority, CertSpec, revocation};

    fn now() -> Timestamp {
        "2026-11-29T12:00:00Z".parse().unwrap()
    }

    fn binding(user: &str, role: &str) -> ClusterRoleBinding {
        ClusterRoleBinding {
            metadata: ObjectMeta::default(),
            role_ref: RoleRef {
                name: role.into(),
                ..RoleRef::default()
            },
            subjects: Some(vec![Subject {
                kind: "User".into(),
                name: user.into(),
                ..Subject::default()
            }]),
        }
    }

    #[test]
    fn who_is_left_to_administer() {
        let bindings = [binding("ana", "cluster-admin"), binding("bob", "view")];
        let revoked = |names: &[&str]| {
            let mut data = BTreeMap::new();
            for name in names {
                let record = Record {
                    at: Some(now()),
                    ..Record::of_name(name, now())
                };
                data.insert(record.key(), record.to_json().unwrap());
            }
            table(&data)
        };
        let left = |leaving: &[&str], gone: &[&str], issued: Option<i64>| {
            let leaving: Vec<String> = leaving.iter().map(ToString::to_string).collect();
            let left = administrators_without(&leaving, &bindings, &revoked(gone), |_| issued);
            left.into_iter().collect::<Vec<_>>().join(" ")
        };
        let second = now().as_second();
        assert_eq!(left(&[], &[], None), "ana kubernetes-admin");
        assert_eq!(left(&["ana"], &[], None), "kubernetes-admin");
        assert_eq!(left(&["kubernetes-admin"], &[], None), "ana");
        assert_eq!(left(&["kubernetes-admin", "ana"], &[], None), "");
        assert_eq!(left(&["kubernetes-admin"], &["ana"], None), "");
        assert_eq!(left(&["kubernetes-admin"], &["ana"], Some(second)), "");
        assert_eq!(left(&["kubernetes-admin"], &["ana"], Some(second + 1)), "ana");
        assert_eq!(left(&["ana"], &["kubernetes-admin"], None), "");
    }

    #[test]
    fn credentials_are_found_in_their_files() {
        let dir = std::env::temp_dir().join(format!("keelson-revoke-{}", std::process::id()));
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            files::write_secret(&path, text.as_bytes()).unwrap();
            path.display().to_string()
        };
        let ca = Authority::generate("kubernetes").unwrap();
        let ana = ca.issue(&CertSpec::client("ana", None)).unwrap();
        let by_certificate =
            Kubeconfig::with_certificate("https://h", ca.cert_pem(), "ana", &ana.cert_pem, &ana.key_pem);
        let by_token = Kubeconfig::with_token("https://h", ca.cert_pem(), "ana", "e30.eyJqdGkiOiJpZCJ9.c2ln");
        let (crt, config, tokens) = (
            file("ana.crt", &ana.cert_pem),
            file("ana.kubeconfig", &by_certificate.to_yaml()),
            file("token.kubeconfig", &by_token.to_yaml()),
        );
        let serial = certificate(&crt, now()).unwrap();
        assert_eq!(certificate(&config, now()).unwrap(), serial);
        let revocation::Subject::Certificate(number) = &serial.revoked else {
            panic!("{serial:?}")
        };
        assert_eq!(certificate(&number.to_uppercase(), now()).unwrap().key(), serial.key());
        assert!(certificate(&tokens, now()).is_err() && certificate("no-such-file", now()).is_err());
        let alone = file("token", "e30.eyJqdGkiOiJpZCJ9.c2ln\n");
        for given in [tokens.as_str(), alone.as_str(), "JTI=id", "id"] {
            assert_eq!(token(given, now()).unwrap().key(), "token.id", "{given}");
        }
        assert!(token(&config, now()).is_err());
        for given in ["e30.e30.c2ln", "/no/such/file", "./token", "two words", ""] {
            assert!(token(given, now()).is_err(), "{given}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_nobody_needs_any_more_makes_room() {
        let old = Record {
            until: "2020-01-01T00:00:00Z".parse().unwrap(),
            ..Record::of_name("old", now())
        };
        let mut data = BTreeMap::from([
            (old.key(), old.to_json().unwrap()),
            ("user.unreadable".to_string(), "{".to_string()),
        ]);
        let new = Record::of_name("new", now());
        put(&mut data, &new.key(), &new.to_json().unwrap(), now());
        assert_eq!(
            data.keys().collect::<Vec<_>>(),
            ["user.new", "user.unreadable"],
            "what can't be read is somebody's"
        );
    }
}
