//! Authorities in a file that somebody else renews.

use super::{Front, send};
use keelson_api::Value;
use keelson_apiserver::CertificateFiles;
use keelson_pki::{Authority, CertSpec};
use std::time::Duration;

const NAMESPACES: &str = "/api/v1/namespaces";

#[tokio::test(flavor = "multi_thread")]
async fn who_is_trusted_follows_a_file() {
    let front = Front::start("files").await;
    let (file, own) = (front.dir.join("clients.crt"), front.pki.ca.cert_pem().to_string());
    std::fs::write(&file, &own).unwrap();
    front.api.follow_certificates(CertificateFiles {
        client_ca: Some(file.clone()),
        ..CertificateFiles::default()
    });
    let another = Authority::generate("another").unwrap();
    let spec = CertSpec::client("eve", Some("system:masters"));
    let eve = front.target_of(Some(another.issue(&spec).unwrap()));
    let (admin, code) = (front.admin(), async |target| {
        send(target, "GET", NAMESPACES, &[], vec![]).await.0
    });
    assert_eq!(code(&eve).await, 401);

    // What can't be used, and a file that isn't there, change nothing.
    std::fs::write(&file, "nothing").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    std::fs::remove_file(&file).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((code(&admin).await, code(&eve).await), (200, 401));

    std::fs::write(&file, format!("{own}{}", another.cert_pem())).unwrap();
    becomes(&front, &eve, 200).await;
    assert_eq!(code(&admin).await, 200);
    let map = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let mut told = String::new();
    for _ in 0..500 {
        let (_, text) = send(&admin, "GET", map, &[], vec![]).await;
        let map: Value = serde_json::from_str(&text).unwrap();
        told = map
            .at(&["data", "client-ca-file"])
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_string();
        if told.contains(another.cert_pem()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(told.contains(another.cert_pem()) && told.contains(&own), "{told}");

    std::fs::write(&file, another.cert_pem()).unwrap();
    becomes(&front, &admin, 401).await;
    assert_eq!(code(&eve).await, 200);
}

async fn becomes(front: &Front, target: &keelson_apiserver::connect::Target, wanted: u16) {
    let mut code = 0;
    for _ in 0..500 {
        code = send(target, "GET", NAMESPACES, &[], vec![]).await.0;
        if code == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("port {}: {code} in place of {wanted}", front.port);
}
