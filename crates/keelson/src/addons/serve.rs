//! Add-ons as a part of a server.

use crate::config::{Component, Config};
use crate::supervise::Supervisor;
use anyhow::Context;
use keelson_addons::{helm, run};
use keelson_apiserver::{ApiServer, UserInfo};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

/// Who applies what files say, which may be anything. No role is bound to this name and no token is made for it, so it can't be come by.
const IDENTITY: &str = "system:keelson:addons";

pub fn start(running: &mut Supervisor, config: &Config, api: &Arc<ApiServer>, candidate: Option<String>) {
    if !config.runs(Component::Addons) {
        return;
    }
    let settings = keelson_addons::Config {
        server: config.node_name.clone(),
        directories: config.addons.directories.clone(),
        leader_election: candidate,
        helm: config.addons.charts.map(|always| helm::Config {
            always,
            settings: helm::job::Settings {
                image: config.addons.image.clone(),
                api_port: config.api_port,
                proxies: proxies(|name| std::env::var(name).ok()),
            },
        }),
    };
    let own = config.data_dir.join("addons");
    let user = UserInfo::new(IDENTITY, &["system:masters", "system:authenticated"]);
    let client = api.client(user);
    running.spawn("addons", move |stop| {
        let (client, settings, own) = (client.clone(), settings.clone(), own.clone());
        async move {
            make(&own)?;
            run(client, settings, stop).await
        }
    });
}

/// Its files may have secrets in them.
fn make(directory: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("the directory of add-ons {}", directory.display()))
}

/// Jobs reach the world as this program does.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let names = [
        "all_proxy",
        "ALL_PROXY",
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "no_proxy",
        "NO_PROXY",
    ];
    let set = names
        .iter()
        .filter_map(|name| Some((name.to_string(), variable(name)?)));
    set.filter(|(_, value)| !value.is_empty()).collect()
}
