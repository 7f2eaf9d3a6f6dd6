//! Each component: how it is started, beside others in `server` and `agent` or as a program of its own, and what that program is told.
//!
//! `spawn` of a component takes a client and its settings; who makes those is no matter of its. The commands take upstream's flags,
//! under upstream's names, for what they have: another is refused by its name, and so is a value that can't be honoured.
//! Alone a component reaches the cluster by a kubeconfig ([`reach`]), a runtime by its socket, and tells how it is by
//! [`front`].

pub mod apiserver;
pub mod controller_manager;
pub mod dns;
pub mod etcd;
pub mod front;
pub mod kubelet;
pub mod proxy;
mod reach;
pub mod runtime;
pub mod scheduler;
mod upstream;

use crate::config;
use crate::logging::Form;
use crate::process::{self, Log};
use crate::supervise::Supervisor;
use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args};
use keelson_api::duration::length;
use keelson_client::leader::Election;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// What a component logs.
#[derive(Args, Clone, Debug, Default)]
pub struct LogOptions {
    /// What to log: error, warn, info, debug, trace, or per module [default: info]
    #[arg(long, env = "KEELSON_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Form of the log: text, json, or klog, which is the JSON of upstream's components [default: text]
    #[arg(long, env = "KEELSON_LOG_FORMAT", value_name = "FORM")]
    log_format: Option<String>,
    /// The same by upstream's names: text, or json for its own keys
    #[arg(long, value_name = "FORMAT", value_parser = logging_format)]
    logging_format: Option<Form>,
    /// How long lines may wait; here none does
    #[arg(long = "log-flush-frequency", value_name = "DURATION", value_parser = length)]
    _flush: Option<Duration>,
    /// Verbosity by files of upstream's: here --log says it, by module
    #[arg(long = "vmodule", value_name = "PATTERNS", value_parser = vmodule, hide = true)]
    _vmodule: Option<String>,
    /// How much to log, by upstream's numbers: from 4 on what --log debug does, from 6 on trace
    #[arg(short = 'v', long = "v", value_name = "N")]
    verbosity: Option<u8>,
}

fn logging_format(name: &str) -> Result<Form, String> {
    Form::of_upstream(name).ok_or_else(|| format!("Unsupported log format: {name:?}: it can be text or json"))
}

fn vmodule(patterns: &str) -> Result<String, String> {
    match patterns.is_empty() {
        true => Ok(String::new()),
        false => Err("files are others here: say --log info,MODULE=debug".into()),
    }
}

impl LogOptions {
    /// What a file says about it, unless these say something.
    pub fn or_logging(&mut self, logging: Option<&keelson_kubelet::config::Logging>) {
        let Some(said) = logging else { return };
        if self.logging_format.is_none() && self.log_format.is_none() {
            self.logging_format = Form::of_upstream(&said.format);
        }
        if self.log.is_none() && self.verbosity.is_none() {
            self.verbosity = said.verbosity.map(|v| v.min(10) as u8);
        }
    }

    /// What another flag says about it, unless these say something.
    pub fn or_level(&mut self, level: Option<&str>) {
        if self.log.is_none() && self.verbosity.is_none() {
            self.log = level.map(Into::into);
        }
    }

    pub fn resolve(&self) -> anyhow::Result<Log> {
        let by_number = self.verbosity.map(|n| match n {
            0..=3 => "info",
            4..=5 => "debug",
            _ => "trace",
        });
        let log = config::log(
            self.log.clone().or(by_number.map(Into::into)),
            self.log_format.as_deref(),
        )?;
        Ok(Log {
            form: self.logging_format.unwrap_or(log.form),
            ..log
        })
    }
}

/// Feature gates: nothing is switched by them, so each has to be as it is here.
#[derive(Args, Clone, Debug)]
pub struct Gates {
    /// Feature gates (NAME=true|false), by upstream's names: each is taken that is said to be as it is here, others are refused
    #[arg(long = "feature-gates", value_name = "GATES", value_delimiter = ',', value_parser = gate)]
    _gates: Vec<String>,
}

fn gate(pair: &str) -> Result<String, String> {
    keelson_api::gates::parse(pair).map(|()| pair.to_owned())
}

/// Whether one of several that run works at a time.
#[derive(Args, Clone, Debug)]
pub struct Elect {
    /// Work only while this process holds the Lease of its kind
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    leader_elect: bool,
    /// How long the others wait for who holds it to renew it
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "15s")]
    leader_elect_lease_duration: Duration,
    /// How long who holds it tries to renew it before work ends
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "10s")]
    leader_elect_renew_deadline: Duration,
    /// How often that, and taking it, is tried
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "2s")]
    leader_elect_retry_period: Duration,
    /// What is held
    #[arg(long = "leader-elect-resource-lock", value_name = "KIND", default_value = "leases", value_parser = PossibleValuesParser::new(["leases"]))]
    _leader_elect_resource_lock: String,
    /// The Lease's name [default: upstream's of the component]
    #[arg(long, value_name = "NAME")]
    leader_elect_resource_name: Option<String>,
    /// The Lease's namespace
    #[arg(long, value_name = "NAME", default_value = "kube-system")]
    leader_elect_resource_namespace: String,
}

impl Elect {
    /// Under a name that no other candidate has, or nothing where nobody is elected.
    pub fn candidate(&self, component: &str) -> anyhow::Result<Option<Election>> {
        if !self.leader_elect {
            return Ok(None);
        }
        let (lease, renew) = (self.leader_elect_lease_duration, self.leader_elect_renew_deadline);
        let retry = self.leader_elect_retry_period;
        // Upstream's bounds: one who is late must have stopped before another begins.
        anyhow::ensure!(
            lease > renew,
            "--leader-elect-lease-duration must be greater than --leader-elect-renew-deadline"
        );
        anyhow::ensure!(
            !retry.is_zero() && renew > retry.mul_f64(1.2),
            "--leader-elect-renew-deadline must be greater than --leader-elect-retry-period*1.2"
        );
        let name = self.leader_elect_resource_name.as_deref().unwrap_or(component);
        let identity = format!("{}_{}", config::host_name()?, uuid::Uuid::new_v4());
        Ok(Some(Election {
            namespace: self.leader_elect_resource_namespace.clone(),
            lease,
            renew,
            retry,
            ..Election::new(name, &identity)
        }))
    }
}

/// A command's options as a line of them says, for tests.
#[cfg(test)]
pub fn options_of<O: Args>(line: &str) -> Result<O, clap::Error> {
    let words = std::iter::once("x").chain(line.split_whitespace());
    let matches = O::augment_args(clap::Command::new("x")).try_get_matches_from(words)?;
    O::from_arg_matches(&matches)
}

/// Runs a component's program until a signal.
pub fn run(
    log: &LogOptions,
    data_dir: Option<&Path>,
    start: impl AsyncFnOnce() -> anyhow::Result<Supervisor>,
) -> anyhow::Result<ExitCode> {
    process::run(&log.resolve()?, data_dir, async |stopping| {
        let start = async { anyhow::Ok((start().await?, ())) };
        process::until_stopped(stopping, start, async |()| std::future::pending().await).await
    })
}

#[cfg(test)]
mod tests {
    use crate::{Arguments, Command};
    use clap::Parser;

    fn parse(line: &str) -> Result<Command, String> {
        let words = ["keelson"].into_iter().chain(line.split_whitespace());
        Arguments::try_parse_from(words)
            .map(|a| a.command)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn upstreams_flags_are_taken_and_what_cannot_be_honoured_is_refused_by_its_name() {
        for line in [
            "scheduler --kubeconfig k --leader-elect=true --bind-address=127.0.0.1 --authentication-kubeconfig=k --authorization-kubeconfig=k",
            "scheduler --kubeconfig k --leader-elect --secure-port 0 -v 4",
            "scheduler --kubeconfig k --logging-format=json --log-flush-frequency=5s --vmodule=",
            "scheduler --kubeconfig k --leader-elect=false --config c --v=2 --profiling=false --kube-api-qps=50 --kube-api-burst 100",
            "scheduler --kubeconfig k --leader-elect-lease-duration=1m --leader-elect-resource-lock=leases --tls-min-version=VersionTLS13",
            "controller-manager --kubeconfig k --concurrent-job-syncs=10 --profiling=false --enable-garbage-collector",
            "controller-manager --kubeconfig=k --use-service-account-credentials=true --allocate-node-cidrs=true --cluster-cidr=10.244.0.0/16 \
             --service-cluster-ip-range=10.96.0.0/16 --root-ca-file=c --service-account-private-key-file=p --cluster-signing-cert-file=c \
             --cluster-signing-key-file=k --controllers=*,bootstrap-signer-controller,-ttl-controller --client-ca-file=c",
            "scheduler --kubeconfig k --feature-gates NodeDeclaredFeatures=true,GenericWorkload=false",
            "proxy --kubeconfig k --cluster-cidr 10.0.0.0/8 --feature-gates=NFTablesProxyMode=true",
            "proxy --kubeconfig k --hostname-override n --cluster-cidr 10.244.0.0/16 --proxy-mode nftables --healthz-bind-address 0.0.0.0:10256",
            "dns --kubeconfig k --bind-address 127.0.0.1 --port 53",
            "runtime --container-runtime-endpoint unix:///run/k.sock --cluster-cidr 10.244.0.0/16",
            "kubelet --kubeconfig k --container-runtime-endpoint unix:///run/k.sock --config c --hostname-override n --node-ip 10.0.0.1",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
        for (line, named) in [
            (
                "scheduler --kubeconfig k --leader-elect-resource-lock endpoints",
                "--leader-elect-resource-lock",
            ),
            ("scheduler --kubeconfig k --profiling", "--profiling"),
            ("scheduler --kubeconfig k --write-config-to f", "--write-config-to"),
            (
                "controller-manager --kubeconfig k --node-eviction-rate 1",
                "--node-eviction-rate",
            ),
            (
                "scheduler --kubeconfig k --logging-format xml",
                "Unsupported log format: \"xml\"",
            ),
            ("scheduler --kubeconfig k --vmodule cache=5", "say --log"),
            (
                "scheduler --kubeconfig k --feature-gates GenericWorkload=true",
                "GenericWorkload=true can't be had here: it is false",
            ),
            (
                "controller-manager --kubeconfig k --feature-gates Nope=true",
                "unrecognized feature gate: Nope",
            ),
            ("scheduler", "--kubeconfig"),
            (
                "controller-manager --kubeconfig k --cloud-provider aws",
                "--cloud-provider",
            ),
            ("proxy --kubeconfig k --proxy-mode iptables", "--proxy-mode"),
            (
                "kubelet --kubeconfig k --container-runtime-endpoint unix:///r --cgroup-driver systemd",
                "--cgroup-driver",
            ),
            ("dns --kubeconfig k --conf Corefile", "--conf"),
        ] {
            let refused = parse(line).err().unwrap_or_else(|| panic!("{line} is taken"));
            assert!(refused.contains(named), "{line}: {refused}");
        }
    }
}
