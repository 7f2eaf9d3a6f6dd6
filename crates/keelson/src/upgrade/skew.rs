//! Which versions may follow each other, and run beside each other: upstream's rules, of minor versions of Kubernetes. Servers go
//! first, one minor version at a time, and no node is newer than its servers.

use super::probe::Told;
use crate::install::{Role, newer};
use anyhow::{Context, bail, ensure};

/// Of `v1.37.2` the second number; the first has been 1 for ever.
pub fn minor(version: &str) -> anyhow::Result<u32> {
    let mut parts = version.trim_start_matches('v').split('.');
    let minor = parts.next().filter(|major| *major == "1").and(parts.next());
    minor
        .and_then(|minor| minor.parse().ok())
        .with_context(|| format!("{version:?} is no version of Kubernetes"))
}

/// `others`: versions of the cluster's other nodes, by name; `server`: of the server that answers.
pub fn judge(role: Role, from: &Told, to: &Told, server: &str, others: &[(String, String)]) -> anyhow::Result<()> {
    let (was, is, served) = (minor(&from.kubernetes)?, minor(&to.kubernetes)?, minor(server)?);
    ensure!(
        is >= was && !newer(&from.version, &to.version),
        "keelson {} (Kubernetes {}) is older than what runs, {} (Kubernetes {}): `keelson rollback` goes back to the program before",
        to.version,
        to.kubernetes,
        from.version,
        from.kubernetes
    );
    ensure!(
        is <= was + 1,
        "Kubernetes goes from one minor version to the next: 1.{was} to 1.{is} would leave some out"
    );
    if role == Role::Agent {
        ensure!(
            is <= served,
            "no node may be newer than its servers, and the server has Kubernetes 1.{served}: upgrade the servers first"
        );
        return Ok(());
    }
    for (name, version) in others {
        let theirs = minor(version).with_context(|| format!("node {name}"))?;
        if theirs + 1 < is {
            bail!("node {name} has Kubernetes 1.{theirs}: bring it to 1.{} first", is - 1);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_first_and_one_minor_version_at_a_time() {
        let told = |text: &str| {
            let (version, kubernetes) = text.split_once(' ').unwrap();
            Told {
                version: version.into(),
                kubernetes: kubernetes.into(),
                ..Told::default()
            }
        };
        use Role::{Agent, Server};
        for (role, from, to, server, others, wanted) in [
            (Server, "0.1.0 1.37.2", "0.1.0 1.37.2", "v1.37.2", &[][..], None),
            (Server, "0.1.0 1.37.2", "0.2.0 1.37.4", "v1.37.2", &["v1.37.2"], None),
            (
                Server,
                "0.1.0 1.37.2",
                "0.2.0 1.38.0",
                "v1.37.2",
                &["v1.37.0", "v1.38.0"],
                None,
            ),
            (
                Server,
                "0.1.0 1.37.2",
                "0.2.0 1.39.0",
                "v1.37.2",
                &[],
                Some("leave some out"),
            ),
            (
                Server,
                "0.2.0 1.37.2",
                "0.1.0 1.37.2",
                "v1.37.2",
                &[],
                Some("keelson rollback"),
            ),
            (
                Server,
                "0.2.0 1.38.0",
                "0.3.0 1.37.2",
                "v1.38.0",
                &[],
                Some("keelson rollback"),
            ),
            (
                Server,
                "0.1.0 1.37.2",
                "0.2.0 1.38.0",
                "v1.37.2",
                &["v1.36.1"],
                Some("node n0"),
            ),
            (
                Server,
                "0.1.0 1.37.2",
                "0.2.0 1.38.0",
                "v1.37.2",
                &["x"],
                Some("no version"),
            ),
            (
                Agent,
                "0.1.0 1.37.2",
                "0.2.0 1.38.0",
                "v1.37.2",
                &[],
                Some("servers first"),
            ),
            (Agent, "0.1.0 1.37.2", "0.2.0 1.38.0", "v1.38.0", &["v1.30.0"], None),
        ] {
            let others: Vec<_> = others
                .iter()
                .enumerate()
                .map(|(n, version)| (format!("n{n}"), (*version).to_owned()))
                .collect();
            let judged = judge(role, &told(from), &told(to), server, &others);
            match (judged, wanted) {
                (Ok(()), None) => {}
                (Err(e), Some(wanted)) => assert!(format!("{e:#}").contains(wanted), "{from} to {to}: {e:#}"),
                (judged, _) => panic!("{from} to {to}: {judged:?}"),
            }
        }
    }
}
