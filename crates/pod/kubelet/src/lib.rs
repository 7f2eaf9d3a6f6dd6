//! The kubelet: keeps the pods that are bound to this node running, and tells the API how they are.
//!
//! The way of a pod, top to bottom: [`sources`] (API, manifests) → [`worker`] (one task a pod) → [`plan`] (pure: what to
//! do next) → [`act`] (CRI calls) → [`status`]. Beside it stand [`volumes`], [`devices`], [`managers`], [`claims`], [`probes`], [`resources`], [`eviction`],
//! [`gc`], [`node`], [`shutdown`] and the [`server`].
//!
//! It reaches the cluster through a `kube::Client` and the runtime through CRI, and touches the machine only through
//! [`host::Host`]; so it runs unchanged over a fake runtime, a fake machine and virtual time (see [`fake`]). Its state can
//! be rebuilt from the API, the CRI and the kernel: nothing is lost when it is killed.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod act;
pub mod backoff;
pub mod claims;
pub mod company;
pub mod config;
pub mod configuration;
pub mod devices;
pub mod disks;
pub mod eviction;
pub mod fake;
pub mod gc;
pub mod host;
pub mod kubelet;
pub mod managers;
pub mod metrics;
pub mod node;
pub mod objects;
pub mod observe;
pub mod plan;
pub mod pleg;
pub mod plugins;
pub mod pods;
pub mod probes;
pub mod providers;
pub mod resources;
pub mod run;
pub mod server;
mod shared;
pub mod shutdown;
pub mod sources;
pub mod status;
pub mod userns;
pub mod volumes;
pub mod worker;

pub use act::pulled::Verification;
pub use company::Company;
pub use config::{Alone, Archives, Config, Eviction, ServingTls};
pub use gc::attic::Attic;
pub use host::Host;
pub use run::{build, run, run_built, run_on};
pub use shared::unshare;

/// An API error as a client reads it: the server's message where there is one.
pub fn error_text(error: &keelson_client::Error) -> String {
    match error {
        keelson_client::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

/// A CRI error as upstream writes it.
pub fn rpc_text(status: &tonic::Status) -> String {
    let code = match status.code() {
        tonic::Code::Ok => "OK".to_owned(),
        tonic::Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

/// A duration as Go prints it, cut to milliseconds.
pub fn go_duration(d: std::time::Duration) -> String {
    let ms = d.as_millis();
    if ms == 0 {
        return "0s".into();
    }
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let mut seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    seconds.truncate(seconds.trim_end_matches('0').trim_end_matches('.').len());
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, m) => format!("{m}m{seconds}s"),
        (h, m) => format!("{h}h{m}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_read_like_upstreams() {
        let d = |ms| super::go_duration(std::time::Duration::from_millis(ms));
        assert_eq!(
            [d(0), d(5), d(1500), d(10_000), d(300_000), d(100_000)],
            ["0s", "5ms", "1.5s", "10s", "5m0s", "1m40s"]
        );
    }
}
