//! What helm has noted of a release: a Secret or ConfigMap a revision, of which only labels are looked at.

use super::chart::{CONFIG_HASH, HelmChart};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::partial::PARTIAL_ACCEPT;
use keelson_client::{ApiObject, Kind, PartialObject, Rest};

const TYPE: &str = "helm.sh/release.v1";

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Release {
    /// The newest; 0: there is none.
    pub revision: i64,
    pub status: String,
    /// Of the configuration that it was made of; empty where the image doesn't note it.
    pub hash: String,
    /// The newest that was deployed, or once was.
    pub well: Option<i64>,
}

pub fn latest<'a>(all: impl IntoIterator<Item = &'a ObjectMeta>) -> Release {
    let mut release = Release::default();
    for meta in all {
        let label = |name: &str| {
            meta.labels
                .as_ref()
                .and_then(|l| l.get(name))
                .cloned()
                .unwrap_or_default()
        };
        let Ok(revision) = label("version").parse::<i64>() else {
            continue;
        };
        if matches!(label("status").as_str(), "deployed" | "superseded") {
            release.well = release.well.max(Some(revision));
        }
        if revision > release.revision {
            release.revision = revision;
            release.status = label("status");
            release.hash = label(CONFIG_HASH);
        }
    }
    release
}

pub async fn of(rest: &Rest, chart: &HelmChart) -> keelson_client::Result<Release> {
    let (resource, fields) = match chart.driver() {
        "configmap" => (ConfigMap::RESOURCE, String::new()),
        _ => (Secret::RESOURCE, format!("type={TYPE}")),
    };
    let labels = format!("owner=helm,name={}", chart.name());
    let mut all = Vec::new();
    let mut each = |json: &[u8]| {
        all.push(PartialObject::decode(json).map_err(keelson_client::Error::SerdeError)?);
        Ok(())
    };
    rest.list_raw(&resource, chart.target(), &labels, &fields, PARTIAL_ACCEPT, &mut each)
        .await?;
    Ok(latest(all.iter().map(|o| &o.metadata)))
}
