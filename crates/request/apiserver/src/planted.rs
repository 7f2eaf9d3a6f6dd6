//! Objects that are put into a store before a server begins over it: as they are, with their uids, owners and statuses, past everything
//! that a request goes through. For a copy of a cluster.

use keelson_registry::{ResourceDef, resources};
use keelson_store::{Expect, Store};
use std::collections::HashMap;

/// How objects of one resource are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What keys begin with, without a slash at the end.
    prefix: String,
    /// In which version, as `apiVersion` has it; of others nothing can be read.
    pub api_version: String,
}

/// Where objects of built-in kinds are kept, by group and resource.
pub struct Places(HashMap<(String, String), Kept>);

impl Default for Places {
    fn default() -> Places {
        let of = |row: ResourceDef| {
            let storage = row.storage.as_ref()?;
            let kept = Kept {
                prefix: storage.prefix.to_string(),
                api_version: storage.version.api_version(),
            };
            Some(((row.gvr.group.to_string(), row.gvr.resource.to_string()), kept))
        };
        Places(resources::rows().into_iter().filter_map(of).collect())
    }
}

impl Places {
    /// `None`: this server has no such kind.
    pub fn built_in(&self, group: &str, resource: &str) -> Option<&Kept> {
        self.0.get(&(group.to_owned(), resource.to_owned()))
    }

    /// Of a definition's resource, which it keeps in this version.
    pub fn custom(group: &str, resource: &str, version: &str) -> Kept {
        Kept {
            prefix: format!("/registry/{group}/{resource}"),
            api_version: format!("{group}/{version}"),
        }
    }
}

/// Puts one object, in JSON and without a revision, where a server looks for it. `namespace` is empty if it is in none.
///
/// # Errors
///
/// If the store takes none.
pub async fn plant(
    store: &dyn Store,
    kept: &Kept,
    namespace: &str,
    name: &str,
    json: Vec<u8>,
) -> keelson_store::Result<()> {
    let key = match namespace {
        "" => format!("{}/{name}", kept.prefix),
        namespace => format!("{}/{namespace}/{name}", kept.prefix),
    };
    store.put(key.into(), json.into(), Expect::Any, None).await.map(drop)
}
