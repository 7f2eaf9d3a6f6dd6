//! Values sealed by kube-apiserver's own code (`tools/seal-golden`) are opened; ours have its form; what was touched is refused.

#![allow(clippy::unwrap_used)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use keelson_seal::{GroupResource, Resources, Sealed, config};
use keelson_store::{Expect, Memory, Store, unopened};
use std::path::Path;
use std::sync::Arc;

struct Golden {
    resource: String,
    key: String,
    value: Vec<u8>,
    sealed: Vec<u8>,
}

fn golden() -> Vec<Golden> {
    let decode = |text: &str| STANDARD.decode(text).unwrap();
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        Golden {
            resource: fields[0].into(),
            key: fields[1].into(),
            value: decode(fields[2].strip_prefix("v:").unwrap()),
            sealed: decode(fields[3]),
        }
    };
    let found: Vec<Golden> = include_str!("../golden/upstream.txt").lines().map(line).collect();
    assert_eq!(found.len(), 28);
    found
}

fn resources() -> Resources {
    Arc::new(|key| {
        let text = std::str::from_utf8(key).ok()?;
        let resource = text.strip_prefix("/registry/")?.split('/').next()?;
        Some(Arc::new(GroupResource::parse(resource)))
    })
}

/// A store that seals by the golden configuration, and the one beneath. `change` is made to the configuration first.
async fn stores(change: impl Fn(&mut String)) -> (Arc<Sealed>, Arc<dyn Store>) {
    let file = Path::new("golden/config.yaml");
    let mut text = std::fs::read_to_string(file).unwrap();
    change(&mut text);
    let changed = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(changed.path(), text).unwrap();
    let (read, hash) = config::read(changed.path()).unwrap();
    let beneath: Arc<dyn Store> = Memory::new();
    let metrics = Arc::default();
    let rules = config::build(&read, hash, &metrics).await.unwrap();
    (Sealed::new(beneath.clone(), rules, resources(), metrics), beneath)
}

async fn put(store: &dyn Store, key: &str, value: &[u8]) {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value));
    store.put(key, value, Expect::Any, None).await.unwrap();
}

async fn get(store: &dyn Store, key: &str) -> Vec<u8> {
    store
        .get(key.as_bytes(), None)
        .await
        .unwrap()
        .kv
        .unwrap()
        .value
        .to_vec()
}

#[tokio::test]
async fn what_upstream_sealed_is_opened() {
    let (sealed, beneath) = stores(|_| {}).await;
    for g in golden() {
        put(&*beneath, &g.key, &g.sealed).await;
        assert_eq!(get(&*sealed, &g.key).await, g.value, "{}", g.key);
    }
}

#[tokio::test]
async fn what_is_sealed_here_has_upstreams_form_and_is_opened_again() {
    let (sealed, beneath) = stores(|_| {}).await;
    // For upstream's code to open: `tools/seal-golden`.
    let mut here = String::new();
    for g in golden() {
        put(&*sealed, &g.key, &g.value).await;
        let stored = get(&*beneath, &g.key).await;
        // The prefix is four colons and the key's name; one key's name has a colon in it.
        let name = if g.resource == "cbc16" { "a:b" } else { "key1" };
        let cipher = match &g.resource {
            r if r.starts_with("gcm") => "aesgcm",
            r if r.starts_with("cbc") => "aescbc",
            _ => "secretbox",
        };
        assert!(
            stored.starts_with(format!("k8s:enc:{cipher}:v1:{name}:").as_bytes()),
            "{}",
            g.key
        );
        assert_eq!(stored.len(), g.sealed.len(), "{}", g.key);
        assert_ne!(stored, g.sealed, "{}: no nonce may come twice", g.key);
        assert_eq!(get(&*sealed, &g.key).await, g.value, "{}", g.key);
        let (value, stored) = (STANDARD.encode(&g.value), STANDARD.encode(&stored));
        here += &format!("{} {} v:{value} {stored}\n", g.resource, g.key);
    }
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("sealed-here.txt"), here).unwrap();
}

/// A mark is handed on in its place.
async fn refused(sealed: &Sealed, beneath: &dyn Store, key: &str, stored: &[u8], why: &str) {
    put(beneath, key, stored).await;
    assert!(unopened::reason(&get(sealed, key).await).is_some(), "{key}: {why}");
}

#[tokio::test]
async fn another_key_another_place_and_a_cut_are_refused() {
    let (sealed, beneath) = stores(|_| {}).await;
    let (others, beneath_others) = stores(|text| *text = text.replace("secret: AAEC", "secret: AQEC")).await;
    for g in golden() {
        // Nothing authenticates CBC: another key's result is refused by its padding only, but never is the value.
        put(&*beneath_others, &g.key, &g.sealed).await;
        let opened = get(&*others, &g.key).await;
        match g.resource.starts_with("cbc") {
            true => assert_ne!(opened, g.value, "{}: another key", g.key),
            false => assert!(unopened::reason(&opened).is_some(), "{}: another key", g.key),
        }
        if g.resource.starts_with("gcm") {
            refused(
                &sealed,
                &*beneath,
                &format!("{}-other", g.key),
                &g.sealed,
                "another place",
            )
            .await;
        }
        let prefix = g.sealed.len() - body(&g).len();
        refused(
            &sealed,
            &*beneath,
            &g.key,
            &g.sealed[..g.sealed.len() - 1],
            "one byte cut",
        )
        .await;
        refused(&sealed, &*beneath, &g.key, &g.sealed[..prefix], "all cut").await;
        refused(
            &sealed,
            &*beneath,
            &g.key,
            &g.sealed[..prefix + 5],
            "cut within the nonce",
        )
        .await;
    }
}

#[tokio::test]
async fn a_flipped_bit_is_refused() {
    let (sealed, beneath) = stores(|_| {}).await;
    for g in golden() {
        let prefix = g.sealed.len() - body(&g).len();
        for at in prefix..g.sealed.len() {
            let mut flipped = g.sealed.clone();
            flipped[at] ^= 1;
            put(&*beneath, &g.key, &flipped).await;
            let opened = get(&*sealed, &g.key).await;
            match g.resource.starts_with("cbc") {
                true => assert_ne!(opened, g.value, "{} at {at}", g.key),
                false => assert!(unopened::reason(&opened).is_some(), "{} at {at}", g.key),
            }
        }
    }
}

/// What follows the prefix.
fn body(g: &Golden) -> &[u8] {
    let name: &[u8] = if g.resource == "cbc16" { b":a:b:" } else { b":key1:" };
    let at = g.sealed.windows(name.len()).position(|w| w == name).unwrap();
    &g.sealed[at + name.len()..]
}
