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

/// An extension of a context that was made the current one: which one was it before.
const BEFORE: &str = "keelson.dev/context-before";

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
    let before = match file["current-context"].as_str() {
        Some(current) if current == name => before(&file, name),
        current => current.filter(|current| !current.is_empty()).map(str::to_owned),
    };
    for (list, entry) in [("clusters", "cluster"), ("users", "user"), ("contexts", "context")] {
        let content = match entry {
            "context" => context(name, before.as_deref()),
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

fn context(name: &str, before: Option<&str>) -> Value {
    let mut context = json!({"cluster": name, "user": name});
    if let Some(before) = before {
        context["extensions"] = json!([{"name": BEFORE, "extension": {"context": before}}]);
    }
    context
}

/// Which context was the current one before this one became it.
fn before(file: &Value, name: &str) -> Option<String> {
    let mut contexts = file["contexts"].as_array()?.iter();
    let context = &contexts.find(|entry| entry["name"] == name)?["context"];
    let mut extensions = context["extensions"].as_array()?.iter();
    let noted = &extensions.find(|noted| noted["name"] == BEFORE)?["extension"];
    noted["context"].as_str().map(str::to_owned)
}

/// The file without the cluster that [`merge`] brought into it. The context of before is the current one again.
pub fn unmerge(text: &str, name: &str) -> anyhow::Result<String> {
    let mut file: Value = serde_saphyr::from_str(text).map_err(|e| anyhow::anyhow!("{e}"))?;
    if !file.is_object() {
        bail!("it is no kubeconfig");
    }
    let back = before(&file, name);
    for list in ["clusters", "users", "contexts"] {
        if let Some(all) = file.get_mut(list).and_then(Value::as_array_mut) {
            all.retain(|entry| entry["name"] != name);
        }
    }
    let contexts = file.get_mut("contexts").and_then(Value::as_array_mut);
    let contexts = contexts.map(std::mem::take).unwrap_or_default();
    let is_there = |context: &str| contexts.iter().any(|entry| entry["name"] == context);
    if file["current-context"] == name {
        file["current-context"] = back.clone().filter(|back| is_there(back)).unwrap_or_default().into();
    }
    // Who came after it goes back further.
    let contexts = contexts.into_iter().map(|mut entry| {
        let noted = entry.pointer_mut("/context/extensions").and_then(Value::as_array_mut);
        for noted in noted.into_iter().flatten().filter(|noted| noted["name"] == BEFORE) {
            if noted["extension"]["context"] == name {
                noted["extension"]["context"] = back.clone().unwrap_or_default().into();
            }
        }
        entry
    });
    let contexts: Vec<Value> = contexts.collect();
    file["contexts"] = contexts.into();
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
            (&"work".into(), &"work".into())
        );
        assert!(Kubeconfig::parse(&merge("", &config, "home").unwrap(), Path::new("/")).is_ok());
        for bad in ["[]", "clusters: 5", "a: [", "text"] {
            assert!(merge(bad, &config, "keelson").is_err(), "{bad}");
        }
    }

    #[test]
    fn the_context_of_before_is_the_current_one_again() {
        let config = Kubeconfig::with_certificate("https://192.0.2.1:6443", "CA", "admin", "CERT", "KEY");
        let current = |text: &str| {
            let file: Value = serde_saphyr::from_str(text).unwrap();
            file["current-context"].as_str().unwrap_or_default().to_owned()
        };
        let own = "current-context: work\ncontexts:\n- name: work\n  context: {cluster: work, user: work}\n";
        let one = merge(own, &config, "one").unwrap();
        let both = merge(&one, &config, "two").unwrap();
        assert_eq!(current(&both), "two");
        let first = unmerge(&unmerge(&both, "two").unwrap(), "one").unwrap();
        assert_eq!(current(&first), "work");
        // The first goes first: the second goes back to where that one came from.
        let other = unmerge(&both, "one").unwrap();
        assert_eq!(current(&other), "two");
        assert_eq!(current(&unmerge(&other, "two").unwrap()), "work");
        // Somebody chose another one meanwhile, which stays.
        let chosen = both.replace("current-context: two", "current-context: one");
        assert_eq!(current(&unmerge(&chosen, "two").unwrap()), "one");
        // It isn't there any more, or there was none.
        let gone = one.replace("name: work", "name: other");
        assert_eq!(current(&unmerge(&gone, "one").unwrap()), "");
        let alone = merge("", &config, "one").unwrap();
        assert_eq!(current(&unmerge(&alone, "one").unwrap()), "");
    }
}
