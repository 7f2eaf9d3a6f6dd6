//! Runs one plug-in.

use super::result;
use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// What a plug-in may write, and how long it may take.
const MOST: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What it answers. Of this program's environment it gets the search path only.
pub async fn invoke(
    programs: &Path,
    kind: &str,
    configuration: Map<String, Value>,
    environment: Vec<(&'static str, String)>,
) -> anyhow::Result<Vec<u8>> {
    let program = programs.join(kind);
    ensure!(
        program.is_file(),
        "failed to find plugin {kind:?} in path [{}]",
        programs.display()
    );
    let mut child = Command::new(&program)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into()))
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let text = Value::Object(configuration).to_string();
    let work = async {
        let told = async {
            if let Some(mut stdin) = stdin {
                // Whoever doesn't read it says why by its status.
                let _ = stdin.write_all(text.as_bytes()).await;
            }
        };
        let ((), output, errors) = tokio::join!(told, read(stdout), read(stderr));
        anyhow::Ok((output?, errors?, child.wait().await?))
    };
    let ended = tokio::time::timeout(PATIENCE, work).await;
    let (output, errors, status) = ended.with_context(|| format!("no answer in {PATIENCE:?}"))??;
    if !status.success() {
        bail!("{}", result::failure(&output, &errors));
    }
    Ok(output)
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MOST + 1).read_to_end(&mut bytes).await?;
    }
    ensure!(bytes.len() as u64 <= MOST, "it wrote more than {MOST} bytes");
    Ok(bytes)
}
