//! Nodes begin, and end.

use super::*;
use crate::lock::Lock;
use k8s_openapi::api::core::v1::Node;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use keelson_network::Bridge;
use keelson_sys::process::{in_network_namespace, open_namespace};
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::process::{Command as Program, Stdio};

/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a node may take to stop.
const STOPPING: Duration = Duration::from_secs(60);
/// A process that was killed holds its lock until its memory is given back.
const DYING: Duration = Duration::from_millis(200);
/// Of a log that is shown.
const LAST_LINES: usize = 15;

pub async fn up(cluster: &Cluster, images: Option<&Path>, options: &[String], until: Instant) -> anyhow::Result<()> {
    let state = cluster.dir.parent().unwrap_or(&cluster.dir);
    let bridge = cluster.bridge();
    bridge.make(state).await?;
    for n in 0..cluster.nodes {
        let netns = cluster.netns(n);
        let joined = bridge.join(n, &netns, cluster.address(n)).await;
        joined.with_context(|| cluster.node(n))?;
    }
    if let Some(resolver) = only_here(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()) {
        eprintln!(
            "note: nodes can't reach the name server {resolver} of this machine's /etc/resolv.conf; images are pulled by name only \
             with one that isn't a loopback address"
        );
    }
    let admin = cluster.dir.join("admin.kubeconfig");
    for n in 0..cluster.servers {
        if goes_on(cluster, n).await {
            continue;
        }
        let mut server = node(cluster, "server", n, images)?;
        server.arg("--kubeconfig").arg(match n {
            0 => admin.clone(),
            n => cluster.dir.join(format!("node-{n}.kubeconfig")),
        });
        if n == 0 && cluster.servers > 1 {
            server.arg("--cluster-init");
        }
        if n > 0 {
            let token = std::fs::read_to_string(cluster.data_dir(0).join("pki/server-token"));
            let token = token.context("the token of servers")?;
            server
                .args(["--server", &cluster.api(0)])
                .env("KEELSON_TOKEN", token.trim());
        }
        server.args(options);
        let joined = joined(cluster, n);
        start(cluster, n, server)?;
        // The next one joins one that serves. Those that have joined before need each other.
        if !joined {
            wait(cluster, n, until, async || answers(cluster, n, &admin).await).await?;
        }
    }
    let mut config = Kubeconfig::read(&admin)?;
    config.server = cluster.api(0);
    config.write(&cluster.kubeconfig())?;
    let client = keelson_client::from_kubeconfig(&cluster.kubeconfig(), None).await?;
    let rest = Rest::new(client, "keelson-dev");
    let mut token = None;
    for n in cluster.servers..cluster.nodes {
        if goes_on(cluster, n).await {
            continue;
        }
        let mut agent = node(cluster, "agent", n, images)?;
        agent.args(["--server", &cluster.api(0)]).args(agents(options));
        if !joined(cluster, n) {
            if token.is_none() {
                wait(cluster, 0, until, async || ready(&rest, &cluster.node(0)).await).await?;
                token = Some(agents_token(cluster)?);
            }
            agent.env("KEELSON_TOKEN", token.as_deref().unwrap_or_default());
        }
        start(cluster, n, agent)?;
    }
    for n in 0..cluster.nodes {
        wait(cluster, n, until, async || ready(&rest, &cluster.node(n)).await).await?;
    }
    Ok(())
}

pub async fn down(cluster: &Cluster) -> anyhow::Result<()> {
    // Its namespaces are called by it.
    cluster.bridge().check().await?;
    for n in (0..cluster.nodes).rev() {
        let data_dir = cluster.data_dir(n);
        if let Some(pid) = Lock::holder(&data_dir)? {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
            Lock::wait(&data_dir, STOPPING)?;
        }
        if data_dir.exists() {
            if !cluster.netns(n).exists() {
                // This machine was started anew; what is removed is only files then, and where they are seen from doesn't matter.
                cluster
                    .bridge()
                    .make(cluster.dir.parent().unwrap_or(&cluster.dir))
                    .await?;
                cluster.bridge().join(n, &cluster.netns(n), cluster.address(n)).await?;
            }
            let mut uninstall = Program::new(program()?);
            uninstall.args(["uninstall", "--yes", "--data-dir"]).arg(&data_dir);
            uninstall.stdin(Stdio::null());
            let done = inside(cluster, n, move || uninstall.output())?;
            ensure!(
                done.status.success(),
                "{} was not removed: {}",
                cluster.node(n),
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        cluster.bridge().leave(n, &cluster.netns(n)).await?;
    }
    cluster.bridge().remove().await?;
    std::fs::remove_dir_all(&cluster.dir).with_context(|| format!("removing {}", cluster.dir.display()))?;
    let state = cluster.dir.parent().unwrap_or(&cluster.dir);
    if Cluster::all(state)?.is_empty() {
        Bridge::forward_no_more(state)?;
    }
    Ok(())
}

/// Those of a server's options that agents have too.
fn agents(options: &[String]) -> Vec<&str> {
    let agent = <crate::agent::Options as clap::Args>::augment_args(clap::Command::new("agent"));
    let known: Vec<&str> = agent.get_arguments().filter_map(clap::Arg::get_long).collect();
    let mut taken = false;
    let of_agents = options.iter().filter(|word| {
        if let Some(option) = word.strip_prefix("--") {
            taken = known.contains(&option.split('=').next().unwrap_or_default());
        }
        taken
    });
    of_agents.map(String::as_str).collect()
}

/// It runs, and isn't just being killed.
async fn goes_on(cluster: &Cluster, n: u8) -> bool {
    if cluster.runs(n) {
        tokio::time::sleep(DYING).await;
    }
    cluster.runs(n)
}

/// It has been part of the cluster before.
fn joined(cluster: &Cluster, n: u8) -> bool {
    cluster.data_dir(n).join("pki").exists()
}

fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("where this program is")
}

/// What servers and agents are told alike.
fn node(cluster: &Cluster, what: &str, n: u8, images: Option<&Path>) -> anyhow::Result<Program> {
    let mut program = Program::new(program()?);
    program.arg(what).arg("--data-dir").arg(cluster.data_dir(n));
    program.args([
        "--node-name",
        &cluster.node(n),
        "--node-ip",
        &cluster.address(n).to_string(),
    ]);
    if let Some(images) = images {
        program.arg("--images").arg(images);
    }
    Ok(program)
}

/// Does something in a node's network.
fn inside<T: Send>(cluster: &Cluster, n: u8, work: impl FnOnce() -> std::io::Result<T> + Send) -> anyhow::Result<T> {
    let namespace = open_namespace(&cluster.netns(n)).with_context(|| cluster.node(n))?;
    in_network_namespace(&namespace, work)
        .and_then(|done| done)
        .with_context(|| cluster.node(n))
}

/// Begins a process that goes on when this command has ended.
fn start(cluster: &Cluster, n: u8, mut program: Program) -> anyhow::Result<()> {
    let path = cluster.log(n);
    let log = OpenOptions::new().create(true).append(true).open(&path);
    let log: File = log.with_context(|| format!("writing {}", path.display()))?;
    program.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    program.process_group(0);
    println!("{} begins; its log is {}", cluster.node(n), path.display());
    inside(cluster, n, move || program.spawn().map(drop))
}

fn agents_token(cluster: &Cluster) -> anyhow::Result<String> {
    let mut create = Program::new(program()?);
    create
        .args(["token", "create", "--kubeconfig"])
        .arg(cluster.kubeconfig());
    let made = create.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "no token for agents: {}", said.trim());
    Ok(String::from_utf8(made.stdout)?.trim().to_string())
}

/// Until it is so; a node that has ended says why in its log.
async fn wait(
    cluster: &Cluster,
    n: u8,
    until: Instant,
    so: impl AsyncFn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let Err(why) = so().await else { return Ok(()) };
        // It takes its lock soon after it has begun.
        let ended = began.elapsed() > Duration::from_secs(2) && !cluster.runs(n);
        if ended || Instant::now() > until {
            let what = if ended { "has ended" } else { "isn't Ready in time" };
            bail!("{} {what}: {why:#}\n{}", cluster.node(n), last_lines(&cluster.log(n)));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(16 << 10)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

async fn answers(cluster: &Cluster, n: u8, admin: &Path) -> anyhow::Result<()> {
    let mut config = Kubeconfig::read(admin)?;
    config.server = cluster.api(n);
    let path = cluster.dir.join(".asking");
    config.write(&path)?;
    let client = keelson_client::from_kubeconfig(&path, None).await?;
    let _ = std::fs::remove_file(&path);
    ready(&Rest::new(client, "keelson-dev"), &cluster.node(n)).await
}

async fn ready(rest: &Rest, node: &str) -> anyhow::Result<()> {
    let found = Objects::<Node>::new(rest).get("", node).await?;
    let conditions = found.status.and_then(|s| s.conditions).unwrap_or_default();
    let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    ensure!(ready, "the node is not Ready");
    Ok(())
}

/// The name server of a resolv.conf that has none but those of this machine's loopback.
fn only_here(resolv_conf: &str) -> Option<String> {
    let servers = || {
        let lines = resolv_conf
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nameserver"));
        lines.filter_map(|rest| rest.trim().parse::<std::net::IpAddr>().ok())
    };
    let first = servers().next()?;
    servers().all(|ip| ip.is_loopback()).then(|| first.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_server_behind_the_loopback_is_told_of() {
        assert_eq!(
            only_here("nameserver 127.0.0.53\noptions edns0\n").as_deref(),
            Some("127.0.0.53")
        );
        assert_eq!(only_here("# none\nsearch example.org\n"), None);
        assert_eq!(only_here("nameserver 127.0.0.53\nnameserver 192.0.2.1\n"), None);
    }

    #[test]
    fn agents_are_told_what_they_understand() {
        let given = [
            "--cluster-cidr",
            "10.1.0.0/16",
            "--eviction-hard",
            "nodefs.available<1%",
            "--api-port=6444",
            "--node-labels=a=b",
        ];
        let given: Vec<String> = given.map(String::from).into();
        assert_eq!(
            agents(&given),
            ["--eviction-hard", "nodefs.available<1%", "--node-labels=a=b"]
        );
    }

    #[test]
    fn of_a_log_the_end_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let text: String = (0..100).map(|n| format!("{n}\n")).collect();
        std::fs::write(&log, text).unwrap();
        assert!(last_lines(&log).starts_with("85\n") && last_lines(&log).ends_with("99"));
        assert_eq!(last_lines(&dir.path().join("none")), "");
    }
}
