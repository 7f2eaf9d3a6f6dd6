//! `keelson user`: people with certificates of their own, and bindings that say what they may do.
//!
//! A user is whoever has a certificate of the cluster's authority; what is known of users are the bindings made here, by their
//! label. Removing a user removes its bindings, and lets it do nothing; revoking it takes back what it proves its name by, at once and
//! also where it is connected. A user that is added again gets a certificate that is newer than what was taken back.

use crate::authorities::depends::User;
use crate::client::{block_on, kubeconfig};
use crate::{issue, revoke};
use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::ApiObject;
use keelson_client::objects::{Objects, delete_options};
use keelson_client::rest::Rest;
use keelson_pki::authority::CertFacts;
use keelson_pki::revocation::{self, Record, Table};
use keelson_pki::{Kubeconfig, authority};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const LABEL: &str = "keelson.dev/user";
/// When the certificate ends, beside the binding that it goes with.
const EXPIRES: &str = "keelson.dev/certificate-expires";
/// When it was issued, in Unix seconds.
const ISSUED: &str = "keelson.dev/certificate-issued";
const RBAC: &str = "rbac.authorization.k8s.io";
/// The signer and the approval are the cluster's own and answer at once.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a certificate is asked for that is newer than what was taken back, a second apart.
const TRIES: u32 = 10;
/// What signers take at least.
const SHORTEST: u64 = 10 * 60;

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// Kubeconfig of the cluster's administrator [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Make a certificate and a binding for a user, and print its kubeconfig
    Add(Add),
    /// List the users that were made here
    #[command(visible_alias = "list")]
    Ls,
    /// Take back every certificate and token that was issued to a name until now, and end what is connected by them
    Revoke(Revoke),
    /// Take away what a user may do
    #[command(visible_alias = "remove")]
    Rm {
        /// Names of users
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Args)]
struct Revoke {
    /// Names of users; of a node `system:node:NAME`, of a service account `system:serviceaccount:NAMESPACE:NAME`
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Also if it is the name you go by, or nobody is left who may administer the cluster
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct Add {
    name: String,
    /// What the user may do
    #[arg(long, value_enum, default_value_t = Role::View)]
    role: Role,
    /// Only in this namespace [default: in all]
    #[arg(short, long)]
    namespace: Option<String>,
    /// A group of the user; may be given several times
    #[arg(long = "group")]
    groups: Vec<String>,
    /// How long the certificate is good: 12h, 90d
    #[arg(long, default_value = "365d", value_parser = expiry)]
    expiry: Duration,
    /// The API's address in the kubeconfig [default: as in the administrator's]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Write the kubeconfig to this file, for its owner only [default: print it]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    View,
    Edit,
    Admin,
    ClusterAdmin,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::View => "view",
            Role::Edit => "edit",
            Role::Admin => "admin",
            Role::ClusterAdmin => "cluster-admin",
        }
    }
}

fn expiry(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no time (12h, 90d)"))?;
    let seconds = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(format!("{text:?}: units are m, h and d")),
    };
    let seconds = number.checked_mul(seconds).filter(|s| i32::try_from(*s).is_ok());
    let seconds = seconds.ok_or_else(|| format!("{text:?} is too long"))?;
    match seconds >= SHORTEST {
        true => Ok(Duration::from_secs(seconds)),
        false => Err("a certificate is good for 10m at least".into()),
    }
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let path = kubeconfig(options.kubeconfig);
    block_on(async {
        let client = keelson_client::from_kubeconfig(&path, None).await?;
        let rest = Rest::new(client, "keelson-user");
        match options.command {
            Command::Add(add) => self::add(&rest, &path, &add).await,
            Command::Ls => list(&rest).await,
            Command::Revoke(revoke) => self::revoke(&rest, revoke).await,
            Command::Rm { names } => remove(&rest, &names).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Names that also go into labels and objects' names.
fn check(name: &str) -> anyhow::Result<()> {
    let is_end = |c: Option<u8>| c.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let is_part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let good = name.len() <= 50 && name.bytes().all(is_part);
    if !good || !is_end(name.bytes().next()) || !is_end(name.bytes().last()) {
        bail!("{name:?}: a user's name has small letters, digits, - and ., 50 at most");
    }
    Ok(())
}

async fn add(rest: &Rest, path: &Path, add: &Add) -> anyhow::Result<()> {
    check(&add.name)?;
    if let Some(group) = add.groups.iter().find(|g| g.starts_with("system:") || g.is_empty()) {
        bail!("{group:?}: groups that begin with system: are the cluster's own");
    }
    let cluster = Kubeconfig::read(path)?;
    let groups: Vec<&str> = add.groups.iter().map(String::as_str).collect();
    let asked = issue::Asked {
        prefix: "keelson-user-",
        signer: "kubernetes.io/kube-apiserver-client",
        usages: ["digital signature", "client auth"],
        seconds: i32::try_from(add.expiry.as_secs()).ok(),
    };
    let revoked = revoke::list(rest).await?.of_name(&add.name);
    if revoked == Some(k8s_openapi::jiff::Timestamp::MAX) {
        bail!(
            "{} is revoked for good, by a record that can't be read or says no moment: remove it from {}/{} first",
            add.name,
            revocation::NAMESPACE,
            revocation::NAME
        );
    }
    let mut tries = 0;
    let (certificate, key, facts) = loop {
        let made = keelson_pki::request::request(&add.name, &groups, &[])?;
        let name = issue::submit(rest, &asked, made.request_pem).await?;
        issue::approve(rest, &name, &format!("keelson user add {}", add.name)).await?;
        let certificate = issue::decided(rest, &name, PATIENCE).await?;
        let facts = authority::read_certificate(&certificate)?;
        let Some(at) = revoked.filter(|at| revocation::issued(facts.not_before) <= at.as_second()) else {
            break (certificate, made.key_pem, facts);
        };
        // Within the same second, or by a server whose clock is behind the one that took back.
        tries += 1;
        if tries == TRIES {
            bail!(
                "{} was revoked at {at:.0}, and the cluster's clocks aren't past that yet: try again later",
                add.name
            );
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    bind(rest, add, &facts).await?;
    let server = add.server.clone().unwrap_or(cluster.server);
    let config = Kubeconfig::with_certificate(&server, &cluster.ca_pem, &add.name, &certificate, &key);
    match &add.output {
        Some(file) => keelson_pki::files::write_secret(file, config.to_yaml().as_bytes())?,
        None => print!("{}", config.to_yaml()),
    }
    Ok(())
}

async fn bind(rest: &Rest, add: &Add, facts: &CertFacts) -> anyhow::Result<()> {
    let ends = k8s_openapi::jiff::Timestamp::from_second(facts.not_after)?;
    let noted = [
        (EXPIRES, format!("{ends:.0}")),
        (ISSUED, revocation::issued(facts.not_before).to_string()),
    ];
    let metadata = ObjectMeta {
        // A colon is in no name of a user: of two users and roles no two have one binding.
        name: Some(format!("keelson-user:{}:{}", add.name, add.role.name())),
        namespace: add.namespace.clone(),
        labels: Some(BTreeMap::from([(LABEL.to_string(), add.name.clone())])),
        annotations: Some(
            noted
                .iter()
                .map(|(key, value)| (key.to_string(), value.clone()))
                .collect(),
        ),
        ..ObjectMeta::default()
    };
    let role_ref = RoleRef {
        api_group: Some(RBAC.into()),
        kind: "ClusterRole".into(),
        name: add.role.name().into(),
    };
    let subjects = Some(vec![Subject {
        api_group: Some(RBAC.into()),
        kind: "User".into(),
        name: add.name.clone(),
        namespace: None,
    }]);
    let note = |live: &mut ObjectMeta| {
        let annotations = live.annotations.get_or_insert_default();
        let mut changed = false;
        for (key, value) in &noted {
            changed |= annotations.insert((*key).into(), value.clone()).as_ref() != Some(value);
        }
        changed
    };
    let result = match &add.namespace {
        Some(_) => {
            let wanted = RoleBinding {
                metadata,
                role_ref,
                subjects,
            };
            let bindings = Objects::<RoleBinding>::new(rest);
            bindings
                .create_or_update(&wanted, |live| note(&mut live.metadata))
                .await
                .map(|live| live.role_ref == wanted.role_ref && live.subjects == wanted.subjects)
        }
        None => {
            let wanted = ClusterRoleBinding {
                metadata,
                role_ref,
                subjects,
            };
            let bindings = Objects::<ClusterRoleBinding>::new(rest);
            bindings
                .create_or_update(&wanted, |live| note(&mut live.metadata))
                .await
                .map(|live| live.role_ref == wanted.role_ref && live.subjects == wanted.subjects)
        }
    };
    match result {
        Ok(true) => Ok(()),
        Ok(false) => bail!(
            "the binding keelson-user:{}:{} gives something else to somebody else: remove it first",
            add.name,
            add.role.name()
        ),
        Err(error) => Err(error).context("the user's binding"),
    }
}

async fn found(rest: &Rest, selector: &str) -> anyhow::Result<(Vec<ClusterRoleBinding>, Vec<RoleBinding>)> {
    let everywhere = Objects::<ClusterRoleBinding>::new(rest).list("", selector, "").await;
    let somewhere = Objects::<RoleBinding>::new(rest).list("", selector, "").await;
    Ok((
        everywhere.context("the bindings can't be listed")?,
        somewhere.context("the bindings can't be listed")?,
    ))
}

async fn list(rest: &Rest) -> anyhow::Result<()> {
    let (everywhere, somewhere) = found(rest, LABEL).await?;
    let revoked = revoke::list(rest).await?;
    let now = k8s_openapi::jiff::Timestamp::now();
    println!(
        "{:<20} {:<14} {:<16} {:<22} STATE",
        "USER", "ROLE", "NAMESPACE", "CERTIFICATE ENDS"
    );
    let row = |meta: &ObjectMeta, role: &RoleRef| {
        println!(
            "{:<20} {:<14} {:<16} {:<22} {}",
            noted(&meta.labels, LABEL),
            role.name,
            meta.namespace.as_deref().unwrap_or("<all>"),
            noted(&meta.annotations, EXPIRES),
            state(meta, &revoked, now)
        );
    };
    everywhere.iter().for_each(|b| row(&b.metadata, &b.role_ref));
    somewhere.iter().for_each(|b| row(&b.metadata, &b.role_ref));
    Ok(())
}

/// Certificates that were made for users, the latest of each binding.
pub async fn certificates(rest: &Rest) -> anyhow::Result<Vec<User>> {
    let (everywhere, somewhere) = found(rest, LABEL).await?;
    let each = everywhere
        .iter()
        .map(|b| &b.metadata)
        .chain(somewhere.iter().map(|b| &b.metadata));
    let made = each.filter_map(|meta| {
        let ends: k8s_openapi::jiff::Timestamp = noted(&meta.annotations, EXPIRES).parse().ok()?;
        Some(User {
            name: noted(&meta.labels, LABEL).to_string(),
            // Of a program of before that noted nothing: before all.
            issued: issued(meta).unwrap_or_default(),
            ends: ends.as_second(),
        })
    });
    // Of one that was made for several bindings the latest counts: it has been made since.
    let mut all: Vec<User> = Vec::new();
    for user in made {
        match all.iter_mut().find(|other| other.name == user.name) {
            Some(other) if other.issued < user.issued => *other = user,
            Some(_) => {}
            None => all.push(user),
        }
    }
    Ok(all)
}

fn noted<'a>(map: &'a Option<BTreeMap<String, String>>, key: &str) -> &'a str {
    map.as_ref().and_then(|m| m.get(key)).map_or("", String::as_str)
}

/// When the certificate was issued that a binding was last made with.
fn issued(meta: &ObjectMeta) -> Option<i64> {
    noted(&meta.annotations, ISSUED).parse().ok()
}

fn state(meta: &ObjectMeta, revoked: &Table, now: k8s_openapi::jiff::Timestamp) -> String {
    let shown = revocation::Credential {
        name: noted(&meta.labels, LABEL),
        issued: issued(meta),
        ..revocation::Credential::default()
    };
    let ends = noted(&meta.annotations, EXPIRES).parse::<k8s_openapi::jiff::Timestamp>();
    match (revoked.judge(&shown), revoked.of_name(shown.name)) {
        (Some(_), Some(at)) => format!("revoked at {at:.0}"),
        _ if ends.is_ok_and(|ends| ends <= now) => "ended".into(),
        _ => "good".into(),
    }
}

async fn revoke(rest: &Rest, asked: Revoke) -> anyhow::Result<()> {
    if !asked.force {
        let me = revoke::myself(rest).await?;
        if asked.names.contains(&me) {
            bail!("{me} is the name that you go by: do it as somebody else, or with --force");
        }
        let bindings = Objects::<ClusterRoleBinding>::new(rest).list("", "", "").await;
        let bindings = bindings.context("the bindings can't be listed")?;
        let revoked = revoke::list(rest).await?;
        let left = revoke::administrators_without(&asked.names, &bindings, &revoked, |b| issued(&b.metadata));
        if left.is_empty() {
            bail!("nobody would be left who may administer the cluster: add somebody first, or give --force");
        }
    }
    for name in &asked.names {
        let record = Record {
            reason: asked.reason.clone().unwrap_or_default(),
            ..Record::of_name(name, k8s_openapi::jiff::Timestamp::now())
        };
        let at = revoke::add(rest, &record).await?.of_name(name);
        let at = at.map(|at| format!(" until {at:.0}")).unwrap_or_default();
        println!("what was issued to {name}{at} is revoked");
        if let Some(node) = name.strip_prefix("system:node:") {
            println!(
                "whoever knows a join token that is still good can ask for another certificate: keelson token list"
            );
            println!("kubectl delete node {node} lets its pods start elsewhere");
        }
        if name.starts_with("system:serviceaccount:") {
            println!("pods of this account go on when they are made anew: they have tokens from before");
        }
    }
    Ok(())
}

async fn remove(rest: &Rest, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        check(name)?;
        let (everywhere, somewhere) = found(rest, &format!("{LABEL}={name}")).await?;
        if everywhere.is_empty() && somewhere.is_empty() {
            bail!("there is no user {name} (keelson user ls)");
        }
        let options = delete_options(None, None, None);
        for binding in &everywhere {
            let bindings = Objects::<ClusterRoleBinding>::new(rest);
            bindings
                .delete("", binding.name(), &options)
                .await
                .context("removing a binding")?;
        }
        for binding in &somewhere {
            let namespace = binding.metadata.namespace.as_deref().unwrap_or_default();
            let bindings = Objects::<RoleBinding>::new(rest);
            bindings
                .delete(namespace, binding.name(), &options)
                .await
                .context("removing a binding")?;
        }
        println!("user {name} removed: {} bindings", everywhere.len() + somewhere.len());
        println!(
            "its certificate proves its name until it ends or is revoked (keelson user revoke {name}); bindings made otherwise still hold"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_times_are_checked() {
        assert!(check("ana").is_ok() && check("ana.b-2").is_ok());
        for bad in ["", "Ana", "-a", "a-", "system:masters", "a/b", &"a".repeat(51)] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert_eq!(expiry("90d"), Ok(Duration::from_secs(90 * 24 * 3600)));
        for bad in ["5m", "1y", "d", "99999999d"] {
            assert!(expiry(bad).is_err(), "{bad}");
        }
    }
}
