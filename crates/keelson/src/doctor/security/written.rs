//! What is written down, and how: a Secret is made and looked for in the store's own files, a read of secrets in the audit log.

use super::files::written_audit;
use super::{Point, Seen, World, doubtful, wrong};
use http::Method;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

const NAMESPACE: &str = "kube-system";
/// How long an event may take to the audit log.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// Of a log its last bytes are looked at.
const TAIL: u64 = 8 << 20;
/// Read at once, and what of one piece is looked at again with the next.
const PIECE: usize = 1 << 20;

pub async fn points(world: &World) -> Vec<Point> {
    vec![
        Point::of(
            "E1",
            "Secrets are sealed in the store",
            sealed(world).await,
            "Start without --encryption-provider-config none, or give a configuration that seals secrets; keelson secrets status says more",
        ),
        Point::of(
            "E2",
            "Who reads secrets stands in the audit log",
            audited(world).await,
            "Start without --audit-log-path none, and with a policy that logs reads of secrets",
        ),
    ]
}

/// The marks that are looked for: nobody's text has them by chance.
fn mark() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

async fn sealed(world: &World) -> Result<String, Seen> {
    let store = world.data_dir.join("store");
    if !store.is_dir() {
        return by_metrics(world).await;
    }
    let begun = SystemTime::now();
    let (open, secret) = (mark(), mark());
    let name = format!("keelson-doctor-{}", &open[..8]);
    let object = |kind: &str, value: &str| {
        let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}});
        object[if kind == "Secret" { "stringData" } else { "data" }] = json!({"mark": value});
        object
    };
    let made = async {
        for (resource, object) in [
            ("configmaps", object("ConfigMap", &open)),
            ("secrets", object("Secret", &secret)),
        ] {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/{resource}");
            let (code, text) = world.ask(Method::POST, &path, &[], Some(&object)).await?;
            anyhow::ensure!(code == 201, "{path}: {code} {text}");
        }
        Ok::<(), anyhow::Error>(())
    };
    let made = made.await;
    let found = look(&store, begun, &[open.as_bytes(), secret.as_bytes()]);
    for resource in ["configmaps", "secrets"] {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/{resource}/{name}");
        // Whatever was made goes again; what wasn't is not there.
        let _ = world.ask(Method::DELETE, &path, &[], None).await;
    }
    made?;
    let found = found.map_err(anyhow::Error::from)?;
    match found[..] {
        [_, true] => Err(wrong(format!(
            "a Secret made just now stands in {} as it was written",
            store.display()
        ))),
        [true, false] => {
            Ok("a ConfigMap made just now stands in the store's files, a Secret made with it doesn't".into())
        }
        _ => by_metrics(world).await,
    }
}

/// Which of some texts stand in files of a directory that were written since.
fn look(directory: &Path, since: SystemTime, texts: &[&[u8]]) -> std::io::Result<Vec<bool>> {
    let mut found = vec![false; texts.len()];
    let mut left = vec![directory.to_path_buf()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                // A clock of a file system may be a moment behind; one that writes by maps tells no time at all.
                let written = entry.metadata()?.modified()? + Duration::from_secs(5);
                if written >= since {
                    look_in(&entry.path(), texts, &mut found)?;
                }
            }
        }
    }
    Ok(found)
}

fn look_in(path: &Path, texts: &[&[u8]], found: &mut [bool]) -> std::io::Result<()> {
    let longest = texts.iter().map(|t| t.len()).max().unwrap_or(1);
    let (mut file, mut kept) = (File::open(path)?, Vec::new());
    loop {
        let start = kept.len();
        kept.resize(start + PIECE, 0);
        let read = file.read(&mut kept[start..])?;
        kept.truncate(start + read);
        for (text, found) in texts.iter().zip(found.iter_mut()) {
            *found = *found || contains(&kept, text);
        }
        if read == 0 {
            return Ok(());
        }
        kept.drain(..kept.len().saturating_sub(longest - 1));
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window[0] == text[0] && window == text)
}

/// What the server counts of values it has sealed, where its files can't be read.
async fn by_metrics(world: &World) -> Result<String, Seen> {
    let (code, page) = world.ask(Method::GET, "/metrics", &[], None).await?;
    let seals = |line: &&str| {
        line.starts_with("apiserver_storage_transformation_operations_total")
            && line.contains("transformation_type=\"to_storage\"")
            && line.contains("transformer_prefix=\"k8s:enc:")
            && line.contains("resource=\"secrets\"")
    };
    match page.lines().find(seals) {
        Some(_) if code == 200 => Ok("the server counts secrets that it has sealed".into()),
        _ => Err(doubtful(
            "the store's files aren't here, and the server has sealed no secret since it started",
        )),
    }
}

async fn audited(world: &World) -> Result<String, Seen> {
    let Some(log) = written_audit(world) else {
        return Err(wrong("there is no audit log"));
    };
    let mark = format!("keelson-doctor-{}", &mark()[..12]);
    let path = format!("/api/v1/namespaces/{mark}/secrets");
    world.ask(Method::GET, &path, &[], None).await?;
    let end = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < end {
        let tail = tail(&log).map_err(|e| anyhow::anyhow!("{}: {e}", log.display()))?;
        let event = tail.lines().find(|line| line.contains(&mark));
        if let Some(event) = event.and_then(|line| serde_json::from_str::<Value>(line).ok()) {
            let user = event["user"]["username"].as_str().unwrap_or_default();
            return Ok(format!("{} tells of a read just now, by {user}", log.display()));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(wrong(format!("{} tells nothing of a read of secrets", log.display())))
}

fn tail(path: &Path) -> std::io::Result<String> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(2 * TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_over_the_edge_of_two_pieces() {
        let directory = std::env::temp_dir().join(format!("keelson-doctor-look-{}", std::process::id()));
        fs::create_dir_all(directory.join("deeper")).unwrap();
        let mut bytes = vec![b'.'; PIECE - 3];
        bytes.extend(b"marked");
        bytes.extend(vec![b'.'; PIECE]);
        fs::write(directory.join("deeper/file"), bytes).unwrap();
        let found = look(&directory, SystemTime::UNIX_EPOCH, &[b"marked", b"absent"]).unwrap();
        assert_eq!(found, [true, false]);
        fs::remove_dir_all(directory).unwrap();
    }
}
