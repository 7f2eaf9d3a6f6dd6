//! Whether what this program was started with is still so: the node's addresses, and what a packet may measure on their link.
//!
//! Nearly everything of a node stands on these (its certificate, where it listens, the tunnel, pods' links), so a change is
//! followed as a restart follows it: components stop in order, the program begins anew, pods go on ([`crate::process`]).
//! The kernel tells of changes. One counts when it has stayed for a while: an address that is renewed goes for a moment, and a machine
//! without any has nowhere to go.

use crate::config::Config;
use crate::process;
use anyhow::Context;
use keelson_network::underlay;
use std::net::IpAddr;
use std::time::Duration;

/// Notices come in bursts.
const QUIET: Duration = Duration::from_millis(500);
/// How long a change has to stay, and at most, where one follows the other.
const SETTLED: Duration = Duration::from_secs(3);
const SETTLED_AT_LAST: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub addresses: Vec<IpAddr>,
    /// Of a pod's packet.
    pub mtu: u32,
}

impl Standing {
    /// As it is now, by options that were resolved now. `None`: no link of this machine has the address, or it can't be told.
    pub async fn of(config: &Config) -> Option<Standing> {
        let uplink = underlay::uplink(config.node_ip()).await;
        let uplink = uplink.inspect_err(|error| tracing::debug!(error = format!("{error:#}"), "this node's link"));
        Some(Standing {
            addresses: config.node_ips.clone(),
            mtu: config.network.mtu(&uplink.ok()?),
        })
    }
}

/// Resolves when something else than `began` has come to stay. `resolve`: the options, as they are meant on this machine now.
pub async fn changed(began: Option<Standing>, resolve: impl Fn() -> anyhow::Result<Config>) {
    let settled = settled(process::times_begun_anew());
    let watched = async {
        let mut changes = underlay::Changes::listen().context("the kernel's notices of addresses")?;
        loop {
            if let Some(other) = differing(&began, look(&resolve).await) {
                changes.skip(settled).await;
                if differing(&began, look(&resolve).await).as_ref() == Some(&other) {
                    tracing::info!(?began, now = ?other, "this node's address or MTU has changed: beginning anew with it; pods go on");
                    return anyhow::Ok(());
                }
                // It goes on changing: perhaps without another notice.
                continue;
            }
            changes.wait(QUIET).await;
        }
    };
    if let Err(error) = watched.await {
        tracing::warn!(
            error = format!("{error:#}"),
            "a changed address of this node is followed only when it is started again"
        );
        std::future::pending().await
    }
}

/// An address that goes to and fro is followed less and less often.
fn settled(times: u32) -> Duration {
    (SETTLED * 2_u32.pow(times.min(16))).min(SETTLED_AT_LAST)
}

/// Without an answer there is nothing to follow.
fn differing(began: &Option<Standing>, now: Option<Standing>) -> Option<Standing> {
    now.filter(|now| Some(now) != began.as_ref())
}

async fn look(resolve: &impl Fn() -> anyhow::Result<Config>) -> Option<Standing> {
    match resolve() {
        Ok(config) => Standing::of(&config).await,
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "this node's address can't be told");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_moves_to_and_fro_is_followed_more_slowly() {
        let seconds = |times| settled(times).as_secs();
        assert_eq!([0, 1, 3, 6, 7, u32::MAX].map(seconds), [3, 6, 24, 192, 300, 300]);
    }

    #[test]
    fn only_another_answer_is_a_change() {
        let standing = |mtu| Standing {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            mtu,
        };
        let began = Some(standing(1450));
        assert_eq!(differing(&began, Some(standing(1450))), None);
        assert_eq!(differing(&began, Some(standing(1350))), Some(standing(1350)));
        assert_eq!(differing(&began, None), None, "a cable that was pulled out");
        assert_eq!(
            differing(&None, Some(standing(1450))),
            Some(standing(1450)),
            "and put in again"
        );
    }
}
