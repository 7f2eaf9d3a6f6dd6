//! What requests cost the server: CPU time a request, of a server called within the process. No socket, no TLS, no client:
//! what remains is the request chain, the registry, the cache and the store.
//!
//! `cargo run --profile fast -p keelson-apiserver --example hot -- [--pods N] [--dir DIR] [--only PART]`
//! With `--dir` the store is the embedded one in that directory, else one in memory. `--only` takes rows by a part of their name.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::BodyExt;
use keelson_apiserver::request::Body;
use keelson_apiserver::{ApiServer, ApiService, Config, UserInfo};
use keelson_store::embedded::Options;
use keelson_store::{Embedded, Memory, Store};
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

/// The program's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const PODS: &str = "/api/v1/namespaces/default/pods";
const WATCHERS: usize = 100;

struct Args {
    pods: usize,
    dir: Option<String>,
    only: String,
}

fn args() -> Result<Args> {
    let mut args = Args {
        pods: 5000,
        dir: None,
        only: String::new(),
    };
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        let value = given.next().with_context(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--pods" => args.pods = value.parse()?,
            "--dir" => args.dir = Some(value),
            "--only" => args.only = value,
            other => anyhow::bail!("unknown argument {other}"),
        }
    }
    Ok(args)
}

/// A pod like those of `bench/load`.
fn pod(name: &str) -> String {
    let env: Vec<String> = (0..30)
        .map(|i| format!(r#"{{"name":"SOME_VARIABLE_{i}","value":"some-value-of-a-typical-length-{i}"}}"#))
        .collect();
    let probe = r#"{"httpGet":{"path":"/healthz","port":8080},"periodSeconds":5}"#;
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"bench","tier":"backend","pod-template-hash":"5d4f8c7b9d","release":"stable"}},"annotations":{{"prometheus.io/scrape":"true","prometheus.io/port":"9090"}}}},"spec":{{"schedulerName":"nobody","containers":[{{"name":"main","image":"registry.k8s.io/e2e-test-images/agnhost:2.66.1","args":["netexec","--http-port=8080"],"env":[{env}],"ports":[{{"containerPort":8080}}],"resources":{{"requests":{{"cpu":"1m","memory":"1Mi"}},"limits":{{"memory":"64Mi"}}}},"readinessProbe":{probe},"livenessProbe":{probe},"volumeMounts":[{{"name":"tmp","mountPath":"/tmp"}}]}}],"volumes":[{{"name":"tmp","emptyDir":{{}}}}]}}}}"#,
        env = env.join(",")
    )
}

/// A status as a kubelet writes it; `n` makes it another each time.
fn status(n: usize) -> String {
    let condition = |kind: &str| {
        format!(
            r#"{{"type":"{kind}","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-01-01T00:00:00Z"}}"#
        )
    };
    let conditions: Vec<String> = ["Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .map(condition)
        .into();
    format!(
        r#""status":{{"phase":"Running","hostIP":"10.0.0.1","podIP":"10.244.0.{}","conditions":[{}],"containerStatuses":[{{"name":"main","image":"agnhost","imageID":"x","containerID":"containerd://{n}","ready":true,"restartCount":{n},"started":true,"state":{{"running":{{"startedAt":"2026-01-01T00:00:00Z"}}}},"lastState":{{}}}}]}}"#,
        n % 250,
        conditions.join(",")
    )
}

/// Nanoseconds of CPU that all threads of this process have had.
fn cpu() -> u64 {
    let spent = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID);
    spent.map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split(' ').nth(1).and_then(|n| n.parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4096.0 / 1048576.0
}

#[derive(Clone)]
struct Client(ApiService);

impl Client {
    async fn send(&self, method: &str, path: &str, media: &str, accept: &str, body: Bytes) -> Result<(u16, Body)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, accept)
            .header(header::CONTENT_TYPE, media)
            .header(header::USER_AGENT, "hot/1")
            .body(Body::from(body))?;
        let response = self.0.clone().oneshot(request).await?;
        Ok((response.status().as_u16(), response.into_body()))
    }

    /// How many bytes the answer has.
    async fn call(&self, method: &str, path: &str, media: &str, accept: &str, body: impl Into<Bytes>) -> Result<usize> {
        let (code, mut body) = self.send(method, path, media, accept, body.into()).await?;
        let mut bytes = 0;
        let mut last = Bytes::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                bytes += data.len();
                last = data;
            }
        }
        ensure!(code < 300, "{method} {path}: {code} {}", String::from_utf8_lossy(&last));
        Ok(bytes)
    }

    async fn get(&self, path: &str, accept: &str) -> Result<usize> {
        self.call("GET", path, JSON, accept, "").await
    }
}

/// Counts the events in a watch's bytes.
struct Events {
    seen: usize,
    framed: bool,
    /// Of the present event's frame: its length as far as it is known, and what is still to come of it.
    head: Vec<u8>,
    left: usize,
}

impl Events {
    fn new(framed: bool) -> Self {
        Events {
            seen: 0,
            framed,
            head: Vec::new(),
            left: 0,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        if !self.framed {
            self.seen += bytes.iter().filter(|b| **b == b'\n').count();
            return;
        }
        while !bytes.is_empty() {
            if self.left == 0 {
                let (head, rest) = bytes.split_at(bytes.len().min(4 - self.head.len()));
                self.head.extend_from_slice(head);
                bytes = rest;
                if let Ok(length) = <[u8; 4]>::try_from(&self.head[..]) {
                    self.left = u32::from_be_bytes(length) as usize;
                    self.head.clear();
                }
                continue;
            }
            let taken = bytes.len().min(self.left);
            self.left -= taken;
            self.seen += usize::from(self.left == 0);
            bytes = &bytes[taken..];
        }
    }
}

struct Bench {
    client: Client,
    args: Args,
}

impl Bench {
    /// Calls `request` for each of `0..times`, after one that isn't counted.
    async fn row<F: Future<Output = Result<usize>>>(
        &self,
        name: &str,
        times: usize,
        request: impl Fn(Client, usize) -> F,
    ) -> Result<()> {
        if !name.contains(&self.args.only) {
            return Ok(());
        }
        let bytes = request(self.client.clone(), times).await?;
        let before = cpu();
        for n in 0..times {
            request(self.client.clone(), n).await?;
        }
        let each = (cpu() - before) as f64 / 1000.0 / times as f64;
        println!("{name:<44} {each:>12.1} µs {bytes:>10} bytes");
        Ok(())
    }

    async fn fill(&self) -> Result<()> {
        let before = cpu();
        for n in 0..self.args.pods {
            let name = format!("filler-{n:05}");
            self.client.call("POST", PODS, JSON, JSON, pod(&name)).await?;
            let path = format!("{PODS}/{name}/status");
            let patch = format!("{{{}}}", status(n));
            self.client.call("PATCH", &path, STRATEGIC, JSON, patch).await?;
        }
        let each = (cpu() - before) as f64 / 1000.0 / self.args.pods as f64;
        println!("{:<44} {each:>12.1} µs", "a pod made and given a status");
        Ok(())
    }

    async fn lists(&self) -> Result<()> {
        for (name, accept) in [
            ("list, JSON, the first time", JSON),
            ("list, metadata, the first time", METADATA),
        ] {
            let before = cpu();
            let bytes = self.client.get(PODS, accept).await?;
            let spent = (cpu() - before) as f64 / 1000.0;
            println!("{name:<44} {spent:>12.1} µs {bytes:>10} bytes");
        }
        for (name, accept, query) in [
            ("list, JSON", JSON, ""),
            ("list, JSON, any revision", JSON, "?resourceVersion=0"),
            ("list, protobuf", PROTOBUF, ""),
            ("list, Table", TABLE, ""),
            ("list, metadata", METADATA, ""),
            ("list, YAML", "application/yaml", ""),
            ("list, JSON, by label (all match)", JSON, "?labelSelector=app%3Dbench"),
            (
                "list, JSON, by label (none matches)",
                JSON,
                "?labelSelector=app%3Dother",
            ),
            (
                "list, JSON, by field (none matches)",
                JSON,
                "?fieldSelector=spec.nodeName%3Dother",
            ),
            ("list, JSON, a page of 500", JSON, "?limit=500"),
        ] {
            let path = format!("{PODS}{query}");
            let times = if query.contains("other") { 200 } else { 6 };
            self.row(name, times, |client, _| {
                let path = path.clone();
                async move { client.get(&path, accept).await }
            })
            .await?;
        }
        Ok(())
    }

    async fn objects(&self) -> Result<()> {
        for (name, accept) in [("get, JSON", JSON), ("get, protobuf", PROTOBUF)] {
            self.row(name, 4000, |client, n| async move {
                client.get(&format!("{PODS}/filler-{:05}", n % 100), accept).await
            })
            .await?;
        }
        self.row("create a pod", 1000, |client, n| async move {
            client
                .call("POST", PODS, JSON, JSON, pod(&format!("created-{n}")))
                .await
        })
        .await?;
        for (name, kind) in [("merge", MERGE), ("strategic", STRATEGIC)] {
            self.row(
                &format!("status of a pod, {name} patch"),
                1000,
                |client, n| async move {
                    let path = format!("{PODS}/filler-{:05}/status", n % 100);
                    client
                        .call("PATCH", &path, kind, JSON, format!("{{{}}}", status(n + 7)))
                        .await
                },
            )
            .await?;
        }
        self.row("status of a pod, apply", 1000, |client, n| async move {
            let name = format!("filler-{:05}", n % 100);
            let path = format!("{PODS}/{name}/status?fieldManager=hot&force=true");
            let body = format!(
                r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}},{}}}"#,
                status(n + 9)
            );
            client.call("PATCH", &path, APPLY, JSON, body).await
        })
        .await?;
        self.row("create a ConfigMap of 1 KiB", 1000, |client, n| async move {
            let data = "x".repeat(1024);
            let body = format!(
                r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"created-{n}"}},"data":{{"k":"{data}"}}}}"#
            );
            let path = "/api/v1/namespaces/default/configmaps";
            client.call("POST", path, JSON, JSON, body).await
        })
        .await
    }

    /// An event of a pod to all watchers: what it costs more than the same write without them.
    async fn fan_out(&self, name: &str, accept: &'static str) -> Result<()> {
        if !name.contains(&self.args.only) {
            return Ok(());
        }
        const EVENTS: usize = 300;
        let write = |n: usize| {
            let client = self.client.clone();
            async move {
                let path = format!("{PODS}/filler-{:05}/status", n % 100);
                client
                    .call("PATCH", &path, MERGE, JSON, format!("{{{}}}", status(n + 11)))
                    .await
            }
        };
        let before = cpu();
        for n in 0..EVENTS {
            write(n).await?;
        }
        let alone = cpu() - before;
        let mut watchers = Vec::new();
        for _ in 0..WATCHERS {
            let path = format!("{PODS}?watch=true&sendInitialEvents=false&resourceVersionMatch=NotOlderThan");
            let (code, mut body) = self.client.send("GET", &path, JSON, accept, Bytes::new()).await?;
            ensure!(code == 200, "a watch was refused: {code}");
            watchers.push(tokio::spawn(async move {
                let mut events = Events::new(accept == PROTOBUF);
                while events.seen < EVENTS
                    && let Some(Ok(frame)) = body.frame().await
                {
                    events.take(&frame.into_data().unwrap_or_default());
                }
            }));
        }
        let before = cpu();
        for n in 0..EVENTS {
            write(n + 1000).await?;
        }
        for watcher in watchers {
            tokio::time::timeout(Duration::from_secs(30), watcher).await??;
        }
        let each = (cpu() - before).saturating_sub(alone) as f64 / 1000.0 / (EVENTS * WATCHERS) as f64;
        println!("{name:<44} {each:>12.2} µs an event and watcher");
        Ok(())
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let args = args()?;
    let store: Arc<dyn Store> = match &args.dir {
        Some(dir) => Embedded::open(dir, Options::default()).await?,
        None => Memory::new(),
    };
    let mut config = Config::new(keelson_pki::ServiceAccountKeys::generate()?);
    config.publish_kubernetes_service = false;
    let server = ApiServer::new(config, store)?;
    server.ready().await;
    let client = Client(server.service(UserInfo::new("bench", &["system:masters"])));
    let account = r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}"#;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    client.call("POST", accounts, JSON, JSON, account).await?;
    let bench = Bench { client, args };
    println!("{:<44} {:>12.1} MiB", "resident, empty", resident());
    bench.fill().await?;
    println!("{:<44} {:>12.1} MiB", "resident, filled", resident());
    bench.lists().await?;
    println!("{:<44} {:>12.1} MiB", "resident, after lists", resident());
    bench.objects().await?;
    bench.fan_out("fan-out, JSON", JSON).await?;
    bench.fan_out("fan-out, protobuf", PROTOBUF).await?;
    println!("{:<44} {:>12.1} MiB", "resident, at the end", resident());
    server.shutdown();
    Ok(())
}
