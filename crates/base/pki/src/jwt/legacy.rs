//! What a token in a Secret claims: it names the Secret, which has it in whole, and never ends.

use serde::{Deserialize, Serialize};

/// The issuer of such tokens, of whatever cluster they are.
pub const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// Absent claims are empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LegacyClaims {
    pub iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub account_uid: String,
    pub sub: String,
    #[serde(deserialize_with = "super::one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub aud: Vec<String>,
}

impl LegacyClaims {
    /// Those of a token for an account, to be kept in a secret of its namespace.
    pub fn new(namespace: &str, account: &str, account_uid: &str, secret: &str) -> Self {
        LegacyClaims {
            iss: LEGACY_ISSUER.into(),
            namespace: namespace.into(),
            secret: secret.into(),
            account: account.into(),
            account_uid: account_uid.into(),
            sub: format!("system:serviceaccount:{namespace}:{account}"),
            aud: Vec::new(),
        }
    }

    /// Whether all is there that has to be, and fits together; in upstream's words.
    pub fn check(&self) -> Result<(), &'static str> {
        for (claim, why) in [
            (&self.sub, "sub claim is missing"),
            (&self.namespace, "namespace claim is missing"),
            (&self.secret, "secretName claim is missing"),
            (&self.account, "serviceAccountName claim is missing"),
            (&self.account_uid, "serviceAccountUID claim is missing"),
        ] {
            if claim.is_empty() {
                return Err(why);
            }
        }
        match self.sub == format!("system:serviceaccount:{}:{}", self.namespace, self.account) {
            true => Ok(()),
            false => Err("sub claim is invalid"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::ServiceAccountKeys;

    #[test]
    fn a_token_says_what_upstreams_says() {
        let claims = LegacyClaims::new("ns", "robot", "uid-1", "robot-token");
        let text = serde_json::to_value(&claims).unwrap();
        let wanted = serde_json::json!({
            "iss": "kubernetes/serviceaccount",
            "kubernetes.io/serviceaccount/namespace": "ns",
            "kubernetes.io/serviceaccount/secret.name": "robot-token",
            "kubernetes.io/serviceaccount/service-account.name": "robot",
            "kubernetes.io/serviceaccount/service-account.uid": "uid-1",
            "sub": "system:serviceaccount:ns:robot",
        });
        assert_eq!(text, wanted);
        let keys = ServiceAccountKeys::generate().unwrap();
        let token = keys.sign_legacy(&claims).unwrap();
        assert_eq!(
            ServiceAccountKeys::claimed_issuer(&token).as_deref(),
            Some(LEGACY_ISSUER)
        );
        assert_eq!(keys.verify_legacy(&token).unwrap(), claims);
        assert!(ServiceAccountKeys::generate().unwrap().verify_legacy(&token).is_err());
        claims.check().unwrap();
    }

    #[test]
    fn what_lacks_or_contradicts_is_refused() {
        let whole = || LegacyClaims::new("ns", "robot", "uid-1", "robot-token");
        let wrong = |change: fn(&mut LegacyClaims)| {
            let mut claims = whole();
            change(&mut claims);
            claims.check().unwrap_err()
        };
        assert_eq!(wrong(|c| c.secret.clear()), "secretName claim is missing");
        assert_eq!(wrong(|c| c.account_uid.clear()), "serviceAccountUID claim is missing");
        assert_eq!(
            wrong(|c| c.sub = "system:serviceaccount:kube-system:robot".into()),
            "sub claim is invalid"
        );
        assert_eq!(wrong(|c| c.namespace = "ns:robot".into()), "sub claim is invalid");
    }
}
