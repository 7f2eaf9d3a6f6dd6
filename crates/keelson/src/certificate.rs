//! `keelson certificate`: what stands in a machine's `pki` directory, and new leaves on demand. A running server renews its own
//! in time; to rotate is for whoever wants new keys now. A certificate that somebody else has is taken back by `revoke`, in the cluster's
//! list, and its connections end. An etcd that runs beside the server has certificates of its own (`pki/etcd`), which aren't looked at here.

use crate::authorities::command::{self, Rotation};
use crate::client::{block_on, kubeconfig};
use crate::lock::Lock;
use crate::revoke;
use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::jiff::Timestamp;
use keelson_client::rest::Rest;
use keelson_pki::authority::{self, CertFacts};
use keelson_pki::jwt::turn::{self, Stage};
use keelson_pki::revocation::Record;
use keelson_pki::succession;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What is replaced in steps, while what it signed goes on.
#[derive(Clone, Copy, ValueEnum)]
enum Authority {
    /// The key of service accounts' tokens
    ServiceAccounts,
}

#[derive(Clone, Copy, ValueEnum)]
enum Step {
    /// Make a new one, which all servers take beside the old one
    Announce,
    /// Sign by the new one, and go on taking what the old one signed
    Sign,
    /// Take no longer what the old one signed
    #[value(alias = "withdraw")]
    Retire,
}

impl Step {
    fn of_authority(self) -> succession::Step {
        match self {
            Step::Announce => succession::Step::Announce,
            Step::Sign => succession::Step::Sign,
            Step::Retire => succession::Step::Withdraw,
        }
    }
}

/// What signs the others: not thrown away, but followed by others in steps.
const AUTHORITIES: [&str; 2] = ["ca", "front-proxy-ca"];

/// Whether a certificate is that by which one authority vouches for the next: it ends with the former, and nothing needs it then.
pub fn introduces(name: &str) -> bool {
    name.ends_with("-cross")
}

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
        #[arg(conflicts_with = "authority")]
        names: Vec<String>,
        /// What signs for others, in steps: see --step
        #[arg(long, value_enum, value_name = "NAME", group = "what")]
        authority: Option<Authority>,
        /// The step to make [default: announce and sign at once where a server has no others; else the next one, but for retire]
        #[arg(long, value_enum, requires = "what")]
        step: Option<Step>,
        /// Certificate authorities, in steps, by the server that runs: another is made, known beside the old one, signs, and the old one is
        /// trusted no longer. The first step is made now, the others when their time has come [default: all]
        #[arg(long, value_name = "NAME", num_args = 0.., value_delimiter = ',', conflicts_with = "names", group = "what")]
        authorities: Option<Vec<String>>,
        /// Make all steps now, each as soon as servers, nodes and users are ready for it, and wait so long for that at most
        #[arg(long, value_name = "DURATION", requires = "authorities", num_args = 0..=1, require_equals = true, default_missing_value = "5m", value_parser = keelson_api::duration::length)]
        wait: Option<Duration>,
        /// Make steps of authorities also where somebody is shut out by them, or isn't ready. Those of etcd-ca wait for all members of etcd
        /// all the same, which don't answer each other otherwise
        #[arg(long, requires = "authorities")]
        force: bool,
        /// Kubeconfig by which the server is asked that makes the steps of authorities [default: DATA_DIR/admin.kubeconfig]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
    },
    /// Take client certificates back: nobody is let in by them any more, and what is connected by them ends
    Revoke {
        /// Files that have them (a kubeconfig, or PEM), or their serial numbers
        #[arg(required = true, value_name = "FILE|SERIAL")]
        certificates: Vec<String>,
        /// Why, for the record
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Kubeconfig of the cluster's administrator [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
    },
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let dir = options.data_dir.join("pki");
    match options.command {
        Command::Ls => {
            list(&dir)?;
            command::list(&dir)?;
            if Lock::is_held(&options.data_dir)? && dir.join("ca.key").exists() {
                let listed = block_on(command::list_depending(&own_kubeconfig(&options.data_dir)));
                if let Err(error) = listed {
                    eprintln!("what depends on authorities of before isn't known here: {error:#}");
                }
            }
        }
        Command::Revoke {
            certificates,
            reason,
            kubeconfig: given,
        } => {
            let path = kubeconfig(given);
            let now = Timestamp::now();
            let records: Vec<_> = certificates
                .iter()
                .map(|given| revoke::certificate(given, now))
                .collect::<anyhow::Result<_>>()?;
            block_on(revoke_all(&path, records, reason))?;
        }
        Command::Rotate {
            authorities: Some(names),
            step,
            wait,
            force,
            kubeconfig,
            ..
        } => {
            let rotation = Rotation {
                names,
                step: step.map(Step::of_authority),
                wait,
                force,
            };
            let path = kubeconfig.unwrap_or_else(|| own_kubeconfig(&options.data_dir));
            block_on(command::rotate(&path, &rotation))?;
        }
        Command::Rotate {
            names, authority, step, ..
        } => {
            if let Some(pid) = Lock::holder(&options.data_dir)? {
                bail!(
                    "process {pid} serves {}: stop it first (systemctl stop keelson), rotate, and start it again",
                    options.data_dir.display()
                );
            }
            let _held = Lock::take(&options.data_dir)?;
            if let Some(Authority::ServiceAccounts) = authority {
                turn_accounts(&dir, step)?;
                return Ok(ExitCode::SUCCESS);
            }
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

/// As a server writes it, unless it was told to write it elsewhere.
fn own_kubeconfig(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.kubeconfig")
}

/// The key of service accounts' tokens makes a step, and it is said what comes next.
fn turn_accounts(dir: &Path, asked: Option<Step>) -> anyhow::Result<()> {
    let shared = dir.join(keelson_pki::sharing::TOKEN_FILE).exists();
    for step in turns(turn::stage(dir)?, asked, shared)? {
        turn::step(dir, step)?;
        match step {
            turn::Step::Announce if shared => {
                println!(
                    "a new key is announced: start this server, then start the others again, and when all have, make the next step on one of them"
                );
            }
            turn::Step::Announce => println!("a new key is announced"),
            turn::Step::Sign => {
                println!(
                    "the new key signs from this server's next start on, and from that of each other one; tokens of the old one are still taken"
                );
                println!(
                    "pods renew theirs within a year; tokens in Secrets have to be made anew. Then: --step retire"
                );
            }
            turn::Step::Retire => println!("what the old key signed is no longer taken, from the next start on"),
        }
    }
    Ok(())
}

/// The steps that are meant.
fn turns(stage: Stage, asked: Option<Step>, shared: bool) -> anyhow::Result<Vec<turn::Step>> {
    Ok(match (asked, stage) {
        (Some(Step::Announce), _) => vec![turn::Step::Announce],
        (Some(Step::Sign), _) => vec![turn::Step::Sign],
        (Some(Step::Retire), _) => vec![turn::Step::Retire],
        (None, Stage::AtRest) if shared => vec![turn::Step::Announce],
        // Nobody else has to know the key before it signs.
        (None, Stage::AtRest) => vec![turn::Step::Announce, turn::Step::Sign],
        (None, Stage::Announced) => vec![turn::Step::Sign],
        (None, Stage::Replaced) => bail!(
            "the key before is still taken: when no token of it is needed any more (pods' last for a year at most, those in Secrets for ever), give --step retire"
        ),
    })
}

/// The one that is called by isn't among them, or nothing could be said after it.
async fn revoke_all(path: &Path, records: Vec<Record>, reason: Option<String>) -> anyhow::Result<()> {
    let own = revoke::certificate(&path.display().to_string(), Timestamp::now()).ok();
    if let Some(own) = own.filter(|own| records.iter().any(|r| r.revoked == own.revoked)) {
        bail!(
            "{} is the certificate that you go by: do it as somebody else ({})",
            path.display(),
            own.key()
        );
    }
    let client = keelson_client::from_kubeconfig(path, None).await?;
    let rest = Rest::new(client, "keelson-certificate");
    for mut record in records {
        record.reason = reason.clone().unwrap_or_default();
        revoke::add(&rest, &record).await?;
        println!("{} is revoked", record.key().replace('.', " "));
    }
    Ok(())
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
    let is_leaf = |name: &String| {
        let signs = AUTHORITIES.contains(&name.as_str()) || introduces(name);
        !signs && dir.join(format!("{name}.crt")).exists()
    };
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
        std::fs::copy(dir.join("pki/ca.crt"), dir.join("pki/ca-cross.crt")).unwrap();
        for name in ["ca", "ca-cross"] {
            assert!(rotate(&dir.join("pki"), &[name.into()]).is_err());
        }
        assert_eq!(rotate(&dir.join("pki"), &[]).unwrap(), ["apiserver-kubelet-client"]);
        assert_ne!(made(&dir), first);
        assert_eq!(std::fs::read_to_string(dir.join("pki/ca.crt")).unwrap(), ca);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_key_waits_for_the_others_before_it_signs() {
        use turn::Step::{Announce, Retire, Sign};
        let of = |stage, asked, shared| turns(stage, asked, shared).ok();
        assert_eq!(of(Stage::AtRest, None, false), Some(vec![Announce, Sign]));
        assert_eq!(of(Stage::AtRest, None, true), Some(vec![Announce]));
        assert_eq!(of(Stage::Announced, None, true), Some(vec![Sign]));
        assert_eq!(of(Stage::Replaced, None, true), None, "nobody loses tokens unasked");
        assert_eq!(of(Stage::Replaced, Some(Step::Retire), true), Some(vec![Retire]));
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
