//! What is known of who goes by the authorities, from the API: other servers' reports, what nodes say of themselves, users' bindings.

use super::depends::{Facts, Report};
use crate::user;
use anyhow::Context;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::ApiObject;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use std::collections::BTreeMap;

const NAMESPACE: &str = "kube-system";
/// Where each server tells where its authorities stand, and who came to it by a former one.
pub const NAME: &str = "keelson-authorities";
/// By which an agent's node tells whom it trusts: hashes, with commas between.
pub const TRUSTS: &str = "keelson.dev/authorities";

/// Tells the others how this server stands. What is told already isn't written again.
pub async fn tell(rest: &Rest, server: &str, report: &Report) -> anyhow::Result<()> {
    let text = serde_json::to_string(report)?;
    let wanted = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(server.to_string(), text.clone())])),
        ..ConfigMap::default()
    };
    let merge = |live: &mut ConfigMap| {
        let data = live.data.get_or_insert_default();
        data.insert(server.to_string(), text.clone()).as_ref() != Some(&text)
    };
    let told = Objects::<ConfigMap>::new(rest).create_or_update(&wanted, merge).await;
    told.context("telling the other servers where the authorities stand")?;
    Ok(())
}

/// All that can be known now. What this server is itself, it knows better than its report.
/// `members`: of an etcd that servers run.
pub async fn gather(rest: &Rest, server: &str, own: Report, members: Option<Vec<String>>) -> anyhow::Result<Facts> {
    let map = Objects::<ConfigMap>::new(rest).find(NAMESPACE, NAME).await;
    let told = map.context("what the servers tell")?.and_then(|map| map.data);
    let serving = Objects::<Endpoints>::new(rest).find("default", "kubernetes").await;
    let serving = addresses(&serving.context("which servers there are")?.unwrap_or_default());
    let mut told: BTreeMap<String, Report> = told
        .unwrap_or_default()
        .into_iter()
        // Of another version: it stands nowhere that is known here.
        .map(|(name, text)| (name, serde_json::from_str::<Report>(&text).unwrap_or_default()))
        .collect();
    told.insert(server.to_string(), own);
    let servers = servers(&told, &serving, server);
    // Who has told nothing yet stands nowhere.
    let standing = |name: String| (name.clone(), told.get(&name).cloned().unwrap_or_default());
    let members = match members {
        Some(members) => members.into_iter().map(standing).collect(),
        None => servers.clone(),
    };
    let nodes = Objects::<Node>::new(rest).list("", "", "").await;
    let nodes = nodes.context("what the nodes tell")?;
    let nodes = nodes.iter().filter_map(|node| {
        let told = node.metadata.annotations.as_ref()?.get(TRUSTS)?;
        Some((node.name().to_string(), told.split(',').map(str::to_string).collect()))
    });
    Ok(Facts {
        nodes: nodes.filter(|(name, _)| !servers.contains_key(name)).collect(),
        users: user::certificates(rest).await?,
        servers,
        members,
    })
}

/// Those that serve, this one among them: by what they tell, or by their addresses, of which nothing is told that can be read.
fn servers(told: &BTreeMap<String, Report>, serving: &[String], own: &str) -> BTreeMap<String, Report> {
    let mut servers = told.clone();
    servers.retain(|name, report| name == own || serving.contains(&report.address));
    for address in serving {
        if servers.values().all(|report| report.address != *address) {
            let report = Report {
                address: address.clone(),
                ..Report::default()
            };
            servers.insert(address.clone(), report);
        }
    }
    servers
}

fn addresses(endpoints: &Endpoints) -> Vec<String> {
    let subsets = endpoints.subsets.iter().flatten();
    let each = subsets.flat_map(|subset| subset.addresses.iter().flatten());
    each.map(|address| address.ip.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_serves_and_tells_nothing_is_no_absent_one() {
        let report = |address: &str| Report {
            address: address.into(),
            ..Report::default()
        };
        let told = BTreeMap::from([
            ("a".to_string(), report("10.0.0.1")),
            ("b".to_string(), report("10.0.0.2")),
            ("gone".to_string(), report("10.0.0.9")),
            ("unreadable".to_string(), Report::default()),
        ]);
        let serving = ["10.0.0.2", "10.0.0.3"].map(str::to_string);
        let all = servers(&told, &serving, "a");
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(names, ["10.0.0.3", "a", "b"]);
        assert_eq!(all["10.0.0.3"], report("10.0.0.3"));
    }
}
