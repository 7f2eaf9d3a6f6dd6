//! Secrets of certificates whose key isn't the certificate's, in the words of Go's `crypto/tls`.

use super::{Errs, s};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_api::{Map, Object};

pub fn pair(e: &mut Errs, secret: &Object) {
    if s(secret, "type") != "kubernetes.io/tls" {
        return;
    }
    let data = secret.obj("data");
    let (cert, key) = (text(data, "tls.crt"), text(data, "tls.key"));
    if let Some(wrong) = blocks(&cert, "certificate", |tag| tag == "CERTIFICATE")
        .or_else(|| blocks(&key, "key", |tag| tag == "PRIVATE KEY" || tag.ends_with(" PRIVATE KEY")))
    {
        e.remark(wrong);
    } else if keelson_pki::authority::fit(&cert, &key) == Some(false) {
        e.remark("tls: private key does not match public key");
    }
}

fn text(data: Option<&Map>, key: &str) -> String {
    let value = data.and_then(|d| d.str(key)).unwrap_or_default();
    String::from_utf8_lossy(&STANDARD.decode(value).unwrap_or_default()).into_owned()
}

/// What is wrong with a PEM text in which a block is looked for.
fn blocks(pem: &str, what: &str, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let tags: Vec<&str> = pem
        .lines()
        .filter_map(|l| l.trim_end().strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
        .collect();
    if tags.iter().any(|tag| wanted(tag)) {
        return None;
    }
    let key = what == "key";
    Some(match tags.as_slice() {
        [] => format!("tls: failed to find any PEM data in {what} input"),
        ["CERTIFICATE"] if key => {
            "tls: found a certificate rather than a key in the PEM for the private key".into()
        }
        [one] if !key && one.ends_with("PRIVATE KEY") => {
            "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched".into()
        }
        all if key => format!(
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [{}]",
            all.join(" ")
        ),
        all => format!(
            "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{}]",
            all.join(" ")
        ),
    })
}
