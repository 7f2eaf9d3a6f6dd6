//! `keelson certificate`: what stands in a machine's `pki` directory, and new leaves on demand. A running server renews its own
//! in time; to rotate is for whoever wants new keys now. A key that somebody else has goes on until its certificate ends: there is no
//! revocation. An etcd that runs beside the server has certificates of its own (`pki/etcd`), which aren't looked at here.

use crate::lock::Lock;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use k8s_openapi::jiff::Timestamp;
use keelson_pki::authority::{self, CertFacts};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What signs the others: not replaced here.
const AUTHORITIES: [&str; 2] = ["ca", "front-proxy-ca"];

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// Data directory of the server or agent
    #[arg(long, value_name = "DIR", default_value = crate::config::DEFAULT_DATA_DIR, global = true)]
    data_dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// List the certificates of this machine, and when they end
    #[command(visible_alias = "list")]
    Ls,
    /// Throw away the certificates that aren't authorities; the server, which must not run, makes new ones when it starts
    Rotate {
        /// Names, as `ls` shows them [default: all]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let dir = options.data_dir.join("pki");
    match options.command {
        Command::Ls => list(&dir)?,
        Command::Rotate { names } => {
            if let Some(pid) = Lock::holder(&options.data_dir)? {
                bail!(
                    "process {pid} serves {}: stop it first (systemctl stop keelson), rotate, and start it again",
                    options.data_dir.display()
                );
            }
            let _held = Lock::take(&options.data_dir)?;
            let rotated = rotate(&dir, &names)?;
            if rotated.is_empty() {
                bail!("there is no certificate here that can be rotated");
            }
            for name in rotated {
                println!("{name}: a new one is made at the next start");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Certificates by name: of files `NAME.crt`, and of those that hold their key too, `NAME.pem`.
fn read(dir: &Path) -> anyhow::Result<Vec<(String, CertFacts)>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("there are no certificates in {}", dir.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_certificate = path.extension().is_some_and(|e| e == "crt" || e == "pem");
        let Some(name) = path.file_stem().and_then(|n| n.to_str()).filter(|_| is_certificate) else {
            continue;
        };
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        if let Ok(facts) = authority::read_certificate(&text) {
            found.push((name.to_string(), facts));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn list(dir: &Path) -> anyhow::Result<()> {
    let now = Timestamp::now().as_second();
    println!("{:<28} {:<36} {:<22} LEFT", "NAME", "SUBJECT", "ENDS");
    for (name, facts) in read(dir)? {
        let ends = Timestamp::from_second(facts.not_after)
            .map(|t| format!("{t:.0}"))
            .unwrap_or_default();
        println!("{name:<28} {:<36} {ends:<22} {}", facts.common_name, left(&facts, now));
    }
    Ok(())
}

fn left(facts: &CertFacts, now: i64) -> String {
    match facts.not_after - now {
        over if over <= 0 => "<expired>".into(),
        _ if facts.not_before > now => "<not yet valid>".into(),
        left if left < 2 * 24 * 3600 => format!("{}h", left / 3600),
        left => format!("{}d", left / (24 * 3600)),
    }
}

fn rotate(dir: &Path, names: &[String]) -> anyhow::Result<Vec<String>> {
    let leaves = read(dir)?.into_iter().map(|(name, _)| name);
    let is_leaf = |name: &String| !AUTHORITIES.contains(&name.as_str()) && dir.join(format!("{name}.crt")).exists();
    let leaves: Vec<String> = leaves.filter(is_leaf).collect();
    if let Some(unknown) = names.iter().find(|n| !leaves.contains(n)) {
        bail!(
            "{unknown:?} is no certificate that can be rotated: {}",
            leaves.join(", ")
        );
    }
    let chosen: Vec<String> = leaves
        .into_iter()
        .filter(|n| names.is_empty() || names.contains(n))
        .collect();
    for name in &chosen {
        for extension in ["crt", "key"] {
            let path = dir.join(format!("{name}.{extension}"));
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("removing {}", path.display()));
                }
                _ => {}
            }
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::Pki;

    #[test]
    fn leaves_are_rotated_and_authorities_stay() {
        let dir = std::env::temp_dir().join(format!("keelson-certificate-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let made = |dir: &Path| Pki::open(dir).unwrap().apiserver_kubelet_client().unwrap().cert_pem;
        let (first, ca) = (made(&dir), std::fs::read_to_string(dir.join("pki/ca.crt")).unwrap());
        let names: Vec<String> = read(&dir.join("pki")).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["apiserver-kubelet-client", "ca", "front-proxy-ca"]);
        assert_eq!(made(&dir), first, "it is kept as long as it is good");
        assert!(rotate(&dir.join("pki"), &["ca".into()]).is_err());
        assert_eq!(rotate(&dir.join("pki"), &[]).unwrap(), ["apiserver-kubelet-client"]);
        assert_ne!(made(&dir), first);
        assert_eq!(std::fs::read_to_string(dir.join("pki/ca.crt")).unwrap(), ca);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_left_is_said() {
        let facts = |not_before, not_after| CertFacts {
            common_name: String::new(),
            organizations: vec![],
            sans: vec![],
            not_before,
            not_after,
        };
        assert_eq!(left(&facts(0, 10 * 24 * 3600), 0), "10d");
        assert_eq!(left(&facts(0, 3 * 3600), 0), "3h");
        assert_eq!(left(&facts(0, 5), 5), "<expired>");
        assert_eq!(left(&facts(9, 100), 5), "<not yet valid>");
    }
}
