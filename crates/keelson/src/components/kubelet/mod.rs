//! The kubelet. Alone it reaches its runtime by CRI's socket, whoever's that is.

mod flags;

use super::LogOptions;
use super::front::{Front, everywhere, plain};
use super::reach::Reach;
use crate::supervise::Supervisor;
use crate::{config, families, kubelet_options, traces};
use anyhow::{Context, ensure};
use clap::Args;
use flags::Flags;
use keelson_client::Telling;
use keelson_cri::CriClients;
use keelson_kubelet::configuration::Document;
use keelson_kubelet::server::identity::Files;
use keelson_kubelet::{Alone, Config, ServingTls};
use keelson_measure::Measures;
use keelson_pki::San;
use keelson_pki::authority::{Authority, CertSpec};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

pub fn spawn(
    components: &mut Supervisor,
    client: kube::Client,
    runtime: CriClients,
    mut settings: Config,
) -> anyhow::Result<()> {
    settings.tracer = traces::tracer(components, settings.tracing.as_ref(), "kubelet", &settings.node_name)?;
    components.spawn("kubelet", move |stop| {
        keelson_kubelet::run(client.clone(), runtime.clone(), settings.clone(), stop)
    });
    Ok(())
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    reach: Reach,
    /// YAML file with a KubeletConfiguration, kubelet.config.k8s.io/v1beta1; flags go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of further ones: those that end in .conf are merged over it, in the order of their names
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// This node's name [default: the host name]
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// This node's addresses, one or one a family [default: the source address of the default route]
    #[arg(long, value_name = "IPS", value_delimiter = ',')]
    node_ip: Vec<String>,
    /// Directory of pods and volumes
    #[arg(long, value_name = "DIR", default_value = "/var/lib/keelson-kubelet")]
    root_dir: PathBuf,
    /// Labels that this node is given when it registers
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    node_labels: Vec<String>,
    /// File, or directory of files, with a CredentialProviderConfig: programs that have credentials for images
    #[arg(long, value_name = "PATH", requires = "image_credential_provider_bin_dir")]
    image_credential_provider_config: Option<String>,
    /// Directory of those programs
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    image_credential_provider_bin_dir: Option<String>,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    log: LogOptions,
}

impl Options {
    /// What the kubelet is told.
    fn settings(self) -> anyhow::Result<(Config, Alone)> {
        let mut document = Document::read(self.config.as_deref(), self.config_dir.as_deref())?;
        self.flags.add_to(&mut document)?;
        for (flag, said) in [
            (
                "image-credential-provider-config",
                &self.image_credential_provider_config,
            ),
            (
                "image-credential-provider-bin-dir",
                &self.image_credential_provider_bin_dir,
            ),
        ] {
            if let Some(text) = said {
                document.flag(flag, text).map_err(anyhow::Error::msg)?;
            }
        }
        let mut settings = Config {
            alone: Some(Alone::default()),
            ..Config::default()
        };
        document.apply(&mut settings).map_err(anyhow::Error::msg)?;
        let alone = settings.alone.clone().unwrap_or_default();
        ensure!(
            !alone.runtime.is_empty(),
            "--container-runtime-endpoint, or containerRuntimeEndpoint in the file, says where the runtime is: give it"
        );
        let node_name = match self.hostname_override {
            Some(name) => name.trim().to_lowercase(),
            None => config::host_name()?,
        };
        let node_ips = match self.node_ip.as_slice() {
            [] => vec![families::default_address(true)?],
            given => families::addresses("--node-ip", given)?,
        };
        let settings = Config {
            tls: Some(serving(&alone, &node_name, &node_ips)?),
            flags: Some(crate::flagz::of_this_process()),
            node_ips: node_ips.iter().map(IpAddr::to_string).collect(),
            hostname: node_name.clone(),
            node_name,
            node_labels: kubelet_options::labels(self.node_labels.iter().map(String::as_str))?,
            root_dir: config::absolute(self.root_dir)?,
            ..settings
        };
        Ok((settings, alone))
    }
}

/// By which this kubelet is known, and whose certificates it knows.
fn serving(alone: &Alone, node: &str, ips: &[IpAddr]) -> anyhow::Result<ServingTls> {
    ensure!(
        alone.cert.is_none() == alone.key.is_none(),
        "--tls-cert-file and --tls-private-key-file belong together: give both or neither"
    );
    let files = Files {
        pair: alone.cert.clone().zip(alone.key.clone()),
        client_ca: alone.client_ca.clone(),
    };
    if files.pair.is_some() {
        return ServingTls::of_files(files, None).context("--tls-cert-file, --client-ca-file");
    }
    let sans = std::iter::once(San::Dns(node.to_string()))
        .chain(ips.iter().copied().map(San::Ip))
        .collect();
    let own = Authority::generate(&format!("{node}-ca"))?.issue(&CertSpec::server(node, sans))?;
    let own = ServingTls::fixed(own.cert_pem.as_bytes(), own.key_pem.as_bytes(), Vec::new())?;
    match files.client_ca {
        Some(_) => ServingTls::of_files(files, Some(own)).context("--client-ca-file"),
        None => Ok(own),
    }
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let (mut log, reach) = (options.log.clone(), options.reach.clone());
    let (mut settings, alone) = options.settings()?;
    log.or_logging(alone.logging.as_ref());
    settings.listen = settings.listen.map(everywhere);
    let root_dir = settings.root_dir.clone();
    super::run(&log, Some(&root_dir), async || {
        let client = reach.client().await?;
        settings.telling = Some(Telling::new(&Measures::default(), &reach.host().await?));
        let runtime = CriClients::connect(&alone.runtime).await?;
        let mut components = Supervisor::default();
        let front = Front::of(components.health(), &["/healthz"]);
        plain::start(&mut components, "healthz", alone.health, front).await?;
        spawn(&mut components, client, runtime, settings)?;
        Ok(components)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::components::options_of;
    use crate::logging::Form;

    fn settings(line: &str) -> anyhow::Result<(Config, Alone)> {
        options_of::<Options>(&format!("--kubeconfig k --node-ip 10.0.0.1 {line}"))?.settings()
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_what_neither_says_is_upstreams() {
        let path = std::env::temp_dir().join(format!("keelson-kubelet-file-{}", std::process::id()));
        let with = |more: &str| {
            let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{more}");
            std::fs::write(&path, text).unwrap();
            settings(&format!("--config {} --port 11250", path.display()))
        };
        let (config, alone) = with(
            "containerRuntimeEndpoint: unix:///r.sock\nport: 10251\nhealthzPort: 0\nclusterDNS: [10.96.0.10]\nmaxPods: 20\n\
             authentication: {anonymous: {enabled: false}, webhook: {cacheTTL: 0s, enabled: true}}\n\
             authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s}}\nsyncFrequency: 0s\n\
             evictionHard: {memory.available: 200Mi}\ncgroupRoot: /k\npodLogsDir: /logs\n",
        )
        .unwrap();
        assert_eq!(
            (config.port, alone.runtime.as_str(), alone.health.port()),
            (11250, "unix:///r.sock", 0)
        );
        assert_eq!(config.listen.unwrap().to_string(), "0.0.0.0:11250");
        assert_eq!((config.max_pods, config.cluster_dns[0].as_str()), (20, "10.96.0.10"));
        assert_eq!(
            (config.cgroup_root.as_str(), config.pod_logs_dir),
            ("/k", "/logs".into())
        );
        let (_, alone) =
            with("containerRuntimeEndpoint: unix:///r\nlogging: {format: json, verbosity: 4, flushFrequency: 10s}\n")
                .unwrap();
        let by_file = |line: &str| {
            let mut log = options_of::<LogOptions>(line).unwrap();
            log.or_logging(alone.logging.as_ref());
            let log = log.resolve().unwrap();
            (log.filter, log.form)
        };
        assert_eq!(by_file(""), ("debug".into(), Form::Klog));
        assert_eq!(by_file("--v=0 --logging-format=text"), ("info".into(), Form::Text));
        assert_eq!(config.eviction.hard.len(), 1, "what isn't named isn't looked at");
        for (wrong, named) in [
            (
                "containerRuntimeEndpoint: unix:///r\ncgroupDriver: systemd\n",
                "cgroupDriver",
            ),
            (
                "containerRuntimeEndpoint: unix:///r\nserverTLSBootstrap: true\n",
                "serverTLSBootstrap",
            ),
            (
                "containerRuntimeEndpoint: unix:///r\nauthorization: {mode: AlwaysAllow}\n",
                "mode AlwaysAllow",
            ),
            (
                "containerRuntimeEndpoint: unix:///r\ntlsCertFile: /c\n",
                "--tls-private-key-file",
            ),
            ("containerRuntimeEndpoint: tcp://r\n", "unix:///"),
            ("port: 10250\n", "--container-runtime-endpoint"),
        ] {
            let refused = format!("{:#}", with(wrong).unwrap_err());
            assert!(refused.contains(named), "{wrong}: {refused}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn every_flag_of_the_table_is_taken() {
        let (config, alone) = settings(
            "--container-runtime-endpoint unix:///r --max-pods=30 --pod-max-pids -1 --seccomp-default --anonymous-auth=true \
             --eviction-hard memory.available<1Gi --eviction-hard=nodefs.available<5% --system-reserved cpu=1 --cgroup-driver=cgroupfs \
             --healthz-port 0 --read-only-port 0 --client-ca-file= --node-labels a=b,c=d --fail-swap-on=false",
        )
        .unwrap();
        assert_eq!(
            (config.max_pods, config.pod_pids_limit, alone.health.port()),
            (30, None, 0)
        );
        assert!(config.seccomp_default && config.anonymous);
        assert_eq!((config.eviction.hard.len(), config.node_labels.len()), (2, 2));
        for (wrong, named) in [
            ("--cgroup-driver systemd", "systemd isn't asked for cgroups"),
            ("--max-pods many", "--max-pods"),
            ("--node-labels node-role.kubernetes.io/x=", "--node-labels"),
            ("--image-gc-high-threshold 50", "imageGCLowThresholdPercent"),
            ("--cloud-provider external", "--cloud-provider"),
        ] {
            let refused = settings(&format!("--container-runtime-endpoint unix:///r {wrong}")).unwrap_err();
            let refused = format!("{refused:#}");
            assert!(refused.contains(named), "{wrong}: {refused}");
        }
    }
}
