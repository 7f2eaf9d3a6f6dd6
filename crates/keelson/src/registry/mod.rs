//! `keelson registry`: a registry of images for a cluster, a program of its own beside any server.
//!
//! It reaches the cluster by a kubeconfig, whose user needs the ClusterRole `system:auth-delegator`; everything else is files. What
//! may be asked without the cluster is asked from this machine only.

mod certificate;
mod options;

pub use options::Options;

use crate::components::front::secure::follow_authorities;
use crate::components::front::{Front, plain};
use crate::node;
use crate::process;
use crate::supervise::Supervisor;
use anyhow::Context;
use keelson_apiserver::serve::tls::server_config;
use keelson_client::Rest;
use keelson_client::from_kubeconfig;
use keelson_client::reviews::{Remember, Reviews};
use keelson_distribution::{Access, Registry};
use keelson_measure::Measures;
use keelson_pki::verify::{Live, Roots};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;

pub const AFTER_HELP: &str = "Repositories are objects to the cluster's rights: who may `get` repositories.registry.keelson.dev pulls, `update` pushes, `delete` \
removes. A repository team/app is the object app in the namespace team. Clients log in by a token of the cluster as the password of any user.";

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let log = options.log.resolve()?;
    process::run(&log, None, async |stopping| {
        let start = async { anyhow::Ok((start(&options).await?, ())) };
        process::until_stopped(stopping, start, async |()| std::future::pending().await).await
    })
}

async fn start(options: &Options) -> anyhow::Result<Supervisor> {
    options.check()?;
    let mut components = Supervisor::default();
    let measures = Measures::default();
    keelson_apiserver::version::tell(&measures);
    let authorities = Live::default();
    let access = match &options.kubeconfig {
        Some(kubeconfig) => {
            let client = from_kubeconfig(kubeconfig, None).await.context("--kubeconfig")?;
            let revocations = node::revocations(&mut components, client.clone());
            let rest = Rest::new(client, "keelson-registry");
            match &options.client_ca_file {
                Some(file) => authorities.replace(options::roots(file)?),
                None => {
                    let (rest, known) = (rest.clone(), authorities.clone());
                    components.spawn("client-authorities", move |stop| {
                        let known = known.clone();
                        follow_authorities(rest.clone(), move |roots| known.replace(roots), stop)
                    });
                }
            }
            Access::Cluster {
                reviews: Reviews::remembering(rest, false, Remember::SHORTLY).heeding(Some(revocations.clone())),
                revocations: Some(revocations),
                anonymous_pull: options.anonymous_pull,
                realm: options.token_realm.clone(),
            }
        }
        None => Access::Open,
    };
    let settings = options.settings()?;
    let directory = settings.directory.clone();
    let registry = Registry::open(settings, access, authorities, &measures)
        .with_context(|| format!("the registry's directory {}", directory.display()))?;
    let registry = Arc::new(registry);
    let tls = match options.plain_http {
        true => None,
        false => {
            let served = certificate::start(&mut components, options)?;
            Some(server_config(served, &Roots::default())?)
        }
    };
    let address = options.listen;
    let listen = move || async move {
        let bound = TcpListener::bind(address).await;
        bound.with_context(|| format!("cannot listen on {address}: is the port taken? Give another --listen"))
    };
    let first = Arc::new(parking_lot::Mutex::new(Some(listen().await?)));
    components.spawn("registry", move |stop| {
        let (first, registry, tls) = (first.clone(), registry.clone(), tls.clone());
        async move {
            let kept = first.lock().take();
            let socket = match kept {
                Some(socket) => socket,
                None => listen().await?,
            };
            registry.run(socket, tls, stop).await
        }
    });
    let front = Front::whole(components.health(), &measures);
    plain::start(&mut components, "metrics", options.metrics_bind_address, front).await?;
    Ok(components)
}
