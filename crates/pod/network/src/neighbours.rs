//! Beside other programs' firewalls: pods' packets are accepted where Docker, ufw and others drop what is forwarded.
//!
//! An accept of one table doesn't lift another's drop, so it has to stand in the chain that drops: `FORWARD` of `ip filter`,
//! which is iptables' (and so Docker's and ufw's). Two rules at its head, known by their comment, put back when they are
//! removed, taken out by `uninstall`. As kube-proxy and flannel do it. Other firewalls' chains are their administrators';
//! `keelson doctor` names those that stand in the way.

use crate::ports::LINK_PREFIX;
use anyhow::Context;
use keelson_sys::nft::{self, Cmp, Expr, Family, Hook, Op, Verdict};

pub const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
const COMMENT: &str = "keelson: pods";

fn there() -> std::io::Result<bool> {
    let forward =
        |c: &nft::FoundChain| c.family == Family::Ip && c.table == TABLE && c.name == CHAIN && c.hook == Hook::Forward;
    Ok(nft::chains()?.iter().any(forward))
}

/// Accepts pods' packets, if there is such a chain and it doesn't yet.
pub fn accept_pods() -> anyhow::Result<()> {
    if !there().context("reading the machine's chains")? {
        return Ok(());
    }
    let ours = nft::rules(Family::Ip, TABLE, CHAIN)?;
    let ours = ours.iter().filter(|r| r.comment.as_deref() == Some(COMMENT));
    if ours.count() == 2 {
        return Ok(());
    }
    remove()?;
    let (cmp, prefix) = (Cmp::Eq, LINK_PREFIX.to_string());
    let links = [
        Expr::InputName {
            cmp,
            prefix: prefix.clone(),
        },
        Expr::OutputName { cmp, prefix },
    ];
    let ops = links.map(|link| Op::InsertRule {
        chain: CHAIN.into(),
        exprs: vec![link, Expr::Verdict(Verdict::Accept)],
        comment: COMMENT.into(),
    });
    nft::apply(Family::Ip, TABLE, &ops).context("accepting pods in the chain FORWARD of ip filter")?;
    tracing::info!("another firewall filters what is forwarded: its chain FORWARD of ip filter now accepts pods");
    Ok(())
}

/// Takes the rules out again.
pub fn remove() -> anyhow::Result<()> {
    for rule in nft::rules(Family::Ip, TABLE, CHAIN).context("reading the rules of FORWARD")? {
        if rule.comment.as_deref() == Some(COMMENT) {
            let delete = Op::DeleteRule {
                chain: CHAIN.into(),
                handle: rule.handle,
            };
            nft::apply(Family::Ip, TABLE, &[delete]).context("removing a rule of FORWARD")?;
        }
    }
    Ok(())
}
