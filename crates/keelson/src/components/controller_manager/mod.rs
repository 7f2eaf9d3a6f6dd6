//! The controllers.

mod names;

use super::front::{Front, secure};
use super::reach::Reach;
use super::upstream::{ControllerManager, Others};
use super::{Elect, Gates, LogOptions};
use crate::store::duration;
use crate::supervise::Supervisor;
use anyhow::{Context, ensure};
use clap::{ArgAction, Args};
use ipnet::IpNet;
use keelson_api::duration::length;
use keelson_client::{Accounts, ClientFactory, Telling};
use keelson_controllers::Config;
use keelson_controllers::config::Autoscaling;
use keelson_pki::{Current, Pki, ServiceAccountKeys, authority};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Upstream's.
const PORT: u16 = 10257;

pub fn spawn(components: &mut Supervisor, clients: Arc<dyn ClientFactory>, settings: Config) {
    components.spawn("controllers", move |stop| {
        keelson_controllers::run(clients.clone(), settings.clone(), stop)
    });
}

/// The same, with the authority as it is: when another follows it, they begin anew with that one.
pub fn following(components: &mut Supervisor, clients: Arc<dyn ClientFactory>, settings: Config, pki: Current) {
    components.spawn("controllers", move |stop| {
        let (clients, settings, pki) = (clients.clone(), settings.clone(), pki.clone());
        async move {
            let mut changes = pki.changes();
            while !stop.is_cancelled() {
                let now = changes.borrow_and_update().clone();
                let settings = Config {
                    root_ca_pem: now.ca.bundle_pem(),
                    signing_cert_pem: now.ca.cert_pem().to_string(),
                    signing_key_pem: now.ca.key_pem(),
                    ..settings.clone()
                };
                let ended = stop.child_token();
                let running = keelson_controllers::run(clients.clone(), settings, ended.clone());
                tokio::pin!(running);
                tokio::select! {
                    done = &mut running => return done,
                    () = another(&mut changes, &now) => {}
                }
                ended.cancel();
                running.await?;
            }
            Ok(())
        }
    });
}

/// Resolves when the cluster's authority, or who is trusted beside it, is another.
async fn another(changes: &mut watch::Receiver<Arc<Pki>>, now: &Pki) {
    while changes.changed().await.is_ok() {
        if changes.borrow_and_update().ca.bundle_pem() != now.ca.bundle_pem() {
            return;
        }
    }
    std::future::pending().await
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    reach: Reach,
    /// Each controller acts as a service account of its own, in kube-system, for whose token the kubeconfig's user asks
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    use_service_account_credentials: bool,
    /// Which controllers run: * for all, a name, -name for all but it
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "*",
        allow_hyphen_values = true
    )]
    controllers: Vec<String>,
    /// Give nodes shares of --cluster-cidr
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allocate_node_cidrs: bool,
    /// Ranges of pod addresses, at most one a family
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    cluster_cidr: Vec<IpNet>,
    /// Ranges of service addresses, which --cluster-cidr must not meet
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    service_cluster_ip_range: Vec<IpNet>,
    /// How large a node's share is, as the length of its prefix
    #[arg(long, alias = "node-cidr-mask-size-ipv4", value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u8).range(1..=32))]
    node_cidr_mask_size: u8,
    /// The same for IPv6
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..=128))]
    node_cidr_mask_size_ipv6: u8,
    /// Authority by which pods know the API server: published in every namespace [default: not published]
    #[arg(long, value_name = "FILE")]
    root_ca_file: Option<PathBuf>,
    /// Key that signs the tokens of Secrets: RSA of 2048 to 4096 bits, or ECDSA over P-256, P-384 or P-521 [default: such Secrets aren't filled]
    #[arg(long, value_name = "FILE")]
    service_account_private_key_file: Option<PathBuf>,
    /// Authority that signs certificate requests [default: none are signed]
    #[arg(long, value_name = "FILE", requires = "cluster_signing_key_file")]
    cluster_signing_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cluster_signing_cert_file")]
    cluster_signing_key_file: Option<PathBuf>,
    /// How long what is signed is valid at most
    #[arg(long, value_name = "DURATION", default_value = "8760h")]
    cluster_signing_duration: String,
    /// Finished pods that are kept
    #[arg(long, value_name = "N", default_value_t = 12500)]
    terminated_pod_gc_threshold: usize,
    /// A node that hasn't been heard of for so long isn't ready
    #[arg(long, value_name = "DURATION", default_value = "50s")]
    node_monitor_grace_period: String,
    /// The same for a node that was never heard of
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    node_startup_grace_period: String,
    /// How often autoscalers are looked at
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "15s")]
    horizontal_pod_autoscaler_sync_period: Duration,
    /// How far usage may be off before one acts, as a part of one, if it says nothing else
    #[arg(long, value_name = "PART", default_value_t = 0.1)]
    horizontal_pod_autoscaler_tolerance: f64,
    /// How long a higher recommendation keeps replicas, if one says nothing else
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "5m")]
    horizontal_pod_autoscaler_downscale_stabilization: Duration,
    /// So long after its start a pod's CPU counts only if it was measured while the pod was ready
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "5m")]
    horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    /// A pod that became unready within this time of its start has never been ready
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "30s")]
    horizontal_pod_autoscaler_initial_readiness_delay: Duration,
    #[command(flatten)]
    elect: Elect,
    #[command(flatten)]
    secure: secure::Options,
    #[command(flatten)]
    _others: Others<ControllerManager>,
    #[command(flatten)]
    _gates: Gates,
    #[command(flatten)]
    log: LogOptions,
}

impl Options {
    fn settings(&self) -> anyhow::Result<Config> {
        let met = |cidr: &&IpNet| {
            let mut services = self.service_cluster_ip_range.iter();
            services.any(|s| s.contains(*cidr) || cidr.contains(s))
        };
        if let Some(cidr) = self.cluster_cidr.iter().find(met) {
            anyhow::bail!("--cluster-cidr {cidr} and --service-cluster-ip-range have addresses in common");
        }
        ensure!(
            !self.allocate_node_cidrs || !self.cluster_cidr.is_empty(),
            "--allocate-node-cidrs gives nodes shares of --cluster-cidr: give that too"
        );
        // Looked at without a pause, autoscalers would take all there is of the machine and of the API server.
        ensure!(
            !self.horizontal_pod_autoscaler_sync_period.is_zero(),
            "--horizontal-pod-autoscaler-sync-period must be greater than 0"
        );
        ensure!(
            (0.0..).contains(&self.horizontal_pod_autoscaler_tolerance),
            "--horizontal-pod-autoscaler-tolerance must be 0 or greater"
        );
        let time = |flag, text: &str| duration(flag, Some(text)).map(Option::unwrap_or_default);
        let (signing_cert_pem, signing_key_pem) =
            match (&self.cluster_signing_cert_file, &self.cluster_signing_key_file) {
                (Some(cert), Some(key)) => {
                    let (cert, key) = (secure::read(cert)?, secure::read(key)?);
                    authority::Authority::from_pem(&cert, &key)
                        .context("--cluster-signing-cert-file, --cluster-signing-key-file")?;
                    (cert, key)
                }
                _ => Default::default(),
            };
        let account_keys = match &self.service_account_private_key_file {
            Some(file) => {
                let keys = ServiceAccountKeys::of_key(&secure::read(file)?);
                Some(Arc::new(keys.context("--service-account-private-key-file")?))
            }
            None => None,
        };
        let settings = Config {
            root_ca_pem: self
                .root_ca_file
                .as_deref()
                .map(secure::read)
                .transpose()?
                .unwrap_or_default(),
            signing_cert_pem,
            signing_key_pem,
            account_keys,
            signing_duration: time("--cluster-signing-duration", &self.cluster_signing_duration)?,
            cluster_cidrs: self.cluster_cidr.iter().map(IpNet::to_string).collect(),
            allocate_node_cidrs: self.allocate_node_cidrs,
            node_mask_v4: self.node_cidr_mask_size,
            node_mask_v6: self.node_cidr_mask_size_ipv6,
            node_grace: time("--node-monitor-grace-period", &self.node_monitor_grace_period)?,
            node_startup_grace: time("--node-startup-grace-period", &self.node_startup_grace_period)?,
            // Upstream leaves load balancers, snapshots, policies of the cluster, roll-outs at a change and sharing to others.
            load_balancer: None,
            pools: false,
            snapshots: false,
            cluster_policies: false,
            reload: false,
            share_from: Vec::new(),
            autoscaling: Autoscaling {
                period: self.horizontal_pod_autoscaler_sync_period,
                tolerance: self.horizontal_pod_autoscaler_tolerance,
                downscale_window: self.horizontal_pod_autoscaler_downscale_stabilization,
                cpu_initialization: self.horizontal_pod_autoscaler_cpu_initialization_period,
                initial_readiness: self.horizontal_pod_autoscaler_initial_readiness_delay,
            },
            terminated_pods: self.terminated_pod_gc_threshold,
            controllers: names::ours(&self.controllers)?,
            leader_election: self.elect.candidate("kube-controller-manager")?,
            telling: Telling::default(),
        };
        settings.check()?;
        Ok(settings)
    }
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let settings = options.settings()?;
    super::run(&options.log, None, async || {
        let kubeconfig = &options.reach.kubeconfig;
        let clients: Arc<dyn ClientFactory> = match options.use_service_account_credentials {
            true => Arc::new(Accounts::new(kubeconfig).await.context("--kubeconfig")?),
            false => options.reach.clients().await?,
        };
        let mut components = Supervisor::default();
        let telling = options.reach.telling().await?;
        let front = Front::whole(components.health(), &telling.measures).with_pages("kube-controller-manager");
        options.secure.start(&mut components, kubeconfig, PORT, front).await?;
        spawn(&mut components, clients, Config { telling, ..settings });
        Ok(components)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::components::options_of;

    fn settings(line: &str) -> anyhow::Result<Config> {
        options_of::<Options>(&format!("--kubeconfig k {line}"))?.settings()
    }

    #[test]
    fn nodes_get_shares_only_when_asked_and_never_of_services_addresses() {
        let unasked = settings("--cluster-cidr 10.244.0.0/16").unwrap();
        assert!(!unasked.allocate_node_cidrs);
        assert_eq!(
            unasked.cluster_cidrs,
            ["10.244.0.0/16"],
            "pools keep off them all the same"
        );
        let given =
            settings("--allocate-node-cidrs --cluster-cidr 10.244.0.0/16 --service-cluster-ip-range 10.96.0.0/16");
        let given = given.unwrap();
        assert!(given.allocate_node_cidrs);
        assert_eq!(given.cluster_cidrs, ["10.244.0.0/16"]);
        for wrong in [
            "--allocate-node-cidrs",
            "--cluster-cidr 10.96.0.0/12 --service-cluster-ip-range 10.96.0.0/16",
            "--node-monitor-grace-period soon",
            "--service-account-private-key-file /nowhere",
            "--horizontal-pod-autoscaler-sync-period=0s",
            "--horizontal-pod-autoscaler-tolerance=-1",
            "--horizontal-pod-autoscaler-tolerance=NaN",
            "--cluster-signing-cert-file /nowhere --cluster-signing-key-file /nowhere",
        ] {
            assert!(settings(wrong).is_err(), "{wrong}");
        }
        assert!(settings("--leader-elect=false").unwrap().leader_election.is_none());
        let elected = settings("").unwrap().leader_election.unwrap();
        assert_eq!(
            (elected.name.as_str(), elected.lease),
            ("kube-controller-manager", Duration::from_secs(15))
        );
        let line = "--leader-elect-resource-name n --leader-elect-resource-namespace s --leader-elect-lease-duration 1m \
                    --leader-elect-renew-deadline=40s --leader-elect-retry-period=5s";
        let elected = settings(line).unwrap().leader_election.unwrap();
        assert_eq!((elected.namespace.as_str(), elected.name.as_str()), ("s", "n"));
        let (lease, renew, retry) = (
            elected.lease.as_secs(),
            elected.renew.as_secs(),
            elected.retry.as_secs(),
        );
        assert_eq!((lease, renew, retry), (60, 40, 5));
        assert_eq!(settings("").unwrap().autoscaling, Autoscaling::default());
        let line = "--horizontal-pod-autoscaler-tolerance=0.2 --horizontal-pod-autoscaler-downscale-stabilization 1m";
        let autoscaling = settings(line).unwrap().autoscaling;
        assert_eq!(
            (autoscaling.tolerance, autoscaling.downscale_window.as_secs()),
            (0.2, 60)
        );
        for wrong in ["--leader-elect-renew-deadline=15s", "--leader-elect-retry-period=9s"] {
            let refused = settings(wrong).err().unwrap().to_string();
            assert!(refused.contains("--leader-elect-renew-deadline"), "{wrong}: {refused}");
        }
    }
}
