//! `keelson port-forward`: a pod's ports on this machine, TCP as kubectl has it and UDP, which no client of upstream's carries. Connections go by the WebSocket
//! that any kubelet serves, datagrams by our runtime's ([`keelson_runtime::datagrams`]).

mod channel;
mod connections;
mod datagrams;
mod ports;
mod target;

use crate::client::{block_on, kubeconfig};
use anyhow::Context;
use clap::Args;
use keelson_client::Rest;
use ports::{Port, Protocol};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use target::Target;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::{JoinSet, LocalSet};

pub const AFTER_HELP: &str = "\
Examples:
  keelson port-forward pod/web-0 8080:80                 connections to 127.0.0.1:8080 and [::1]:8080
  keelson port-forward service/dns 5353:53/udp           datagrams; the service's port, to one of its pods
  keelson port-forward deployment/web :http              a port that is free, to the container's port of this name

It goes on until Ctrl-C: when the pod goes, the next connection or datagram goes to another one of the target's.
UDP takes a node whose container runtime is Keelson's.";

#[derive(Args)]
pub struct Options {
    /// POD, or KIND/NAME of a pod, a service, or what makes pods
    #[arg(value_name = "TARGET")]
    target: String,
    /// [LOCAL:]REMOTE[/udp]; LOCAL empty or 0: one that is free; REMOTE: a number or a name
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<Port>,
    /// The target's namespace [default: the kubeconfig's]
    #[arg(short, long)]
    namespace: Option<String>,
    /// Addresses to listen at [default: 127.0.0.1 and ::1]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    address: Vec<IpAddr>,
    /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one]
    #[arg(long)]
    context: Option<String>,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(async {
        let tasks = LocalSet::new();
        tokio::select! {
            ended = tasks.run_until(forward(&options)) => ended,
            stopped = tokio::signal::ctrl_c() => stopped.context("waiting for Ctrl-C"),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn forward(options: &Options) -> anyhow::Result<()> {
    let path = kubeconfig(options.kubeconfig.clone());
    let client = keelson_client::from_kubeconfig(&path, options.context.as_deref()).await?;
    let namespace = options
        .namespace
        .clone()
        .unwrap_or_else(|| client.default_namespace().to_owned());
    let rest = Rest::new(client, "keelson-port-forward");
    let mut tasks = JoinSet::new();
    for port in &options.ports {
        let target = Target::new(&rest, &namespace, &options.target, port)?;
        // What can't be reached now is told now.
        target.pod().await?;
        listen(&mut tasks, &options.address, port, Rc::new(target)).await?;
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn listen(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    addresses: &[IpAddr],
    port: &Port,
    target: Rc<Target>,
) -> anyhow::Result<()> {
    let usual = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let asked_for = if addresses.is_empty() { &usual[..] } else { addresses };
    let mut local = port.local;
    for (at, address) in asked_for.iter().enumerate() {
        let wanted = SocketAddr::new(*address, local);
        let bound = match port.protocol {
            Protocol::Tcp => {
                let bound = TcpListener::bind(wanted).await;
                taken(
                    bound,
                    TcpListener::local_addr,
                    |it| connections::serve(it, target.clone()),
                    tasks,
                )
            }
            Protocol::Udp => {
                let bound = UdpSocket::bind(wanted).await;
                taken(
                    bound,
                    UdpSocket::local_addr,
                    |it| datagrams::serve(it, target.clone()),
                    tasks,
                )
            }
        };
        match bound {
            Ok(bound) => {
                local = bound.port();
                println!("Forwarding from {bound} -> {}", port.remote());
            }
            // Not every machine has both families.
            Err(_) if at > 0 && addresses.is_empty() => {}
            Err(error) => return Err(error).with_context(|| format!("listening at {wanted}")),
        }
    }
    Ok(())
}

fn taken<Socket, Served: Future<Output = anyhow::Result<()>> + 'static>(
    bound: std::io::Result<Socket>,
    address: fn(&Socket) -> std::io::Result<SocketAddr>,
    serve: impl FnOnce(Socket) -> Served,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> std::io::Result<SocketAddr> {
    let socket = bound?;
    let at = address(&socket)?;
    tasks.spawn_local(serve(socket));
    Ok(at)
}
