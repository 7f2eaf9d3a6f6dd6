//! `keelson kubeconfig`: the administrator's, printed or brought into a file that has others.

use crate::client;
use anyhow::{Context, bail};
use clap::Args;
use keelson_pki::{Kubeconfig, files};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    /// Bring it into this file and make it the current context [without FILE: ~/.kube/config]
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    merge: Option<Option<PathBuf>>,
    /// The name of cluster, user and context in the file
    #[arg(long, default_value = "keelson")]
    name: String,
    /// Write it to this file, for its owner only [default: print it]
    #[arg(short, long, value_name = "FILE", conflicts_with = "merge")]
    output: Option<PathBuf>,
    /// The API's address [default: as in the administrator's]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The kubeconfig to print [default: /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    // What is current is not what is asked for: KUBECONFIG counts only where it is given.
    let path = options.kubeconfig.unwrap_or_else(client::admin_kubeconfig);
    let mut config = Kubeconfig::read(&path)?;
    if let Some(server) = options.server {
        config.server = server;
    }
    let Some(into) = options.merge else {
        match &options.output {
            Some(file) => files::write_secret(file, config.to_yaml().as_bytes())?,
            None => print!("{}", config.to_yaml()),
        }
        return Ok(ExitCode::SUCCESS);
    };
    let into = match into {
        Some(into) => into,
        None => usual()?,
    };
    let into = rewrite(&into, |before| merge(before, &config, &options.name))?;
    println!("{}: the context {} is the current one", into.display(), options.name);
    Ok(ExitCode::SUCCESS)
}

/// Where kubectl looks.
pub fn usual() -> anyhow::Result<PathBuf> {
    Ok(home()?.join(".kube/config"))
}

/// Changes a kubeconfig, which stays its owner's (with sudo the user's). Says where it is.
pub fn rewrite(file: &Path, change: impl FnOnce(&str) -> anyhow::Result<String>) -> anyhow::Result<PathBuf> {
    // Behind a link is where the file is.
    let file = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    let before = files::read(&file)?;
    let changed =
        change(before.as_deref().unwrap_or_default()).with_context(|| format!("changing {}", file.display()))?;
    let owner = std::fs::metadata(&file).ok().map(|was| (was.uid(), was.gid()));
    files::write_secret(&file, changed.as_bytes())?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::chown(&file, Some(user), Some(group))
            .with_context(|| format!("giving {} back to its owner", file.display()))?;
    }
    Ok(file)
}

/// Of whoever runs it; with sudo that is root.
fn home() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").filter(|h| !h.is_empty());
    Ok(Path::new(&home.context("there is no HOME: give a file to --merge")?).to_path_buf())
}

/// The file with the cluster in it. What else it has stays, whoever made it.
pub fn merge(text: &str, config: &Kubeconfig, name: &str) -> anyhow::Result<String> {
    let own: Value = serde_saphyr::from_str(&config.to_yaml()).map_err(|e| anyhow::anyhow!("{e}"))?;
    let mut file: Value = match text.trim() {
        "" => json!({"apiVersion": "v1", "kind": "Config", "preferences": {}}),
        text => serde_saphyr::from_str(text).map_err(|e| anyhow::anyhow!("{e}"))?,
    };
    if !file.is_object() {
        bail!("it is no kubeconfig");
    }
    for (list, entry) in [("clusters", "cluster"), ("users", "user"), ("contexts", "context")] {
        let content = match entry {
            "context" => json!({"cluster": name, "user": name}),
            entry => own[list][0][entry].clone(),
        };
        let new = json!({"name": name, entry: content});
        if file[list].is_null() {
            file[list] = json!([]);
        }
        let Some(all) = file[list].as_array_mut() else {
            bail!("{list} is no list");
        };
        match all.iter_mut().find(|e| e["name"] == name) {
            Some(old) => *old = new,
            None => all.push(new),
        }
    }
    file["current-context"] = name.into();
    serde_saphyr::to_string(&file).map_err(|e| anyhow::anyhow!("{e}"))
}

/// The file without the cluster that [`merge`] brought into it.
pub fn unmerge(text: &str, name: &str) -> anyhow::Result<String> {
    let mut file: Value = serde_saphyr::from_str(text).map_err(|e| anyhow::anyhow!("{e}"))?;
    for list in ["clusters", "users", "contexts"] {
        if let Some(all) = file.get_mut(list).and_then(Value::as_array_mut) {
            all.retain(|entry| entry["name"] != name);
        }
    }
    if file["current-context"] == name {
        file["current-context"] = "".into();
    }
    serde_saphyr::to_string(&file).map_err(|e| anyhow::anyhow!("{e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_in_the_file_stay() {
        let config = Kubeconfig::with_certificate("https://192.0.2.1:6443", "CA", "admin", "CERT", "KEY");
        let others = "apiVersion: v1\nkind: Config\ncurrent-context: work\nclusters:\n- name: work\n  cluster: {server: https://w, extensions: [{name: x}]}\nusers:\n- name: work\n  user:\n    exec: {command: aws, args: [eks], apiVersion: v1, interactiveMode: Never}\ncontexts:\n- name: work\n  context: {cluster: work, user: work, namespace: ns}\n";
        let once = merge(others, &config, "keelson").unwrap();
        assert_eq!(merge(&once, &config, "keelson").unwrap(), once, "twice changes nothing");
        let read = Kubeconfig::parse(&once, Path::new("/")).unwrap();
        assert_eq!(read.server, "https://192.0.2.1:6443");
        assert_eq!(read.ca_pem, "CA");
        let file: Value = serde_saphyr::from_str(&once).unwrap();
        assert_eq!(file["users"][0]["user"]["exec"]["args"][0], "eks");
        assert_eq!(file["contexts"][0]["context"]["namespace"], "ns");
        assert_eq!(file["clusters"].as_array().unwrap().len(), 2);
        let without: Value = serde_saphyr::from_str(&unmerge(&once, "keelson").unwrap()).unwrap();
        assert_eq!(without["clusters"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&without["users"][0]["name"], &without["current-context"]),
            (&"work".into(), &"".into())
        );
        assert!(Kubeconfig::parse(&merge("", &config, "home").unwrap(), Path::new("/")).is_ok());
        for bad in ["[]", "clusters: 5", "a: [", "text"] {
            assert!(merge(bad, &config, "keelson").is_err(), "{bad}");
        }
    }
}
