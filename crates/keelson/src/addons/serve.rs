//! Add-ons as a part of a server.

use crate::config::{Component, Config};
use crate::supervise::Supervisor;
use anyhow::Context;
use keelson_addons::{helm, run};
use keelson_apiserver::{ApiServer, UserInfo};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
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
            tell_of_writers(&settings.directories);
            run(client, settings, stop).await
        }
    });
}

/// Its files may have secrets in them.
fn make(directory: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("the directory of add-ons {}", directory.display()))
}

/// Who may write there may do everything in the cluster.
fn tell_of_writers(directories: &[PathBuf]) {
    for directory in directories {
        if std::fs::metadata(directory).is_ok_and(|meta| is_for_others(meta.mode())) {
            tracing::warn!(
                directory = %directory.display(),
                "others than its owner may write to a directory of add-ons, and by that do everything in the cluster"
            );
        }
    }
}

fn is_for_others(mode: u32) -> bool {
    mode & 0o022 != 0
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_may_write_to_is_told_of() {
        assert!([0o40700, 0o40755, 0o41755].into_iter().all(|mode| !is_for_others(mode)));
        assert!([0o40775, 0o40757, 0o41777].into_iter().all(is_for_others));
    }
}
