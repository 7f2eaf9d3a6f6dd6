//! Whether somebody has signed an image whom the file of registries names, before anything of it is fetched but its manifest.
//!
//! Signatures stand in the image's own repository: under a tag made of the digest, or among what refers to the manifest (as bundles).
//! [`MOST`] of them are looked at. One that counts is enough; if none does, the error says why for each.

use keelson_oci::client::{Registry, RegistryError};
use keelson_oci::signature::{self, BUNDLE, Key, LONGEST, SIGNATURE, SIMPLE_SIGNING};
use keelson_oci::{MAX_MANIFEST, digest};

use super::layers::verify;
use super::manifest::{Descriptor, Manifest};
use super::reference::{Reference, is_digest};
use super::registries::{Mode, Policy};

/// Signatures of an image that are looked at, in either place.
const MOST: usize = 32;
/// Of what speaks against them, as much is told.
const TOLD: usize = 5;

pub async fn check(registry: &Registry, reference: &Reference, digest: &str, policy: &Policy) -> Result<(), String> {
    let mut why = Vec::new();
    if let Some(key) = find(registry, digest, &policy.keys, &mut why).await {
        tracing::info!(image = %reference, digest, key = key.name, "signed");
        return Ok(());
    }
    let names: Vec<&str> = policy.keys.iter().map(|key| key.name.as_str()).collect();
    let said = if why.is_empty() {
        "it has no signature".to_owned()
    } else {
        let more = why.len().saturating_sub(TOLD);
        why.truncate(TOLD);
        let rest = if more > 0 {
            format!("; and {more} more")
        } else {
            String::new()
        };
        format!("{}{rest}", why.join("; "))
    };
    let text = format!(
        "{reference} ({digest}) has to be signed by a key of {}: {said}",
        names.join(", ")
    );
    match policy.mode {
        Mode::Enforce => Err(text),
        Mode::Warn | Mode::Off => {
            tracing::warn!("{text}; it is pulled, since the policy only warns");
            Ok(())
        }
    }
}

/// The key whose signature counts. `why` gets what speaks against each other one: one that can't be had or read is one that doesn't
/// count, and hides none of the others.
async fn find<'k>(registry: &Registry, digest: &str, keys: &'k [Key], why: &mut Vec<String>) -> Option<&'k Key> {
    match under_tag(registry, digest, keys, why).await {
        Ok(None) => {}
        Ok(found) => return found,
        Err(error) => why.push(error.to_string()),
    }
    match among_referrers(registry, digest, keys, why).await {
        Ok(found) => found,
        Err(error) => {
            why.push(error.to_string());
            None
        }
    }
}

async fn under_tag<'k>(
    registry: &Registry,
    digest: &str,
    keys: &'k [Key],
    why: &mut Vec<String>,
) -> Result<Option<&'k Key>, RegistryError> {
    let Some(signatures) = manifest(registry, &signature::tag(digest)).await? else {
        return Ok(None);
    };
    let layers = signatures.layers.iter().filter(|l| l.media_type == SIMPLE_SIGNING);
    for layer in layers.take(MOST) {
        let Some(made) = layer.annotations.get(SIGNATURE) else {
            continue;
        };
        let judged = match blob(registry, layer).await {
            Ok(payload) => signature::simple(&payload, made, digest, keys).map_err(|e| format!("{e:#}")),
            Err(error) => Err(error.to_string()),
        };
        match judged {
            Ok(key) => return Ok(Some(key)),
            Err(error) => why.push(error),
        }
    }
    Ok(None)
}

async fn among_referrers<'k>(
    registry: &Registry,
    digest: &str,
    keys: &'k [Key],
    why: &mut Vec<String>,
) -> Result<Option<&'k Key>, RegistryError> {
    let listed = match registry.referrers(digest, MAX_MANIFEST).await {
        Ok(bytes) => Some(read(&bytes)?),
        // A registry of before there was such a list.
        Err(RegistryError::NotFound(_)) => manifest(registry, &signature::referrers_tag(digest)).await?,
        Err(error) => return Err(error),
    };
    let all = listed.map(|list| list.manifests).unwrap_or_default();
    let bundles = all.iter().filter(|one| one.artifact_type.starts_with(BUNDLE));
    for one in bundles.take(MOST) {
        let judged = match bundle(registry, one).await {
            Ok(Some(bundle)) => signature::bundle(&bundle, digest, keys).map_err(|e| format!("{e:#}")),
            Ok(None) => continue,
            Err(error) => Err(error.to_string()),
        };
        match judged {
            Ok(key) => return Ok(Some(key)),
            Err(error) => why.push(error),
        }
    }
    Ok(None)
}

/// The bundle that a referrer holds, if it is there.
async fn bundle(registry: &Registry, referrer: &Descriptor) -> Result<Option<Vec<u8>>, RegistryError> {
    if !is_digest(&referrer.digest) {
        return Ok(None);
    }
    let Some(holder) = manifest(registry, &referrer.digest).await? else {
        return Ok(None);
    };
    match holder.layers.iter().find(|layer| layer.media_type.starts_with(BUNDLE)) {
        Some(layer) => blob(registry, layer).await.map(Some),
        None => Ok(None),
    }
}

async fn manifest(registry: &Registry, name: &str) -> Result<Option<Manifest>, RegistryError> {
    match registry.manifest(name, MAX_MANIFEST).await {
        Ok(bytes) => read(&bytes).map(Some),
        Err(RegistryError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(bytes: &[u8]) -> Result<Manifest, RegistryError> {
    serde_json::from_slice(bytes).map_err(|e| RegistryError::Failed(format!("signatures: {e}")))
}

async fn blob(registry: &Registry, layer: &Descriptor) -> Result<Vec<u8>, RegistryError> {
    let bytes = registry.document(&layer.digest, LONGEST).await?;
    verify(&layer.digest, &digest::of(&bytes), "signature").map_err(|e| RegistryError::Failed(e.to_string()))?;
    Ok(bytes)
}
