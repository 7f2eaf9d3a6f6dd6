//! `keelson dev`: clusters of several nodes on a developer's machine. A node is a network namespace on a bridge with a server or
//! an agent in it; its pods are this machine's processes.

mod cluster;
mod nodes;

use crate::client::block_on;
use crate::kubeconfig;
use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use cluster::Cluster;
use keelson_pki::Kubeconfig;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// Directory of all such clusters
    #[arg(long, value_name = "DIR", default_value = "/var/lib/keelson-dev", global = true)]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Make a cluster, or start what of it doesn't run, and make it kubectl's current context
    Up {
        #[arg(default_value = "dev")]
        name: String,
        /// Machines in all [default: 1, or as many as there are]
        #[arg(long)]
        nodes: Option<u8>,
        /// How many of them are servers: 1, 3 or 5; several run an etcd, which must be on PATH [default: 1, or as many as there are]
        #[arg(long)]
        servers: Option<u8>,
        /// Directory of image archives (*.tar) that every node imports
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,
        /// Kubeconfig to bring it into; `none`: none [default: ~/.kube/config]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// Longest time until all nodes are Ready, in seconds
        #[arg(long, default_value_t = 120, value_name = "SECONDS")]
        timeout: u64,
        /// Further options of `keelson server`, for all servers, and for agents those that they have too
        #[arg(last = true, value_name = "OPTION")]
        options: Vec<String>,
    },
    /// Remove a cluster, with every trace of it
    Down {
        #[arg(default_value = "dev")]
        name: String,
        /// The kubeconfig it was brought into [default: ~/.kube/config]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
    },
    /// List clusters
    Ls,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "nodes are network namespaces, which only root makes: use sudo"
    );
    let dir = crate::config::absolute(options.dir)?;
    match options.command {
        Command::Up {
            name,
            nodes,
            servers,
            images,
            kubeconfig,
            timeout,
            options,
        } => {
            let began = Instant::now();
            let cluster = Cluster::open(&dir, &name, nodes, servers)?;
            let until = began + Duration::from_secs(timeout);
            let images = images.map(crate::config::absolute).transpose()?;
            block_on(nodes::up(&cluster, images.as_deref(), &options, until))?;
            println!(
                "{} nodes are Ready after {:.1} s",
                cluster.nodes,
                began.elapsed().as_secs_f64()
            );
            told(&cluster, kubeconfig)?;
        }
        Command::Down { name, kubeconfig } => {
            let cluster = Cluster::read(&dir, &name)?;
            block_on(nodes::down(&cluster))?;
            forget(&cluster, kubeconfig)?;
            println!("removed {name}");
        }
        Command::Ls => {
            println!("{:<20} {:>5} {:>7} {:>7}  API", "NAME", "NODES", "SERVERS", "RUNNING");
            for cluster in Cluster::all(&dir)? {
                let running = (0..cluster.nodes).filter(|n| cluster.runs(*n)).count();
                let (name, nodes, servers, api) = (&cluster.name, cluster.nodes, cluster.servers, cluster.api(0));
                println!("{name:<20} {nodes:>5} {servers:>7} {running:>7}  {api}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn is_none(kubeconfig: Option<&Path>) -> bool {
    kubeconfig == Some(Path::new("none"))
}

/// What to go on with.
fn told(cluster: &Cluster, kubeconfig: Option<PathBuf>) -> anyhow::Result<()> {
    let own = cluster.kubeconfig();
    if is_none(kubeconfig.as_deref()) {
        println!("kubectl --kubeconfig {} get nodes", own.display());
        return Ok(());
    }
    let (config, name) = (Kubeconfig::read(&own)?, cluster.context());
    let into = kubeconfig.map_or_else(kubeconfig::usual, Ok)?;
    let into = kubeconfig::rewrite(&into, |before| kubeconfig::merge(before, &config, &name))?;
    println!("{}: the context {name} is the current one", into.display());
    Ok(())
}

fn forget(cluster: &Cluster, kubeconfig: Option<PathBuf>) -> anyhow::Result<()> {
    if is_none(kubeconfig.as_deref()) {
        return Ok(());
    }
    let from = kubeconfig.map_or_else(kubeconfig::usual, Ok)?;
    if from.exists() {
        kubeconfig::rewrite(&from, |before| kubeconfig::unmerge(before, &cluster.context()))?;
    }
    Ok(())
}
