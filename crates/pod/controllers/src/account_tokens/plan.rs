//! What of a Secret for a token is missing, and what is put there. Pure.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use keelson_client::ApiObject;
use keelson_pki::ServiceAccountKeys;
use keelson_pki::jwt::LegacyClaims;

const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
const TOKEN: &str = "token";
const CA: &str = "ca.crt";
const NAMESPACE: &str = "namespace";

/// The account that a Secret names. No UID: whichever has the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: String,
}

impl Account {
    pub fn is(&self, account: &ServiceAccount) -> bool {
        account.name() == self.name && (self.uid.is_empty() || account.uid() == self.uid)
    }
}

pub fn account(secret: &Secret) -> Option<Account> {
    let annotations = secret.metadata.annotations.as_ref()?;
    let text = |key: &str| annotations.get(key).cloned().unwrap_or_default();
    Some(text(NAME))
        .filter(|name| !name.is_empty())
        .map(|name| Account { name, uid: text(UID) })
}

/// Whether the account's list names the Secret.
pub fn lists(account: &ServiceAccount, secret: &str) -> bool {
    account
        .secrets
        .iter()
        .flatten()
        .any(|s| s.name.as_deref() == Some(secret))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacks {
    pub token: bool,
    pub ca: bool,
    pub namespace: bool,
}

impl Lacks {
    pub fn any(self) -> bool {
        self.token || self.ca || self.namespace
    }
}

/// `ca`: in PEM; empty: none is put there.
pub fn lacks(secret: &Secret, ca: &str) -> Lacks {
    let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map_or(&[][..], |b| &b.0);
    Lacks {
        token: data(TOKEN).is_empty(),
        ca: !ca.is_empty() && data(CA) != ca.as_bytes(),
        namespace: data(NAMESPACE).is_empty(),
    }
}

/// Puts there what is lacking.
pub fn fill(secret: &mut Secret, account: &ServiceAccount, ca: &str, keys: &ServiceAccountKeys) -> anyhow::Result<()> {
    let lacks = lacks(secret, ca);
    if !lacks.any() {
        return Ok(());
    }
    let namespace = secret.namespace().to_string();
    let claims = LegacyClaims::new(&namespace, account.name(), account.uid(), secret.name());
    let data = secret.data.get_or_insert_default();
    let mut put = |key: &str, text: &str| data.insert(key.into(), ByteString(text.as_bytes().to_vec()));
    if lacks.ca {
        put(CA, ca);
    }
    if lacks.namespace {
        put(NAMESPACE, &namespace);
    }
    if lacks.token {
        put(TOKEN, &keys.sign_legacy(&claims)?);
    }
    let annotations = secret.metadata.annotations.get_or_insert_default();
    annotations.insert(NAME.into(), account.name().into());
    annotations.insert(UID.into(), account.uid().into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(data: serde_json::Value) -> Secret {
        serde_json::from_value(
            json!({"metadata": {"namespace": "ns", "name": "s", "annotations": {NAME: "robot"}}, "data": data}),
        )
        .unwrap()
    }

    #[test]
    fn what_is_lacking_is_put_there_and_the_rest_stays() {
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "robot", "uid": "u1"}})).unwrap();
        let keys = ServiceAccountKeys::generate().unwrap();
        let mut empty = secret(json!({}));
        assert_eq!(
            super::account(&empty),
            Some(Account {
                name: "robot".into(),
                uid: String::new()
            })
        );
        fill(&mut empty, &account, "the CA", &keys).unwrap();
        assert!(!lacks(&empty, "the CA").any());
        let data =
            |secret: &Secret, key: &str| String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap();
        assert_eq!(
            (data(&empty, CA), data(&empty, NAMESPACE)),
            ("the CA".into(), "ns".into())
        );
        assert_eq!(
            keys.verify_legacy(&data(&empty, TOKEN)).unwrap(),
            LegacyClaims::new("ns", "robot", "u1", "s")
        );
        assert_eq!(empty.metadata.annotations.as_ref().unwrap()[UID], "u1");
        // Another cluster's CA is replaced, a token never.
        let token = data(&empty, TOKEN);
        fill(&mut empty, &account, "another CA", &keys).unwrap();
        assert_eq!((data(&empty, CA), data(&empty, TOKEN)), ("another CA".into(), token));
        assert!(!lacks(&empty, "").any(), "where there is no CA none is lacking");
    }

    #[test]
    fn an_account_of_the_same_name_is_not_the_same() {
        let of = |uid: &str| Account {
            name: "robot".into(),
            uid: uid.into(),
        };
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "robot", "uid": "u1"}, "secrets": [{"name": "s"}]}))
                .unwrap();
        assert!(of("").is(&account) && of("u1").is(&account) && !of("u0").is(&account));
        assert!(lists(&account, "s") && !lists(&account, "t"));
    }
}
