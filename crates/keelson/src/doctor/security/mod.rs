//! `keelson doctor --security`: how a running server stands, point by point. Nothing is declared: each point is measured on this
//! machine, by reading files and the kernel, by handshakes, and by requests that have to be refused.
//!
//! It changes nothing that stays: two objects are made and deleted again, to see how they are written down.

mod admission;
mod files;
mod front;
mod kernel;
mod rights;
mod written;

use crate::lock::Lock;
use anyhow::Context;
use http::{Method, Request};
use http_body_util::BodyExt;
use keelson_client::Rest;
use keelson_pki::Kubeconfig;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How a point stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    /// It depends on what the cluster is for.
    Warn,
    Fail,
    /// It couldn't be measured.
    Unknown,
}

#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Stays the same from version to version.
    pub id: &'static str,
    pub title: &'static str,
    pub verdict: Verdict,
    /// What was seen.
    pub evidence: String,
    /// What to do; empty where there is nothing to do.
    pub fix: &'static str,
}

impl Point {
    /// `Ok`: it passes, with what was seen.
    fn of(id: &'static str, title: &'static str, seen: Result<String, Seen>, fix: &'static str) -> Point {
        let (verdict, evidence) = match seen {
            Ok(evidence) => (Verdict::Pass, evidence),
            Err(Seen(verdict, evidence)) => (verdict, evidence),
        };
        let fix = if verdict == Verdict::Pass { "" } else { fix };
        Point {
            id,
            title,
            verdict,
            evidence,
            fix,
        }
    }
}

/// Why a point doesn't pass.
struct Seen(Verdict, String);

fn wrong(evidence: impl Into<String>) -> Seen {
    Seen(Verdict::Fail, evidence.into())
}

fn doubtful(evidence: impl Into<String>) -> Seen {
    Seen(Verdict::Warn, evidence.into())
}

impl From<anyhow::Error> for Seen {
    fn from(error: anyhow::Error) -> Seen {
        Seen(Verdict::Unknown, format!("{error:#}"))
    }
}

/// The server that is looked at.
struct World {
    data_dir: PathBuf,
    kubeconfig_file: PathBuf,
    pid: i32,
    host: String,
    port: u16,
    ca_pem: String,
    kubelet_port: u16,
    rest: Rest,
}

/// Bytes of an answer that are read at most.
const MOST: usize = 64 << 20;

impl World {
    async fn of(data_dir: &Path, kubeconfig: Option<&Path>, kubelet_port: u16) -> anyhow::Result<World> {
        let running = Lock::holder(data_dir)?;
        let pid = running.with_context(|| {
            format!(
                "no server runs in {}: --security measures a running one (--data-dir)",
                data_dir.display()
            )
        })?;
        let file = kubeconfig.map_or_else(|| data_dir.join("admin.kubeconfig"), Path::to_path_buf);
        let config = Kubeconfig::read(&file)?;
        let uri: http::Uri = config.server.parse().context("the kubeconfig's server")?;
        let client = keelson_client::from_kubeconfig(&file, None).await?;
        Ok(World {
            data_dir: data_dir.to_path_buf(),
            kubeconfig_file: file,
            pid,
            host: uri.host().unwrap_or_default().trim_matches(['[', ']']).to_string(),
            port: uri.port_u16().unwrap_or(443),
            ca_pem: config.ca_pem,
            kubelet_port,
            rest: Rest::new(client, "keelson-doctor"),
        })
    }

    /// A request as the administrator, or as somebody whom he may impersonate: the code and the answer's text.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        as_whom: &[&str],
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, String)> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("accept", "application/json");
        if let [name, groups @ ..] = as_whom {
            request = request.header("impersonate-user", *name);
            for group in groups {
                request = request.header("impersonate-group", *group);
            }
        }
        let bytes = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                serde_json::to_vec(body)?
            }
            None => Vec::new(),
        };
        let request = request.body(kube::client::Body::from(bytes))?;
        let answer = self.rest.client().send(request).await?;
        let code = answer.status().as_u16();
        let whole = http_body_util::Limited::new(answer.into_body(), MOST).collect().await;
        let bytes = whole.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes();
        Ok((code, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The items of a list.
    async fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let (code, text) = self.ask(Method::GET, path, &[], None).await?;
        anyhow::ensure!(code == 200, "{path}: {code}");
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// The value of one of the server's options, as it stands on its command line.
    fn option(&self, name: &str) -> Option<String> {
        let text = std::fs::read(format!("/proc/{}/cmdline", self.pid)).ok()?;
        let words: Vec<String> = text
            .split(|b| *b == 0)
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .collect();
        let with = format!("{name}=");
        words
            .iter()
            .enumerate()
            .find_map(|(i, word)| match word.strip_prefix(&with) {
                Some(value) => Some(value.to_string()),
                None => (word == name).then(|| words.get(i + 1).cloned()).flatten(),
            })
    }
}

/// All points, in their order.
pub async fn measure(data_dir: &Path, kubeconfig: Option<&Path>, kubelet_port: u16) -> anyhow::Result<Vec<Point>> {
    let world = World::of(data_dir, kubeconfig, kubelet_port).await?;
    let mut points = files::points(&world);
    points.extend(front::points(&world).await);
    points.extend(admission::points(&world).await);
    points.extend(written::points(&world).await);
    points.extend(rights::points(&world).await);
    points.extend(kernel::points());
    Ok(points)
}

/// For people.
pub fn print(points: &[Point]) {
    for point in points {
        let word = match point.verdict {
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
            Verdict::Unknown => "unknown",
        };
        println!("{word:<8} {:<4} {}: {}", point.id, point.title, point.evidence);
        if !point.fix.is_empty() {
            println!("              {}", point.fix);
        }
    }
    let count = |verdict| points.iter().filter(|p| p.verdict == verdict).count();
    println!(
        "{} points: {} pass, {} warn, {} fail, {} unknown",
        points.len(),
        count(Verdict::Pass),
        count(Verdict::Warn),
        count(Verdict::Fail),
        count(Verdict::Unknown)
    );
}

/// For programs: the points, and how many ended how.
pub fn json(points: &[Point]) -> anyhow::Result<String> {
    let count = |verdict| points.iter().filter(|p| p.verdict == verdict).count();
    let report = serde_json::json!({
        "points": points,
        "totals": {
            "pass": count(Verdict::Pass), "warn": count(Verdict::Warn),
            "fail": count(Verdict::Fail), "unknown": count(Verdict::Unknown),
        },
    });
    Ok(serde_json::to_string_pretty(&report)?)
}

/// Whether nothing is wrong, and everything could be measured.
pub fn is_sound(points: &[Point]) -> bool {
    points
        .iter()
        .all(|p| matches!(p.verdict, Verdict::Pass | Verdict::Warn))
}

/// The first few of many, for evidence.
fn some(list: &[String]) -> String {
    match list.len() {
        n if n > 5 => format!("{} and {} more", list[..5].join(", "), n - 5),
        _ => list.join(", "),
    }
}
