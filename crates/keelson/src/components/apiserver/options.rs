//! `keelson apiserver`: kube-apiserver's options, under its names.
//!
//! Without `--client-ca-file` nobody is known by a certificate, and without `--etcd-servers` there is no store: upstream's server
//! doesn't start then either.

use super::{Api, bind, serving};
use crate::access::Access;
use crate::components::front::tls::TlsOptions;
use crate::components::front::{everywhere, secure};
use crate::components::upstream::{Apiserver, Others};
use crate::components::{Gates, LogOptions};
use crate::config::{Config, Options as ServerOptions};
use crate::process::Ended;
use crate::store::Opened;
use crate::supervise::Supervisor;
use crate::traces;
use crate::{families, process};
use anyhow::{Context, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use ipnet::IpNet;
use keelson_apiserver::CertificateFiles;
use keelson_apiserver::serve::tls::ServingCert;
use keelson_pki::authority::{Authority, CertSpec};
use keelson_pki::{San, ServiceAccountKeys, files};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Where the serving certificate is found or made, unless files are given.
const CERT_DIR: &str = "/var/run/kubernetes";

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// etcd servers (http://HOST:PORT or https://HOST:PORT) that keep the cluster's objects
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    etcd_servers: Vec<String>,
    /// Authority of the etcd servers' certificates [default: the machine's own list]
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// Certificate by which the etcd servers know this one
    #[arg(long, value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
    /// What all keys in etcd begin with [default: /registry]
    #[arg(long, value_name = "PREFIX")]
    etcd_prefix: Option<String>,
    /// After so long without an answer etcd counts as ill [default: 2s]
    #[arg(long, value_name = "DURATION")]
    etcd_healthcheck_timeout: Option<String>,
    /// How long the past is kept; 0: this server gives up nothing [default: 5m]
    #[arg(long, value_name = "DURATION")]
    etcd_compaction_interval: Option<String>,
    /// Address on which the API is served; 0.0.0.0 or ::, all of both families
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Port on which the API is served
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    secure_port: u16,
    /// Address by which others reach this server [default: --bind-address, or the source address of the default route]
    #[arg(long, value_name = "IP")]
    advertise_address: Option<IpAddr>,
    /// Ranges of service addresses, one or one a family
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', required = true)]
    service_cluster_ip_range: Vec<String>,
    /// Certificate by which this server is known [default: CERT_DIR/apiserver.crt]
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Key of that certificate [default: CERT_DIR/apiserver.key]
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Directory of the serving certificate, which is made there if there is none
    #[arg(long, value_name = "DIR", default_value = CERT_DIR)]
    cert_dir: PathBuf,
    /// Authorities of client certificates
    #[arg(long, value_name = "FILE")]
    client_ca_file: PathBuf,
    /// Keys (or their certificates) by which service accounts' tokens are taken, RSA or ECDSA; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    service_account_key_file: Vec<PathBuf>,
    /// Key that signs them: RSA of 2048 to 4096 bits, or ECDSA over P-256, P-384 or P-521
    #[arg(long, value_name = "FILE")]
    service_account_signing_key_file: PathBuf,
    /// Who issues them; may be given several times, those after the first are believed
    #[arg(long, value_name = "URL", required = true)]
    service_account_issuer: Vec<String>,
    /// Where others find the keys [default: this server's own address]
    #[arg(long, value_name = "URL")]
    service_account_jwks_uri: Option<String>,
    /// Certificate by which kubelets know this server
    #[arg(long, value_name = "FILE", requires = "kubelet_client_key")]
    kubelet_client_certificate: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "kubelet_client_certificate")]
    kubelet_client_key: Option<PathBuf>,
    /// Authority of kubelets' certificates [default: any is taken]
    #[arg(long, value_name = "FILE")]
    kubelet_certificate_authority: Option<PathBuf>,
    /// Authority of front proxies
    #[arg(long, value_name = "FILE")]
    requestheader_client_ca_file: Option<PathBuf>,
    /// Names of front proxies [default: any that the authority signed]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        requires = "requestheader_client_ca_file"
    )]
    requestheader_allowed_names: Vec<String>,
    /// Header with a user's name
    #[arg(long = "requestheader-username-headers", ignore_case = true, value_parser = PossibleValuesParser::new(["X-Remote-User"]))]
    _requestheader_username_headers: Option<String>,
    /// Header with a user's groups
    #[arg(long = "requestheader-group-headers", ignore_case = true, value_parser = PossibleValuesParser::new(["X-Remote-Group"]))]
    _requestheader_group_headers: Option<String>,
    /// What headers with more about a user begin with
    #[arg(long = "requestheader-extra-headers-prefix", ignore_case = true, value_parser = PossibleValuesParser::new(["X-Remote-Extra-"]))]
    _requestheader_extra_headers_prefix: Option<String>,
    /// Certificate by which extension servers know this one
    #[arg(long, value_name = "FILE", requires = "proxy_client_key_file")]
    proxy_client_cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "proxy_client_cert_file")]
    proxy_client_key_file: Option<PathBuf>,
    /// Privileged containers are a matter of PodSecurity here
    #[arg(long = "allow-privileged", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = PossibleValuesParser::new(["true"]))]
    _allow_privileged: Option<String>,
    /// Bootstrap tokens are always taken
    #[arg(long = "enable-bootstrap-token-auth", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = PossibleValuesParser::new(["true"]))]
    _enable_bootstrap_token_auth: Option<String>,
    /// YAML file that says which resources are sealed in the store, and how (EncryptionConfiguration)
    #[arg(long, value_name = "FILE")]
    encryption_provider_config: Option<PathBuf>,
    /// Follow that file
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    encryption_provider_config_automatic_reload: Option<bool>,
    /// Where the audit log is [default: there is none]
    #[arg(long, value_name = "FILE")]
    audit_log_path: Option<PathBuf>,
    /// YAML file with the audit policy, audit.k8s.io/v1
    #[arg(long, value_name = "FILE")]
    audit_policy_file: Option<PathBuf>,
    /// YAML file that says where traces are sent, and how many (TracingConfiguration)
    #[arg(long, value_name = "FILE")]
    tracing_config_file: Option<PathBuf>,
    /// Megabytes after which the audit log is put aside [default: 100]
    #[arg(long, value_name = "N")]
    audit_log_maxsize: Option<u64>,
    /// Audit logs put aside that are kept; 0: all [default: 9]
    #[arg(long, value_name = "N")]
    audit_log_maxbackup: Option<usize>,
    /// Days after which an audit log put aside is removed; 0: never [default: 0]
    #[arg(long, value_name = "N")]
    audit_log_maxage: Option<u32>,
    #[command(flatten)]
    serving: serving::Options,
    #[command(flatten)]
    tls: TlsOptions,
    #[command(flatten)]
    _others: Others<Apiserver>,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    _gates: Gates,
    #[command(flatten)]
    log: LogOptions,
}

impl Options {
    fn advertised(&self) -> anyhow::Result<IpAddr> {
        match (self.advertise_address, self.bind_address) {
            (Some(given), _) => Ok(given),
            (None, bound) if !bound.is_unspecified() => Ok(bound),
            (None, bound) => families::default_address(bound.is_ipv4()),
        }
    }

    fn service_ranges(&self) -> anyhow::Result<Vec<IpNet>> {
        families::ranges("--service-cluster-ip-range", &self.service_cluster_ip_range)
    }

    /// The same as options of a whole server, which decides what they mean.
    fn config(&self) -> anyhow::Result<Config> {
        let this = self.clone();
        let (ranges, advertised) = (self.service_ranges()?, self.advertised()?);
        let primary = ranges.first();
        let Some(primary) = primary.filter(|range| range.addr().is_ipv4() == advertised.is_ipv4()) else {
            anyhow::bail!(
                "the first --service-cluster-ip-range and --advertise-address {advertised} are of different families"
            );
        };
        let options = ServerOptions {
            data_dir: Some(this.cert_dir),
            node_ip: Some(vec![advertised.to_string()]),
            cluster_cidr: Some(vec![no_pods(*primary)?.to_string()]),
            bind_address: Some(this.bind_address),
            api_port: Some(this.secure_port),
            service_cidr: Some(vec![primary.to_string()]),
            encryption_provider_config: this.encryption_provider_config,
            encryption_provider_config_automatic_reload: this.encryption_provider_config_automatic_reload,
            audit_log_path: Some(this.audit_log_path.unwrap_or_else(|| "none".into())),
            audit_policy_file: this.audit_policy_file,
            audit_log_maxsize: this.audit_log_maxsize,
            audit_log_maxbackup: this.audit_log_maxbackup,
            audit_log_maxage: this.audit_log_maxage,
            tracing_config_file: this.tracing_config_file,
            access: this.access,
            etcd_servers: Some(this.etcd_servers),
            etcd_cafile: this.etcd_cafile,
            etcd_certfile: this.etcd_certfile,
            etcd_keyfile: this.etcd_keyfile,
            etcd_prefix: this.etcd_prefix,
            etcd_healthcheck_timeout: this.etcd_healthcheck_timeout,
            etcd_compaction_interval: this.etcd_compaction_interval,
            ..ServerOptions::default()
        };
        options.resolve()
    }

    fn api_config(&self, config: &Config) -> anyhow::Result<keelson_apiserver::Config> {
        let text = |path: &Option<PathBuf>| path.as_deref().map(secure::read).transpose();
        let pair = |cert, key| anyhow::Ok(text(cert)?.zip(text(key)?));
        let (issuer, former_issuers) = self
            .service_account_issuer
            .split_first()
            .context("--service-account-issuer")?;
        let mut seen = HashSet::new();
        for issuer in &self.service_account_issuer {
            ensure!(
                !issuer.is_empty() && seen.insert(issuer),
                "--service-account-issuer {issuer:?}: it is empty, or already specified"
            );
            let others = &config.access.authentication.trusted;
            ensure!(
                others.iter().all(|other| other.issuer.url != *issuer),
                "--service-account-issuer {issuer}: another issuer of tokens has this URL"
            );
            ensure!(
                issuer.starts_with("https://") || !issuer.contains(':'),
                "--service-account-issuer {issuer}: a URL begins with https://"
            );
        }
        let taken: Vec<String> = self
            .service_account_key_file
            .iter()
            .map(|f| secure::read(f))
            .collect::<Result<_, _>>()?;
        let keys = ServiceAccountKeys::with(&secure::read(&self.service_account_signing_key_file)?, &taken)
            .context("--service-account-signing-key-file, --service-account-key-file")?;
        let mut api = keelson_apiserver::Config {
            advertise_address: config.node_ip(),
            advertise_port: config.api_port,
            service_cidrs: self.service_ranges()?,
            api_audiences: match config.access.api_audiences.as_slice() {
                [] => self.service_account_issuer.clone(),
                given => given.to_vec(),
            },
            issuer: issuer.clone(),
            former_issuers: former_issuers.to_vec(),
            tls: self.tls.offer()?,
            client_ca_pem: secure::read(&self.client_ca_file)?,
            front_proxy_ca_pem: text(&self.requestheader_client_ca_file)?,
            front_proxy_client: pair(&self.proxy_client_cert_file, &self.proxy_client_key_file)?,
            front_proxy_names: self.requestheader_allowed_names.clone(),
            kubelet_client: pair(&self.kubelet_client_certificate, &self.kubelet_client_key)?,
            kubelet_ca_pem: text(&self.kubelet_certificate_authority)?,
            authentication: config.access.authentication.clone(),
            authorization: config.access.authorization.clone(),
            admission: config.access.admission.clone(),
            audit: config.audit.clone(),
            flags: Some(crate::flagz::of_this_process()),
            host: Some(crate::config::host_name()?),
            ..keelson_apiserver::Config::new(keys)
        };
        self.serving.apply(&mut api)?;
        let here = || format!("{}:{}", families::host(config.node_ip()), config.api_port);
        api.jwks_uri = self.service_account_jwks_uri.clone().unwrap_or_else(|| {
            let address = api.external_address().unwrap_or_else(here);
            format!("https://{address}/openid/v1/jwks")
        });
        Ok(api)
    }

    /// Files of certificates, which somebody else renews, count anew whenever they say something else.
    fn follow(&self, api: &Api, components: &mut Supervisor, cert: &Arc<ServingCert>) {
        let pair = |cert: &Option<PathBuf>, key: &Option<PathBuf>| cert.clone().zip(key.clone());
        let own = pair(&self.tls_cert_file, &self.tls_private_key_file);
        self.tls.follow(components, own.map(Into::into), cert);
        api.server.follow_certificates(CertificateFiles {
            client_ca: Some(self.client_ca_file.clone()),
            front_proxy_ca: self.requestheader_client_ca_file.clone(),
            kubelet_ca: self.kubelet_certificate_authority.clone(),
            kubelet_client: pair(&self.kubelet_client_certificate, &self.kubelet_client_key),
            front_proxy_client: pair(&self.proxy_client_cert_file, &self.proxy_client_key_file),
        });
    }

    /// The serving certificate: as given, as found, or made.
    fn certificate(&self, config: &Config) -> anyhow::Result<Arc<ServingCert>> {
        if let (Some(cert), Some(key)) = (&self.tls_cert_file, &self.tls_private_key_file) {
            let cert = self.tls.certificate(&secure::read(cert)?, &secure::read(key)?);
            return cert.context("--tls-cert-file, --tls-private-key-file");
        }
        let (cert, key) = (self.cert_dir.join("apiserver.crt"), self.cert_dir.join("apiserver.key"));
        if let (Some(cert), Some(key)) = (files::read(&cert)?, files::read(&key)?) {
            return self.tls.certificate(&cert, &key).context("--cert-dir");
        }
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
        ];
        let mut sans: Vec<San> = names.iter().map(|name| San::Dns((*name).into())).collect();
        sans.extend([San::Ip(config.node_ip()), San::Ip([127, 0, 0, 1].into())]);
        sans.extend(config.api_service_ips().into_iter().map(San::Ip));
        let own = Authority::generate("kube-apiserver-ca")?.issue(&CertSpec::server("kube-apiserver", sans))?;
        std::fs::create_dir_all(&self.cert_dir).with_context(|| format!("--cert-dir {}", self.cert_dir.display()))?;
        files::write_secret(&key, own.key_pem.as_bytes())?;
        files::write_public(&cert, own.cert_pem.as_bytes())?;
        self.tls.certificate(&own.cert_pem, &own.key_pem)
    }
}

/// What a whole server's options want where this one has no pods and knows no range of theirs: one of the services' family, apart
/// from them. Nothing is made of it.
fn no_pods(services: IpNet) -> anyhow::Result<IpNet> {
    let ranges = match services {
        IpNet::V4(_) => ["10.244.0.0/16", "192.168.0.0/16"],
        IpNet::V6(_) => ["fd00:244::/48", "fd00:245::/48"],
    };
    let mut ranges = ranges.iter().filter_map(|range| range.parse::<IpNet>().ok());
    let apart = ranges.find(|range| !range.contains(&services) && !services.contains(range));
    apart.with_context(|| format!("--service-cluster-ip-range {services} is too large"))
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let config = options.config()?;
    let (api_config, cert) = (options.api_config(&config)?, options.certificate(&config)?);
    let delay = options.serving.shutdown_delay()?;
    process::run(&options.log.resolve()?, None, async |mut stopping| {
        let began = std::time::Instant::now();
        let watched = crate::watchdog::wanted()?;
        let starting = async {
            let address = everywhere(SocketAddr::new(config.bind_address, config.api_port));
            let socket = bind(address, "--secure-port").await?;
            let store = Opened::open(&config.store).await?;
            let sealing = crate::secrets::open(&config, store.store()).await?;
            let api_config = keelson_apiserver::Config {
                sealing: Some(sealing.clone()),
                tracer: traces::of(config.tracing.as_ref(), "apiserver", &config.node_name)?,
                ..api_config
            };
            let api = Api::start(api_config, config.store.seen(sealing.store()), cert.clone(), socket)?;
            let mut beside = Supervisor::default();
            options.follow(&api, &mut beside, &cert);
            if let Some(interval) = config.compaction {
                crate::assemble::compaction(&mut beside, store.store(), interval);
            }
            anyhow::Ok((api, store, beside))
        };
        let (api, store, beside) = tokio::select! {
            started = starting => started?,
            () = stopping.wait() => return Ok(Ended::Stopped),
        };
        let failure = tokio::select! {
            () = stopping.wait() => None,
            failure = api.failed() => Some(failure),
            () = async {
                api.server.ready().await;
                tracing::info!(after = ?began.elapsed(), "the API is ready");
                crate::notify::ready();
                crate::watchdog::start(watched, Vec::new);
                std::future::pending().await
            } => None,
        };
        crate::notify::stopping();
        api.server.leave().await;
        if failure.is_none() && !delay.is_zero() {
            api.server.announce_end();
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                // Who says it twice doesn't want to wait.
                () = stopping.wait() => {}
            }
        }
        beside.stop().await;
        api.stop().await;
        store.close().await;
        failure.map_or(Ok(Ended::Stopped), Err)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arguments, Command, words_of};
    use clap::Parser;
    use std::path::Path;

    fn parse(name: &str, line: &str) -> anyhow::Result<Options> {
        let words = std::iter::once(name).chain(line.split_whitespace()).map(Into::into);
        match Arguments::try_parse_from(words_of(words.collect()))?.command {
            Command::Apiserver(options) => Ok(*options),
            _ => anyhow::bail!("another command"),
        }
    }

    /// As controller-runtime's envtest makes the files, and starts the program.
    fn envtest(dir: &Path) -> String {
        let own = Authority::generate("ca").unwrap();
        std::fs::create_dir_all(dir).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
        write("client-cert-auth-ca.crt", own.cert_pem());
        write("sa-signer.crt", own.cert_pem());
        write("sa-signer.key", &own.key_pem());
        let d = dir.display();
        format!(
            "--allow-privileged=true --authorization-mode=RBAC --bind-address=127.0.0.1 --cert-dir={d} \
             --client-ca-file={d}/client-cert-auth-ca.crt --disable-admission-plugins=ServiceAccount --etcd-servers=http://127.0.0.1:1 \
             --secure-port=45999 --service-account-issuer=https://127.0.0.1:45999/ --service-account-key-file={d}/sa-signer.crt \
             --service-account-signing-key-file={d}/sa-signer.key --service-cluster-ip-range=10.0.0.0/24"
        )
    }

    #[test]
    fn called_as_kube_apiserver_it_takes_what_envtest_passes() {
        let dir = std::env::temp_dir().join(format!("keelson-envtest-{}", std::process::id()));
        let line = envtest(&dir);
        let options = parse("/assets/kube-apiserver", &line).unwrap();
        let config = options.config().unwrap();
        assert_eq!(
            (config.api_port, config.node_ip()),
            (45999, IpAddr::from([127, 0, 0, 1]))
        );
        let api = options.api_config(&config).unwrap();
        assert_eq!(api.issuer, "https://127.0.0.1:45999/");
        assert_eq!(api.jwks_uri, "https://127.0.0.1:45999/openid/v1/jwks");
        let outside = parse("kube-apiserver", &format!("{line} --external-hostname=fd00::1")).unwrap();
        let told = outside.api_config(&config).unwrap().jwks_uri;
        assert_eq!(told, "https://[fd00::1]:45999/openid/v1/jwks");
        assert_eq!(api.kubernetes_service_ip().to_string(), "10.0.0.1");
        assert_eq!(api.service_account_keys.jwks()["keys"].as_array().unwrap().len(), 1);
        assert!(api.audit.is_none());
        options.certificate(&config).unwrap();
        assert!(dir.join("apiserver.crt").exists());
        // What sends traces needs a runtime, which there isn't yet.
        let tracing = dir.join("tracing.yaml");
        let file = "{apiVersion: apiserver.config.k8s.io/v1, kind: TracingConfiguration, endpoint: 127.0.0.1:1}";
        std::fs::write(&tracing, file).unwrap();
        let traced = parse(
            "kube-apiserver",
            &format!("{line} --tracing-config-file={}", tracing.display()),
        )
        .unwrap();
        let config = traced.config().unwrap();
        assert!(config.tracing.is_some());
        traced.api_config(&config).unwrap();
        for services in ["10.244.0.0/16", "10.244.3.0/24", "10.240.0.0/12", "192.168.0.0/16"] {
            let line = line.replace("10.0.0.0/24", services);
            let config = parse("kube-apiserver", &line).unwrap().config();
            assert!(config.is_ok(), "{services}: {:#}", config.err().unwrap());
        }
        for (more, named) in [
            ("--insecure-port=8080", "--insecure-port"),
            ("--watch-cache=false", "--watch-cache"),
            ("--egress-selector-config-file=f", "--egress-selector-config-file"),
            ("--tls-min-version=VersionTLS10", "VersionTLS10"),
            ("--allow-privileged=false", "--allow-privileged"),
            ("--enable-bootstrap-token-auth=false", "--enable-bootstrap-token-auth"),
            ("--tls-cert-file=c", "--tls-private-key-file"),
            ("--service-account-issuer=", "--service-account-issuer"),
            ("--service-account-issuer=https://127.0.0.1:45999/", "already specified"),
            (
                "--oidc-issuer-url=https://127.0.0.1:45999/ --oidc-client-id=c",
                "another issuer of tokens",
            ),
        ] {
            let line = line.replace("--allow-privileged=true", "");
            let refused = parse("kube-apiserver", &format!("{line} {more}"))
                .and_then(|options| options.api_config(&options.config()?))
                .err()
                .unwrap_or_else(|| panic!("{more} is taken"));
            let refused = format!("{refused:#}");
            assert!(refused.contains(named), "{more}: {refused}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
