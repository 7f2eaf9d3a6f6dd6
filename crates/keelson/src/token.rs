//! `keelson token create`: a bootstrap token, kept as a Secret, with the hash of the cluster's authority.

use crate::client::{block_on, kubeconfig};
use anyhow::Context;
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use keelson_pki::{BootstrapToken, JoinToken, Kubeconfig};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a token with which a machine joins
    Create {
        /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// Hours for which the token is good
        #[arg(long, default_value_t = 24, value_name = "HOURS")]
        ttl: u32,
    },
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let Command::Create { kubeconfig: path, ttl } = options.command;
    let path = kubeconfig(path);
    let ca = Kubeconfig::read(&path)?.ca_pem;
    let ca_hash = keelson_pki::authority::fingerprint(&ca).context("the kubeconfig names no certificate authority")?;
    let token = BootstrapToken::generate();
    block_on(async {
        let client = keelson_client::from_kubeconfig(&path, None).await?;
        let secrets: Objects<Secret> = Objects::new(&Rest::new(client, "keelson-token"));
        secrets
            .create(&secret(&token, ttl))
            .await
            .context("the token could not be stored")?;
        println!("{}", JoinToken { token, ca_hash });
        Ok(ExitCode::SUCCESS)
    })
}

fn secret(token: &BootstrapToken, hours: u32) -> Secret {
    let now = k8s_openapi::jiff::Timestamp::now();
    let expires = now
        .saturating_add(k8s_openapi::jiff::SignedDuration::from_hours(hours.into()))
        .unwrap_or(now);
    let data = [
        ("token-id", token.id.clone()),
        ("token-secret", token.secret.clone()),
        ("expiration", format!("{expires:.0}")),
        ("usage-bootstrap-authentication", "true".into()),
        ("usage-bootstrap-signing", "true".into()),
        (
            "auth-extra-groups",
            "system:bootstrappers:keelson:default-node-token".into(),
        ),
    ];
    Secret {
        metadata: ObjectMeta {
            name: Some(token.secret_name()),
            namespace: Some("kube-system".into()),
            ..ObjectMeta::default()
        },
        type_: Some("bootstrap.kubernetes.io/token".into()),
        string_data: Some(data.map(|(k, v)| (k.to_string(), v)).into()),
        ..Secret::default()
    }
}
