//! What runs on this machine, by its runtime's CRI: `keelson ps`, `logs`, `exec`, `stats` and `top`. No API server is asked, so these work on a
//! node that can't reach one, and with any runtime that speaks CRI.

mod cells;
pub mod exec;
mod live;
pub mod logs;
mod node;
mod pids;
pub mod ps;
mod select;
pub mod stats;
mod terminal;
pub mod top;
mod usage;

use crate::config;
use anyhow::bail;
use clap::Args;
use keelson_cri::CriClients;
use keelson_machinery::selector::LabelSelector;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Calls with one answer end within this time.
const LIMIT: Duration = Duration::from_secs(60);
/// Where `keelson runtime` serves CRI unless told otherwise.
const ALONE: &str = "/run/keelson/cri.sock";
/// Where others serve it.
const OTHERS: [&str; 2] = ["/run/containerd/containerd.sock", "/run/crio/crio.sock"];

/// Which runtime is asked.
#[derive(Args)]
pub struct Reach {
    /// Where the runtime serves CRI: unix:///PATH [default: DATA_DIR/runtime/cri.sock, or /run/keelson/cri.sock if only that is there]
    #[arg(long, env = "CONTAINER_RUNTIME_ENDPOINT", value_name = "URL")]
    runtime_endpoint: Option<String>,
    /// Data directory of this machine's server or agent
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
}

impl Reach {
    pub async fn connect(&self) -> anyhow::Result<CriClients> {
        let endpoint = match &self.runtime_endpoint {
            Some(given) => given.clone(),
            None => format!("unix://{}", own(&config::absolute(self.data_dir.clone())?).display()),
        };
        // Who listens there is asked first: what the kernel answers says more than a transport that doesn't come up.
        if let Some(path) = path_of(&endpoint)
            && let Err(error) = UnixStream::connect(path).await
            && let Some(why) = explained(&endpoint, error.kind(), &others())
        {
            bail!(why);
        }
        Ok(CriClients::connect(&endpoint).await?.bounded(LIMIT))
    }
}

/// The socket of this installation.
fn own(data_dir: &Path) -> PathBuf {
    let own = data_dir.join("runtime/cri.sock");
    match !own.exists() && Path::new(ALONE).exists() {
        true => ALONE.into(),
        false => own,
    }
}

fn others() -> Vec<&'static str> {
    OTHERS.into_iter().filter(|path| Path::new(path).exists()).collect()
}

fn path_of(endpoint: &str) -> Option<&Path> {
    let bare = endpoint.strip_prefix("unix:").unwrap_or(endpoint);
    let bare = bare.strip_prefix("//").unwrap_or(bare);
    bare.starts_with('/').then(|| Path::new(bare))
}

/// Why nobody answers, and what to do; `None`: the client's own words say it.
fn explained(endpoint: &str, kind: ErrorKind, others: &[&str]) -> Option<String> {
    match kind {
        ErrorKind::PermissionDenied => Some(format!(
            "{endpoint}: permission denied: what runs on a node is root's to see (sudo keelson …)"
        )),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            let mut why = format!(
                "no runtime listens at {endpoint}: is keelson running, with this --data-dir? Another runtime's socket is named by --runtime-endpoint"
            );
            for other in others {
                why += &format!("; there is unix://{other}");
            }
            Some(why)
        }
        _ => None,
    }
}

/// Which containers are meant.
#[derive(Args)]
pub struct Filter {
    /// Of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Of the pod of this name
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Of this name in their pods
    #[arg(long, value_name = "CONTAINER")]
    name: Option<String>,
    /// Whose pod, or who themselves, have such labels: app=web, 'tier in (a,b)'
    #[arg(short, long, value_name = "SELECTOR", value_parser = LabelSelector::parse)]
    label: Vec<LabelSelector>,
}

impl Filter {
    /// Whether this takes a container, or a pod where `name` is none.
    fn takes(&self, namespace: &str, pod: &str, name: Option<&str>, labels: &[&HashMap<String, String>]) -> bool {
        let is = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|wanted| wanted == has);
        let label = |key: &str| labels.iter().find_map(|labels| labels.get(key)).map(String::as_str);
        is(&self.namespace, namespace)
            && is(&self.pod, pod)
            && name.is_none_or(|name| is(&self.name, name))
            && self.label.iter().all(|selector| selector.matches_with(label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_doesnt_answer_is_explained() {
        let endpoint = "unix:///var/lib/keelson/runtime/cri.sock";
        let missing = explained(endpoint, ErrorKind::NotFound, &["/run/containerd/containerd.sock"]).unwrap();
        assert!(
            missing.contains(endpoint) && missing.contains("is keelson running"),
            "{missing}"
        );
        assert!(
            missing.ends_with("there is unix:///run/containerd/containerd.sock"),
            "{missing}"
        );
        let refused = explained(endpoint, ErrorKind::PermissionDenied, &[]).unwrap();
        assert!(refused.contains("root"), "{refused}");
        assert_eq!(explained(endpoint, ErrorKind::InvalidInput, &[]), None);
    }

    #[test]
    fn endpoints_are_paths_in_any_of_the_usual_forms() {
        for endpoint in ["unix:///a/b", "unix:/a/b", "/a/b"] {
            assert_eq!(path_of(endpoint), Some(Path::new("/a/b")), "{endpoint}");
        }
        assert_eq!(path_of("tcp://1.2.3.4"), None);
    }

    #[test]
    fn a_filter_asks_for_names_and_for_labels_of_pod_or_container() {
        let map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
        };
        let (pod, container) = (map(&[("app", "web")]), map(&[("own", "1")]));
        let filter = |namespace: Option<&str>, label: &[&str]| Filter {
            namespace: namespace.map(str::to_string),
            pod: None,
            name: Some("c".to_string()),
            label: label.iter().map(|text| LabelSelector::parse(text).unwrap()).collect(),
        };
        let takes = |filter: Filter, name: Option<&str>| filter.takes("shop", "web-0", name, &[&pod, &container]);
        assert!(takes(filter(None, &[]), Some("c")) && !takes(filter(None, &[]), Some("d")));
        assert!(takes(filter(Some("shop"), &["app=web", "own"]), Some("c")));
        assert!(!takes(filter(Some("other"), &[]), Some("c")));
        assert!(!takes(filter(None, &["app in (db)"]), Some("c")));
        assert!(takes(filter(None, &[]), None), "of a pod no container's name is asked");
    }
}
