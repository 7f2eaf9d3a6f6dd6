//! kube-apiserver over etcd, on loopback, for as long as a run takes.

use crate::side::{Side, USERS};
use anyhow::{Context, Result, bail};
use keelson_pki::{Authority, CertSpec, San, ServiceAccountKeys};
use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take until it is ready, on a machine that does other things too.
const START: Duration = Duration::from_secs(180);

/// Whom controllers act as.
pub const MANAGER: &str = "system:kube-controller-manager";
/// Whom schedulers act as.
pub const SCHEDULER: &str = "system:kube-scheduler";

pub struct Peer {
    processes: Vec<Child>,
    dir: PathBuf,
    pub side: Side,
}

impl Peer {
    /// Starts both programs, found in `bin`. Their files go to a directory that is removed at the end.
    pub async fn start(bin: &Path) -> Result<Peer> {
        Peer::named(bin, "peer").await
    }

    /// The same, of several at a time.
    pub async fn named(bin: &Path, name: &str) -> Result<Peer> {
        let dir = std::env::temp_dir().join(format!("keelson-differential-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let [client, peers, port] = [free_port()?, free_port()?, free_port()?];
        let etcd = format!("http://127.0.0.1:{client}");
        let own = format!("http://127.0.0.1:{peers}");
        let mut peer = Peer {
            processes: Vec::new(),
            side: Side::new(HashMap::new()),
            dir,
        };
        peer.run(
            &bin.join("etcd"),
            "etcd",
            &[
                ("data-dir", &peer.path("etcd")),
                ("listen-client-urls", &etcd),
                ("advertise-client-urls", &etcd),
                ("listen-peer-urls", &own),
                ("initial-advertise-peer-urls", &own),
                ("initial-cluster", &format!("default={own}")),
                ("log-level", "warn"),
                ("unsafe-no-fsync", "true"),
            ],
        )?;
        peer.certificates()?;
        let issuer = "https://kubernetes.default.svc.cluster.local";
        let options = [
            ("etcd-servers", etcd.as_str()),
            ("bind-address", "127.0.0.1"),
            ("secure-port", &port.to_string()),
            ("service-cluster-ip-range", "10.96.0.0/16"),
            ("endpoint-reconciler-type", "none"),
            ("authorization-mode", "Node,RBAC"),
            ("allow-privileged", "true"),
            ("enable-admission-plugins", "NodeRestriction"),
            ("client-ca-file", &peer.path("ca.crt")),
            ("tls-cert-file", &peer.path("serving.crt")),
            ("tls-private-key-file", &peer.path("serving.key")),
            ("service-account-issuer", issuer),
            ("service-account-key-file", &peer.path("sa.pub")),
            ("service-account-signing-key-file", &peer.path("sa.key")),
        ];
        peer.run(&bin.join("kube-apiserver"), "kube-apiserver", &options)?;
        peer.side = peer.clients(port).await?;
        peer.ready().await?;
        Ok(peer)
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Starts another program, which ends with the others; `what` is its log's name.
    pub fn run(&mut self, program: &Path, what: &str, options: &[(&str, &str)]) -> Result<()> {
        self.start_program(Command::new(program), what, options)
    }

    pub fn start_program(&mut self, mut command: Command, what: &str, options: &[(&str, &str)]) -> Result<()> {
        let log = fs::File::create(self.dir.join(format!("{what}.log")))?;
        let child = command
            .args(options.iter().map(|(k, v)| format!("--{k}={v}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {what} (conformance/build.sh differential builds it)"))?;
        self.processes.push(child);
        Ok(())
    }

    fn certificates(&self) -> Result<()> {
        let ca = Authority::generate("kubernetes")?;
        fs::write(self.dir.join("ca.crt"), ca.cert_pem())?;
        fs::write(self.dir.join("ca.key"), ca.key_pem())?;
        let serving = ca.issue(&CertSpec::server("kube-apiserver", vec![San::parse("127.0.0.1")]))?;
        fs::write(self.dir.join("serving.crt"), serving.cert_pem)?;
        fs::write(self.dir.join("serving.key"), serving.key_pem)?;
        for (name, groups) in USERS.iter().chain(&[(MANAGER, &[] as &[&str]), (SCHEDULER, &[])]) {
            let issued = ca.issue(&CertSpec::client(name, groups.first().copied()))?;
            fs::write(self.dir.join(format!("{name}.crt")), issued.cert_pem)?;
            fs::write(self.dir.join(format!("{name}.key")), issued.key_pem)?;
        }
        ServiceAccountKeys::open(&self.dir)?;
        Ok(())
    }

    async fn clients(&self, port: u16) -> Result<Side> {
        let mut clients = HashMap::new();
        for name in USERS.iter().map(|(name, _)| *name).chain([MANAGER, SCHEDULER]) {
            let (ca, crt, key) = (
                self.path("ca.crt"),
                self.path(&format!("{name}.crt")),
                self.path(&format!("{name}.key")),
            );
            let file = self.dir.join(format!("{name}.kubeconfig"));
            fs::write(
                &file,
                format!(
                    "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                     clusters: [{{name: c, cluster: {{server: \"https://127.0.0.1:{port}\", certificate-authority: \"{ca}\"}}}}]\n\
                     users: [{{name: u, user: {{client-certificate: \"{crt}\", client-key: \"{key}\"}}}}]\n\
                     contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
                ),
            )?;
            clients.insert(name.to_string(), keelson_client::from_kubeconfig(&file, None).await?);
        }
        Ok(Side::new(clients))
    }

    async fn ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            for child in &mut self.processes {
                if let Some(status) = child.try_wait()? {
                    let log = fs::read_to_string(self.dir.join("kube-apiserver.log")).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(5).collect();
                    bail!("a program of the peer ended with {status}: {tail:?}");
                }
            }
            if self.side.is_ready().await {
                return Ok(());
            }
            anyhow::ensure!(
                begun.elapsed() < START,
                "the peer isn't ready within {START:?}: see {}",
                self.dir.display()
            );
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().rev() {
            // Its data is thrown away; there is nothing to be ended in order.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
