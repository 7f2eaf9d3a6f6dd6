//! What `keelson registry` is told, and what can't be honoured of it.

use crate::components::LogOptions;
use crate::components::front::secure;
use crate::sizes::size;
use anyhow::{Context, bail, ensure};
use clap::Args;
use keelson_api::duration::length;
use keelson_distribution::{Bounds, Collect, Settings, Upstream};
use keelson_oci::registries::Registries;
use keelson_pki::verify::Roots;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Directory that images are kept in
    #[arg(long, value_name = "DIR", default_value = "/var/lib/keelson/registry")]
    pub dir: PathBuf,
    /// Where the registry is served
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:5000")]
    pub listen: SocketAddr,
    /// Where the API server is that says who asks and what they may do; its user needs the ClusterRole system:auth-delegator
    #[arg(long, value_name = "FILE", required_unless_present = "without_authentication")]
    pub kubeconfig: Option<PathBuf>,
    /// Everybody may do everything; on addresses of this machine alone
    #[arg(long, conflicts_with_all = ["kubeconfig", "anonymous_pull", "token_realm", "client_ca_file"])]
    pub without_authentication: bool,
    /// Who shows nothing may pull
    #[arg(long)]
    pub anonymous_pull: bool,
    /// Authorities of client certificates [default: those that the cluster names]
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Address of this registry's /token as clients reach it, for clients that take tokens only from a token service
    #[arg(long, value_name = "URL")]
    pub token_realm: Option<String>,
    /// Certificate by which this registry is known; within ten minutes of a change it is read again
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// On a server's machine, its data directory: the certificate is made by the cluster's authority, for --tls-name
    #[arg(long, value_name = "DIR", conflicts_with = "tls_cert_file", requires = "tls_name")]
    pub data_dir: Option<PathBuf>,
    /// Names and addresses by which clients reach this registry
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "data_dir")]
    pub tls_name: Vec<String>,
    /// Serve without TLS; on addresses of this machine alone
    #[arg(long, conflicts_with_all = ["tls_cert_file", "data_dir"])]
    pub plain_http: bool,
    /// Bytes that may be kept in all, such as 100Gi [default: no bound but the disk's]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub quota: Option<u64>,
    /// Bytes that one repository may name [default: no bound]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub repository_quota: Option<u64>,
    /// Bytes of the largest blob
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "64Gi")]
    pub max_blob: u64,
    /// Uploads at a time
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_uploads: usize,
    /// An upload that nothing comes to for so long ends
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "6h")]
    pub upload_expiry: Duration,
    /// How often blobs that no manifest names are looked for and removed
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "1h")]
    pub collect_every: Duration,
    /// What was pushed or asked for within this stays, named or not; longer than any push takes
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "24h")]
    pub collect_grace: Duration,
    /// Manifests go that no tag or index stands for and nobody asked for within this [default: they stay]
    #[arg(long, value_name = "DURATION", value_parser = length)]
    pub collect_untagged: Option<Duration>,
    /// Registries behind: images of theirs are fetched when they are asked for, and kept; docker.io, or NAME=HOST:PORT
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub upstream: Vec<String>,
    /// What came from them goes when nobody asked for it within this
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "168h")]
    pub upstream_keep: Duration,
    /// Who they are asked as, and by which mirrors: a file of the form that nodes have
    #[arg(long, value_name = "FILE", requires = "upstream")]
    pub registries: Option<PathBuf>,
    /// Where health and metrics are told; port 0: nowhere
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:5001")]
    pub metrics_bind_address: SocketAddr,
    #[command(flatten)]
    pub log: LogOptions,
}

/// Shorter ones end pushes that go on; and no oftener is anything looked for.
const SHORTEST: Duration = Duration::from_secs(60);

impl Options {
    pub fn check(&self) -> anyhow::Result<()> {
        let here = self.listen.ip().is_loopback();
        if self.without_authentication && !here {
            bail!(
                "--without-authentication lets everybody in who reaches {}: give --kubeconfig, or listen on 127.0.0.1",
                self.listen
            );
        }
        if self.plain_http && !here {
            bail!(
                "--plain-http shows tokens to everybody between: give a certificate, or listen on 127.0.0.1 instead of {}",
                self.listen
            );
        }
        if !self.plain_http && self.tls_cert_file.is_none() && self.data_dir.is_none() {
            bail!(
                "which certificate? --tls-cert-file with --tls-private-key-file, or on a server's machine --data-dir with --tls-name; \
                 --plain-http on 127.0.0.1"
            );
        }
        if let Some(realm) = &self.token_realm {
            let scheme = if self.plain_http { "http://" } else { "https://" };
            let sound = realm.starts_with(scheme) && realm.ends_with("/token") && !realm.contains(['"', '\\', ' ']);
            ensure!(
                sound,
                "--token-realm is the address of this registry and /token: {scheme}HOST:PORT/token"
            );
        }
        ensure!(
            self.collect_grace >= SHORTEST,
            "--collect-grace of less than a minute would take from pushes what they count on"
        );
        ensure!(
            self.collect_every >= SHORTEST,
            "--collect-every is a minute at least: no oftener is anything looked for"
        );
        ensure!(
            self.upload_expiry >= SHORTEST,
            "--upload-expiry of less than a minute would end uploads that go on"
        );
        ensure!(self.max_uploads > 0, "--max-uploads 0 lets nobody push");
        Ok(())
    }

    pub fn settings(&self) -> anyhow::Result<Settings> {
        let upstreams = self
            .upstream
            .iter()
            .map(|text| Upstream::parse(text).context("--upstream"));
        let registries = self
            .registries
            .as_deref()
            .map_or(Ok(Registries::default()), Registries::load);
        Ok(Settings {
            directory: crate::config::absolute(self.dir.clone())?,
            bounds: Bounds {
                whole: self.quota,
                repository: self.repository_quota,
                blob: self.max_blob,
                uploads: self.max_uploads,
                upload_idle: self.upload_expiry,
            },
            collect: Collect {
                grace: self.collect_grace,
                untagged: self.collect_untagged,
            },
            collect_every: self.collect_every,
            upstreams: upstreams.collect::<anyhow::Result<_>>()?,
            registries: registries.context("--registries")?,
            upstream_keep: self.upstream_keep,
        })
    }
}

pub fn roots(file: &Path) -> anyhow::Result<Roots> {
    secure::roots(&secure::read(file)?).with_context(|| format!("--client-ca-file {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::components::options_of;

    fn of(line: &str) -> Result<(), String> {
        let options: Options = options_of(line).map_err(|e| e.to_string())?;
        options
            .check()
            .and_then(|()| options.settings().map(drop))
            .map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn what_would_be_open_to_all_is_refused() {
        let cert = "--tls-cert-file c --tls-private-key-file k";
        of("--without-authentication --plain-http").unwrap();
        of(&format!(
            "--kubeconfig k --listen 0.0.0.0:5000 {cert} --quota 10Gi --upstream docker.io,corp=r:5000"
        ))
        .unwrap();
        of("--kubeconfig k --data-dir d --tls-name registry.example,10.0.0.1 --collect-untagged 720h").unwrap();
        for (line, why) in [
            ("--plain-http", "--kubeconfig"),
            ("--without-authentication", "which certificate"),
            (
                &format!("--without-authentication --listen 0.0.0.0:5000 {cert}"),
                "lets everybody in",
            ),
            ("--kubeconfig k --plain-http --listen 10.0.0.1:5000", "shows tokens"),
            (
                &format!("--kubeconfig k {cert} --token-realm http://x/token"),
                "--token-realm",
            ),
            (&format!("--kubeconfig k {cert} --collect-grace 1s"), "--collect-grace"),
            (&format!("--kubeconfig k {cert} --collect-every 1s"), "--collect-every"),
            (&format!("--kubeconfig k {cert} --upload-expiry 1s"), "--upload-expiry"),
            (&format!("--kubeconfig k {cert} --upstream r:5000"), "--upstream"),
            ("--kubeconfig k --data-dir d", "--tls-name"),
            ("--kubeconfig k --plain-http --quota 1GB", "Gi"),
            (
                "--kubeconfig k --plain-http --anonymous-pull --without-authentication",
                "cannot be used",
            ),
        ] {
            let refused = of(line).expect_err(line);
            assert!(refused.contains(why), "{line}: {refused}");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(length("24h"), Ok(Duration::from_secs(86400)));
        assert!(length("-1h").is_err() && length("x").is_err());
    }
}
