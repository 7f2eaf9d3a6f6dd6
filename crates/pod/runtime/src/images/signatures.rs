//! Whether somebody has signed an image whom the file of registries names, before anything of it is fetched but its manifest.
//!
//! Signatures stand in the image's own repository: under a tag made of the digest, or among what refers to the manifest (as bundles).
//! [`MOST`] of them are looked at. One that counts is enough; if none does, the error says why for each.

use keelson_oci::client::{Registry, RegistryError};
use keelson_oci::signature::{self, BUNDLE, Key, LONGEST, SIGNATURE, SIMPLE_SIGNING};
use keelson_oci::{MAX_MANIFEST, digest};

use super::layers::verify;
use super::manifest::{Descriptor, Manifest};
use super::reference::Reference;
use super::registries::{Mode, Policy};

/// Signatures of an image that are looked at.
const MOST: usize = 32;

pub async fn check(registry: &Registry, reference: &Reference, digest: &str, policy: &Policy) -> Result<(), String> {
    let mut why = Vec::new();
    let found = match find(registry, digest, &policy.keys, &mut why).await {
        Ok(found) => found,
        Err(error) => {
            why.push(error.to_string());
            None
        }
    };
    if let Some(key) = found {
        tracing::info!(image = %reference, digest, key = key.name, "signed");
        return Ok(());
    }
    let names: Vec<&str> = policy.keys.iter().map(|key| key.name.as_str()).collect();
    let said = if why.is_empty() {
        "it has no signature".to_owned()
    } else {
        why.join("; ")
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

/// The key whose signature counts. `why` gets what speaks against each other one.
async fn find<'k>(
    registry: &Registry,
    digest: &str,
    keys: &'k [Key],
    why: &mut Vec<String>,
) -> Result<Option<&'k Key>, RegistryError> {
    if let Some(signatures) = manifest(registry, &signature::tag(digest)).await? {
        let layers = signatures.layers.iter().filter(|l| l.media_type == SIMPLE_SIGNING);
        for layer in layers.take(MOST) {
            let Some(made) = layer.annotations.get(SIGNATURE) else {
                continue;
            };
            let payload = blob(registry, layer).await?;
            match signature::simple(&payload, made, digest, keys) {
                Ok(key) => return Ok(Some(key)),
                Err(error) => why.push(format!("{error:#}")),
            }
        }
    }
    let listed = match registry.referrers(digest, MAX_MANIFEST).await {
        Ok(bytes) => Some(read(&bytes)?),
        // A registry of before there was such a list.
        Err(RegistryError::NotFound(_)) => manifest(registry, &signature::referrers_tag(digest)).await?,
        Err(error) => return Err(error),
    };
    let all = listed.map(|list| list.manifests).unwrap_or_default();
    for one in all
        .iter()
        .filter(|one| one.artifact_type.starts_with(BUNDLE))
        .take(MOST)
    {
        let Some(holder) = manifest(registry, &one.digest).await? else {
            continue;
        };
        let Some(layer) = holder.layers.iter().find(|layer| layer.media_type.starts_with(BUNDLE)) else {
            continue;
        };
        let bundle = blob(registry, layer).await?;
        match signature::bundle(&bundle, digest, keys) {
            Ok(key) => return Ok(Some(key)),
            Err(error) => why.push(format!("{error:#}")),
        }
    }
    Ok(None)
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
