//! `keelson token`: bootstrap tokens, kept as Secrets. What a machine is given is one of them with the hash of the cluster's
//! authority behind it. A token that has expired is refused, and removed by a controller. Tokens of service accounts and of issuers
//! aren't kept anywhere: those are revoked. The token of the servers is another thing: they replace it, when they are asked to.

use crate::client::{block_on, kubeconfig};
use crate::{agent, revoke};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use http::Method;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::{SignedDuration, SignedDurationRound, Timestamp, Unit};
use keelson_apiserver::joining;
use keelson_client::objects::Objects;
use keelson_client::rest::{JSON, Rest};
use keelson_client::{delete_options, is_not_found};
use keelson_pki::revocation::Record;
use keelson_pki::{BootstrapToken, JoinToken, Kubeconfig, authority};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

const NAMESPACE: &str = "kube-system";
/// How often servers are asked whether all have taken another token.
const ASK_AGAIN: Duration = Duration::from_millis(500);
const TYPE: &str = "bootstrap.kubernetes.io/token";

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Make a token with which machines join
    Create {
        /// Hours for which the token is good; 0: until it is deleted
        #[arg(long, default_value_t = 24, value_name = "HOURS")]
        ttl: u32,
        /// What the token is for, to be shown in lists
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Print the whole command for the other machine
        #[arg(long)]
        print_join_command: bool,
        /// For a machine that joins by kubeadm, with upstream's kubelet
        #[arg(long)]
        kubeadm: bool,
    },
    /// List the tokens there are: their ids, not their secrets
    List,
    /// Delete tokens: nobody joins with them any more
    Delete {
        /// Ids (or whole tokens)
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<String>,
    },
    /// Give the cluster's servers another token, by which they seal what they share and others become servers. All of them take it while
    /// they run
    Rotate {
        /// How long to wait until all have taken it
        #[arg(long, default_value = "60s", value_parser = crate::wait::duration)]
        wait: Duration,
    },
    /// Take back tokens of service accounts or of other issuers: nobody is let in by them any more, and what is connected ends
    Revoke {
        /// Files that have them (alone, or in a kubeconfig), or their ids (`jti`)
        #[arg(required = true, value_name = "FILE|ID")]
        tokens: Vec<String>,
        /// Why, for the record
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let path = kubeconfig(options.kubeconfig);
    block_on(async {
        let client = keelson_client::from_kubeconfig(&path, None).await?;
        let rest = Rest::new(client, "keelson-token");
        let secrets: Objects<Secret> = Objects::new(&rest);
        match options.command {
            Command::Create {
                ttl,
                description,
                print_join_command,
                kubeadm,
            } => {
                let joins = if kubeadm { Joins::ByKubeadm } else { Joins::AsAgent };
                let (token, command) = create(&secrets, &path, ttl, description, joins).await?;
                println!("{}", if print_join_command { command } else { token });
                Ok(())
            }
            Command::List => list(&secrets).await,
            Command::Delete { tokens } => delete(&secrets, &tokens).await,
            Command::Rotate { wait } => rotate(&rest, wait).await,
            Command::Revoke { tokens, reason } => revoke(&rest, &tokens, reason).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What the other machine runs.
#[derive(Clone, Copy)]
enum Joins {
    AsAgent,
    ByKubeadm,
}

impl Joins {
    /// The group of its tokens, beside that of all.
    fn group(self) -> &'static str {
        match self {
            Joins::AsAgent => "system:bootstrappers:keelson:default-node-token",
            Joins::ByKubeadm => crate::kubeadm::GROUP,
        }
    }

    /// The token as that program takes it, and the whole command.
    fn told(self, token: BootstrapToken, cluster: &Kubeconfig) -> anyhow::Result<(String, String)> {
        let (server, ca) = (&cluster.server, &cluster.ca_pem);
        Ok(match self {
            Joins::AsAgent => {
                let ca_hash = authority::fingerprint(ca).context("the kubeconfig names no certificate authority")?;
                let token = JoinToken { token, ca_hash }.to_string();
                let command = format!("keelson agent --server {server} --token {token}");
                (token, command)
            }
            Joins::ByKubeadm => {
                let hash = crate::kubeadm::pin(ca)?;
                let endpoint = endpoint(server)?;
                let command =
                    format!("kubeadm join {endpoint} --token {token} --discovery-token-ca-cert-hash sha256:{hash}");
                (token.to_string(), command)
            }
        })
    }
}

/// Host and port of a server's URL.
fn endpoint(server: &str) -> anyhow::Result<String> {
    let url: http::Uri = server.parse().with_context(|| format!("{server:?} is no URL"))?;
    let host = url.host().with_context(|| format!("{server:?} names no host"))?;
    Ok(format!("{host}:{}", url.port_u16().unwrap_or(443)))
}

/// Makes a token: what of it is printed.
async fn create(
    secrets: &Objects<Secret>,
    path: &Path,
    ttl: u32,
    description: Option<String>,
    joins: Joins,
) -> anyhow::Result<(String, String)> {
    let cluster = Kubeconfig::read(path)?;
    let token = BootstrapToken::generate();
    let secret = secret(&token, ttl, description, joins);
    let told = joins.told(token, &cluster)?;
    secrets.create(&secret).await.context("the token could not be stored")?;
    Ok(told)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Turn {
    /// Addresses of servers that haven't taken it.
    waits_for: Vec<String>,
    sealed: bool,
}

/// Asked for once; servers see to it from then on, whoever waits.
async fn rotate(rest: &Rest, wait: Duration) -> anyhow::Result<()> {
    let call = async |method| -> anyhow::Result<Turn> {
        let told = rest.call(method, joining::TOKEN, JSON, Vec::new()).await;
        Ok(serde_json::from_slice(&told?)?)
    };
    let until = Instant::now() + wait;
    let mut turn = match call(Method::POST).await {
        Err(error) if agent::status(&error) == Some(404) => {
            bail!("this server has its store for itself: no other can join, and there is no servers' token")
        }
        turn => turn?,
    };
    while !(turn.waits_for.is_empty() && turn.sealed) {
        if Instant::now() > until {
            let missing = match turn.waits_for.join(", ") {
                none if none.is_empty() => "none, but what they share isn't sealed by it yet".to_owned(),
                some => some,
            };
            bail!("the next token is there, and the present one counts until all have taken it. Missing: {missing}");
        }
        tokio::time::sleep(ASK_AGAIN).await;
        turn = match call(Method::GET).await {
            Err(error) if agent::passes(&error) && Instant::now() < until => continue,
            turn => turn?,
        };
    }
    println!(
        "all servers have another token: pki/server-token in the data directory of each. One that doesn't run now needs it as --token when \
         it is started"
    );
    Ok(())
}

async fn list(secrets: &Objects<Secret>) -> anyhow::Result<()> {
    let found = secrets.list(NAMESPACE, "", &format!("type={TYPE}")).await;
    println!("{:<8} {:<10} {:<22} DESCRIPTION", "ID", "TTL", "EXPIRES");
    for secret in found.context("the tokens can't be listed")? {
        let text = |key: &str| {
            let bytes = secret.data.as_ref().and_then(|d| d.get(key));
            bytes
                .map(|b| String::from_utf8_lossy(&b.0).into_owned())
                .unwrap_or_default()
        };
        let expires = text("expiration");
        let left = left(&expires, Timestamp::now());
        println!(
            "{:<8} {left:<10} {expires:<22} {}",
            text("token-id"),
            text("description")
        );
    }
    Ok(())
}

fn left(expires: &str, now: Timestamp) -> String {
    match expires.parse::<Timestamp>() {
        _ if expires.is_empty() => "<forever>".into(),
        Ok(at) if at <= now => "<expired>".into(),
        Ok(at) => {
            let round = SignedDurationRound::new().smallest(Unit::Minute);
            let left = at.duration_since(now);
            format!("{:#}", left.round(round).unwrap_or(left))
        }
        Err(_) => "<invalid>".into(),
    }
}

async fn delete(secrets: &Objects<Secret>, tokens: &[String]) -> anyhow::Result<()> {
    for given in tokens {
        let id = given.split('.').next().unwrap_or(given);
        // An id is checked before it becomes part of a name.
        if id.len() != 6 || !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            bail!("{id:?} is no token's id: it has six letters or digits (keelson token list)");
        }
        let name = format!("bootstrap-token-{id}");
        match secrets
            .delete(NAMESPACE, &name, &delete_options(None, None, None))
            .await
        {
            Ok(()) => println!("token {id} deleted"),
            Err(error) if is_not_found(&error) => bail!("there is no token {id} (keelson token list)"),
            Err(error) => return Err(error).with_context(|| format!("the token {id} could not be deleted")),
        }
    }
    Ok(())
}

async fn revoke(rest: &Rest, tokens: &[String], reason: Option<String>) -> anyhow::Result<()> {
    let records = tokens.iter().map(|given| revoke::token(given, Timestamp::now()));
    for record in records.collect::<anyhow::Result<Vec<_>>>()? {
        let record = Record {
            reason: reason.clone().unwrap_or_default(),
            ..record
        };
        revoke::add(rest, &record).await?;
        println!("{} is revoked", record.key().replacen('.', " ", 1));
    }
    Ok(())
}

fn secret(token: &BootstrapToken, hours: u32, description: Option<String>, joins: Joins) -> Secret {
    let mut data = vec![
        ("token-id", token.id.clone()),
        ("token-secret", token.secret.clone()),
        ("usage-bootstrap-authentication", "true".into()),
        ("usage-bootstrap-signing", "true".into()),
        ("auth-extra-groups", joins.group().into()),
    ];
    if hours > 0 {
        let now = Timestamp::now();
        let expires = now
            .saturating_add(SignedDuration::from_hours(hours.into()))
            .unwrap_or(now);
        data.push(("expiration", format!("{expires:.0}")));
    }
    data.extend(description.map(|text| ("description", text)));
    Secret {
        metadata: ObjectMeta {
            name: Some(token.secret_name()),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.into()),
        string_data: Some(data.into_iter().map(|(k, v)| (k.to_string(), v)).collect()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_token() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(left("2026-01-01T23:59:58Z", now), "24h");
        assert_eq!(left("2025-12-31T00:00:00Z", now), "<expired>");
        assert_eq!(left("", now), "<forever>");
        assert_eq!(left("soon", now), "<invalid>");
        assert!(
            !secret(&BootstrapToken::generate(), 0, None, Joins::AsAgent)
                .string_data
                .unwrap()
                .contains_key("expiration")
        );
    }

    #[test]
    fn each_program_is_told_in_its_own_form() {
        let ca = keelson_pki::Authority::generate("kubernetes").unwrap();
        let cluster = Kubeconfig {
            server: "https://[fd00::1]:6443".into(),
            ca_pem: ca.cert_pem().into(),
            ..Kubeconfig::default()
        };
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().unwrap();
        let (_, command) = Joins::AsAgent.told(token.clone(), &cluster).unwrap();
        assert!(command.starts_with("keelson agent --server https://[fd00::1]:6443 --token abcdef.0123456789abcdef."));
        let (alone, command) = Joins::ByKubeadm.told(token.clone(), &cluster).unwrap();
        assert_eq!(alone, "abcdef.0123456789abcdef");
        assert!(command.starts_with(
            "kubeadm join [fd00::1]:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:"
        ));
        assert_eq!(endpoint("https://api.example").unwrap(), "api.example:443");
        let groups = |joins| secret(&token, 1, None, joins).string_data.unwrap()["auth-extra-groups"].clone();
        assert_eq!(
            groups(Joins::ByKubeadm),
            "system:bootstrappers:kubeadm:default-node-token"
        );
        assert_ne!(groups(Joins::AsAgent), groups(Joins::ByKubeadm));
    }
}
