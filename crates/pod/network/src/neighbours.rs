//! Beside other programs' firewalls: pods' packets are accepted where Docker, ufw and others drop what is forwarded.
//!
//! An accept of one table doesn't lift another's drop, so it has to stand in the chain that drops: `FORWARD` of `ip filter`
//! and of `ip6 filter`, which are iptables' (and so Docker's and ufw's). Two rules at its head, known by their comment, put back when they are
//! removed, taken out by `uninstall`. As kube-proxy and flannel do it. Other firewalls' chains are their administrators';
//! `keelson doctor` names those that stand in the way.

use crate::ports::LINK_PREFIX;
use anyhow::Context;
use keelson_sys::nft::{self, Cmp, Expr, Family, Hook, Op, Verdict};

pub const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
const COMMENT: &str = "keelson: pods";

const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

fn word(family: Family) -> &'static str {
    match family {
        Family::Ip6 => "ip6",
        _ => "ip",
    }
}

/// Accepts pods' packets of these families, where there is such a chain and it doesn't yet.
pub fn accept_pods(families: impl IntoIterator<Item = Family>) -> anyhow::Result<()> {
    let chains = nft::chains().context("reading the machine's chains")?;
    for family in families {
        let forward =
            |c: &nft::FoundChain| c.family == family && c.table == TABLE && c.name == CHAIN && c.hook == Hook::Forward;
        if chains.iter().any(forward) {
            accept(family)?;
        }
    }
    Ok(())
}

fn accept(family: Family) -> anyhow::Result<()> {
    let ours = nft::rules(family, TABLE, CHAIN)?;
    let ours = ours.iter().filter(|r| r.comment.as_deref() == Some(COMMENT));
    if ours.count() == 2 {
        return Ok(());
    }
    remove_of(family)?;
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
    let name = word(family);
    nft::apply(family, TABLE, &ops).with_context(|| format!("accepting pods in the chain FORWARD of {name} filter"))?;
    tracing::info!("another firewall filters what is forwarded: its chain FORWARD of {name} filter now accepts pods");
    Ok(())
}

/// Takes the rules out again.
pub fn remove() -> anyhow::Result<()> {
    FAMILIES.into_iter().try_for_each(remove_of)
}

fn remove_of(family: Family) -> anyhow::Result<()> {
    for rule in nft::rules(family, TABLE, CHAIN).context("reading the rules of FORWARD")? {
        if rule.comment.as_deref() == Some(COMMENT) {
            let delete = Op::DeleteRule {
                chain: CHAIN.into(),
                handle: rule.handle,
            };
            nft::apply(family, TABLE, &[delete]).context("removing a rule of FORWARD")?;
        }
    }
    Ok(())
}
