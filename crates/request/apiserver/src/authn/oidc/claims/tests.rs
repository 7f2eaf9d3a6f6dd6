//! Upstream's own table of tokens: each with its issuer's configuration and keys, and the user or the error that
//! upstream makes of it.

use super::*;
use crate::authn::oidc::verify::{Expected, claimed_issuer};
use crate::authn::structured::Written;
use keelson_pki::jwt::keyset::{KeySet, Signed};

/// The hour in which upstream's tokens are valid: 2009-11-10T23:00:00Z.
const NOW: i64 = 1_257_894_000;

fn authenticate(case: &serde_json::Value) -> Result<Option<UserInfo>, String> {
    let written = Written::parse(&case["config"].to_string()).unwrap();
    let trusted = written.check(&[]).unwrap();
    let trusted = &trusted[0];
    let token = case["token"].as_str().unwrap();
    if claimed_issuer(token).as_deref() != Some(trusted.issuer.url.as_str()) {
        return Ok(None);
    }
    let expected = Expected {
        audiences: trusted.audiences.clone(),
        algorithms: serde_json::from_value(case["algorithms"].clone()).unwrap(),
    };
    let said = |why: String| format!("oidc: verify token: {why}");
    let signed = expected.read(token).map_err(said)?;
    let keys = KeySet::parse(case["keys"].to_string().as_bytes()).unwrap();
    if !keys.signed(&signed) {
        return Err(said("failed to verify signature: no keys matches jwk keyid".into()));
    }
    expected
        .check(&signed.payload, &trusted.issuer.url, NOW)
        .map_err(said)?;
    let Signed { payload, .. } = signed;
    Claims::parse(&payload)?.user(trusted).map(Some)
}

#[test]
fn tokens_become_the_users_that_upstream_makes_of_them() {
    let mut count = 0;
    for line in include_str!("../upstream.jsonl").lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = case["name"].as_str().unwrap();
        let found = authenticate(&case);
        match (case["error"].as_str().unwrap(), &case["user"]) {
            ("", serde_json::Value::Null) => assert_eq!(found, Ok(None), "{name}"),
            ("", user) => {
                let user: Value = serde_json::from_value(user.clone()).unwrap();
                assert_eq!(found, Ok(Some(UserInfo::from_value(&user))), "{name}");
            }
            (error, _) => assert_eq!(found, Err(error.to_string()), "{name}"),
        }
        count += 1;
    }
    assert!(count > 60);
}
