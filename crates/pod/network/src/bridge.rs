//! A bridge of this machine with machines on it that are network namespaces: what clusters on one developer's machine are joined
//! by. They reach the world with this machine's address, and are reached from it by theirs.

use crate::{link, sysctl};
use anyhow::{Context, ensure};
use ipnet::Ipv4Net;
use keelson_sys::nft::{self, Base, ChainKind, Cmp, Expr, Family, Hook, Load, Op};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};
use std::net::Ipv4Addr;
use std::path::Path;

#[derive(Clone, Debug)]
pub struct Bridge {
    /// Of the link and of the nftables table; with a number behind, of the machines' cables: at most 11 bytes.
    pub name: String,
    /// Its first address is this machine's.
    pub range: Ipv4Net,
    /// Whose it is, as the link's alias tells: a link of the name that is another's is left alone.
    pub owner: String,
}

/// The most that an alias has.
const ALIAS: usize = 255;

impl Bridge {
    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.range.network().to_bits() + 1)
    }

    fn cable(&self, number: u8) -> String {
        format!("{}p{number}", self.name)
    }

    /// The owner's end of it, where it is too long.
    fn alias(&self) -> &str {
        let least = self.owner.len().saturating_sub(ALIAS);
        let from = (least..=self.owner.len()).find(|at| self.owner.is_char_boundary(*at));
        &self.owner[from.unwrap_or(0)..]
    }

    fn judge(&self, alias: &str) -> anyhow::Result<()> {
        ensure!(
            alias.is_empty() || alias == self.alias(),
            "the link {} is that of {alias}: remove that first",
            self.name
        );
        Ok(())
    }

    /// Refuses a link of the name that is another's. Tells whether there is one.
    async fn ours(&self, handle: &Handle) -> anyhow::Result<bool> {
        let alias = link::alias(handle, &self.name).await?;
        alias.as_deref().map_or(Ok(()), |alias| self.judge(alias))?;
        Ok(alias.is_some())
    }

    /// Makes the bridge, if it isn't there. `state_dir` keeps what [`Bridge::forward_no_more`] puts back.
    pub async fn make(&self, state_dir: &Path) -> anyhow::Result<()> {
        let (handle, driver) = link::here()?;
        if !self.ours(&handle).await? {
            let added = handle.link().add(LinkBridge::new(&self.name).build()).execute().await;
            added.with_context(|| format!("making the bridge {}", self.name))?;
        }
        let index = link::must_index(&handle, &self.name).await?;
        let named = LinkUnspec::new_with_index(index).alias(self.alias()).build();
        handle.link().set(named).execute().await?;
        let address = Ipv4Net::new(self.gateway(), self.range.prefix_len())?;
        link::add_address(&handle, index, address.into()).await?;
        link::up(&handle, index).await?;
        driver.abort();
        sysctl::switch_forwarding_on(state_dir, Family::Ip)?;
        nft::exchange(Family::Ip, &self.name, &self.masquerade()).context("the machines' way to the world")
    }

    fn masquerade(&self) -> Vec<Op> {
        let range = |load, cmp| Expr::MatchPrefix {
            load,
            cmp,
            addr: self.range.network().into(),
            prefix: self.range.prefix_len(),
        };
        vec![
            Op::AddTable,
            Op::DeleteTable,
            Op::AddTable,
            Op::AddChain {
                name: "postrouting".into(),
                base: Some(Base {
                    kind: ChainKind::Nat,
                    hook: Hook::Postrouting,
                    priority: 100,
                }),
            },
            Op::AddRule {
                chain: "postrouting".into(),
                exprs: vec![
                    range(Load::SourceAddr(Family::Ip), Cmp::Eq),
                    range(Load::DestinationAddr(Family::Ip), Cmp::Neq),
                    Expr::Masquerade,
                ],
            },
        ]
    }

    /// A machine: a namespace that is kept at `netns`, with `address` on its `eth0`. One that is there stays.
    pub async fn join(&self, number: u8, netns: &Path, address: Ipv4Addr) -> anyhow::Result<()> {
        let (handle, driver) = link::here()?;
        self.ours(&handle).await?;
        let cable = self.cable(number);
        if link::index_of(&handle, &cable).await?.is_some() && keelson_sys::mount::is_mounted(netns)? {
            driver.abort();
            return Ok(());
        }
        link::delete(&handle, &cable).await?;
        keelson_sys::net::keep_new_namespace(netns)
            .with_context(|| format!("making the network namespace {}", netns.display()))?;
        let namespace = keelson_sys::process::open_namespace(netns)?;
        link::veth(&handle, &cable, &namespace, 0).await?;
        let (port, bridge) = (
            link::must_index(&handle, &cable).await?,
            link::must_index(&handle, &self.name).await?,
        );
        let plugged = LinkUnspec::new_with_index(port).controller(bridge).up().build();
        handle.link().set(plugged).execute().await?;
        driver.abort();
        let (own, gateway) = (Ipv4Net::new(address, self.range.prefix_len())?, self.gateway());
        link::in_namespace(netns.to_path_buf(), async move |handle| {
            link::loopback_up(&handle).await?;
            let index = link::must_index(&handle, "eth0").await?;
            link::add_address(&handle, index, own.into()).await?;
            link::up(&handle, index).await?;
            let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
            handle.route().add(default).replace().execute().await?;
            Ok(())
        })
        .await
        .with_context(|| format!("the network of machine {number}"))
    }

    /// Takes a machine's namespace and cable away. What runs in it goes on without a cable.
    pub async fn leave(&self, number: u8, netns: &Path) -> anyhow::Result<()> {
        let (handle, driver) = link::here()?;
        self.ours(&handle).await?;
        link::delete(&handle, &self.cable(number)).await?;
        driver.abort();
        keelson_sys::net::forget_namespace(netns).with_context(|| format!("{}", netns.display()))
    }

    pub async fn remove(&self) -> anyhow::Result<()> {
        let (handle, driver) = link::here()?;
        self.ours(&handle).await?;
        link::delete(&handle, &self.name).await?;
        driver.abort();
        nft::remove(Family::Ip, &self.name)?;
        Ok(())
    }

    /// Refuses a link of the name that is another's.
    pub async fn check(&self) -> anyhow::Result<()> {
        let (handle, driver) = link::here()?;
        let ours = self.ours(&handle).await;
        driver.abort();
        ours.map(drop)
    }

    /// Whether this machine has a link of the name.
    pub async fn is_there(&self) -> anyhow::Result<bool> {
        let (handle, driver) = link::here()?;
        let found = link::index_of(&handle, &self.name).await?;
        driver.abort();
        Ok(found.is_some())
    }

    /// Where this machine's routes lead, but for the default one.
    pub async fn routes() -> anyhow::Result<Vec<Ipv4Net>> {
        let (handle, driver) = link::here()?;
        let found = link::routes(&handle).await;
        driver.abort();
        found
    }

    /// When the last bridge has gone.
    pub fn forward_no_more(state_dir: &Path) -> anyhow::Result<()> {
        sysctl::restore_forwarding(state_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_tells_whose_it_is() {
        let of = |owner: &str| Bridge {
            name: "kldev0".into(),
            range: Ipv4Net::new_assert(Ipv4Addr::new(10, 213, 0, 0), 24),
            owner: owner.into(),
        };
        assert!(of("/a/dev").judge("/a/dev").is_ok() && of("/a/dev").judge("").is_ok());
        let refused = of("/a/dev").judge("/b/dev").unwrap_err().to_string();
        assert!(refused.contains("/b/dev"), "{refused}");
        let long = of(&format!("/x{}", "ü".repeat(200)));
        assert!(long.alias().len() <= ALIAS && long.owner.ends_with(long.alias()));
    }
}
