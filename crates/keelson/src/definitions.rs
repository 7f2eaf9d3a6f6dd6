//! Definitions of custom resources that this program brings along.

use keelson_client::{Patch, ResourceId, Rest, is_not_found};
use keelson_controllers::snapshot_definitions::{MANAGED_BY, US};
use serde_json::Value;

const JSON: &str = "application/json";

/// Writes one, which has [`MANAGED_BY`] among its labels, unless somebody else brought it: that one is left as it is.
pub async fn write(rest: &Rest, definition: &Value) -> anyhow::Result<()> {
    let name = definition["metadata"]["name"].as_str().unwrap_or_default();
    match rest.get_raw(&ResourceId::DEFINITIONS, "", name, "", JSON).await {
        Ok(found) if !is_ours(&found)? => {
            tracing::info!(name, "the definition is somebody else's, and stays");
            return Ok(());
        }
        Err(error) if !is_not_found(&error) => return Err(error.into()),
        _ => {}
    }
    let patch = Patch::Apply {
        body: definition,
        manager: US,
        force: true,
    };
    rest.patch_raw(&ResourceId::DEFINITIONS, "", name, "", &patch).await?;
    Ok(())
}

fn is_ours(definition: &[u8]) -> anyhow::Result<bool> {
    let definition: Value = serde_json::from_slice(definition)?;
    Ok(definition["metadata"]["labels"][MANAGED_BY] == US)
}
