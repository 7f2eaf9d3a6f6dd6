//! Which addresses of which pool a service gets: pure, and the same whenever it is asked. MetalLB's rules: what a service has it keeps while
//! that is allowed; pools for some services come before those for all, pools and addresses of one sort from the lowest on.

use super::ports::Port;
use super::wish::{User, Wish};
use keelson_balancing::{Pool, Pools};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Who has which addresses.
pub struct Holders<'a> {
    /// The users of an address.
    pub users: &'a dyn Fn(IpAddr) -> Vec<User>,
    /// The nodes' own, which nobody gets.
    pub nodes: &'a BTreeSet<IpAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    pub pool: String,
    /// One of each family, the service's first family first.
    pub addresses: Vec<IpAddr>,
}

/// Whether it might get an address from a pool that it doesn't name.
pub fn is_selected(wish: &Wish, pools: &Pools) -> bool {
    let asked = wish.addresses.iter().any(|ip| pools.of(*ip).is_some());
    asked || (wish.addresses.is_empty() && automatic(wish, pools).next().is_some())
}

/// What it gets, or why nothing.
pub fn allocate(wish: &Wish, pools: &Pools, holders: &Holders) -> Result<Given, String> {
    if let Some(kept) = kept(wish, pools, holders) {
        return Ok(kept);
    }
    if !wish.addresses.is_empty() {
        return assigned(wish, &wish.addresses, pools, holders);
    }
    if let Some(name) = &wish.pool {
        let pool = pools.get(name).ok_or_else(|| format!("unknown pool {name:?}"))?;
        if !selects(pool, wish) {
            return Err(format!("pool {name} not compatible for ip assignment"));
        }
        let found = of_pool(wish, pool, holders);
        return given(wish, pool, found).ok_or_else(|| format!("no available IPs in pool {name:?}"));
    }
    let found: Vec<(&Pool, Vec<IpAddr>)> = automatic(wish, pools).map(|p| (p, of_pool(wish, p, holders))).collect();
    let whole = found
        .iter()
        .find(|(_, addresses)| addresses.len() == 1 + usize::from(wish.families.both));
    // Of the first family rather than of the second.
    let partly = || {
        let of = |v6: bool| move |(_, addresses): &&(&Pool, Vec<IpAddr>)| addresses.iter().any(|ip| ip.is_ipv6() == v6);
        let first = wish.families.v6_first;
        found.iter().find(of(first)).or_else(|| found.iter().find(of(!first)))
    };
    let best = whole.or_else(partly);
    best.and_then(|(pool, addresses)| given(wish, pool, addresses.clone()))
        .ok_or_else(|| "no available IPs".to_string())
}

/// Pools that give to who doesn't name them, in the order in which they are asked.
fn automatic<'a>(wish: &'a Wish, pools: &'a Pools) -> impl Iterator<Item = &'a Pool> {
    let all = move || pools.iter().filter(move |pool| pool.auto_assign && selects(pool, wish));
    all()
        .filter(|p| !p.is_for_all())
        .chain(all().filter(|p| p.is_for_all()))
}

fn selects(pool: &Pool, wish: &Wish) -> bool {
    pool.selects(wish.labels.as_ref(), wish.namespace.as_ref())
}

fn given(wish: &Wish, pool: &Pool, addresses: Vec<IpAddr>) -> Option<Given> {
    wish.families.fit(&addresses).then(|| Given {
        pool: pool.name.clone(),
        addresses,
    })
}

/// What it has, if that may stay; with an address of the second family if it would have one and there is one now.
fn kept(wish: &Wish, pools: &Pools, holders: &Holders) -> Option<Given> {
    let sorted = |list: &[IpAddr]| list.iter().copied().collect::<BTreeSet<_>>();
    if !wish.addresses.is_empty() && sorted(&wish.addresses) != sorted(&wish.has) {
        return None;
    }
    let mut kept = assigned(wish, &wish.has, pools, holders).ok()?;
    if wish.families.both && kept.addresses.len() == 1 && wish.addresses.is_empty() {
        let there = kept.addresses[0];
        let more = of_pool(wish, pools.get(&kept.pool)?, holders);
        let other = more.into_iter().find(|ip| ip.is_ipv6() != there.is_ipv6());
        kept.addresses.extend(other);
        kept.addresses.sort_by_key(|ip| ip.is_ipv6() != wish.families.v6_first);
    }
    Some(kept)
}

/// Exactly these, if they may be had.
fn assigned(wish: &Wish, addresses: &[IpAddr], pools: &Pools, holders: &Holders) -> Result<Given, String> {
    let pool = addresses.first().and_then(|ip| pools.of(*ip));
    let pool = pool.filter(|pool| addresses.iter().all(|ip| pool.has(*ip)));
    let pool = pool.ok_or_else(|| format!("{addresses:?} is not allowed in config"))?;
    if !selects(pool, wish) {
        return Err(format!("pool {} not compatible for ip assignment", pool.name));
    }
    if wish.pool.as_ref().is_some_and(|wanted| *wanted != pool.name) {
        let wanted = wish.pool.as_deref().unwrap_or_default();
        return Err(format!(
            "requested loadBalancer IP(s) {addresses:?} is not compatible with requested address pool {wanted}"
        ));
    }
    addresses.iter().try_for_each(|ip| may_have(wish, *ip, holders))?;
    given(wish, pool, addresses.to_vec()).ok_or_else(|| format!("{addresses:?} are not of the service's families"))
}

/// The first addresses of the pool that it may have, one of each of its families, the first family's first.
fn of_pool(wish: &Wish, pool: &Pool, holders: &Holders) -> Vec<IpAddr> {
    let of_family = |v6: bool| {
        // As long as what is held: one is passed over only because somebody has it, or for how it ends.
        let all = pool
            .ranges
            .iter()
            .filter(|r| r.is_v6() == v6)
            .flat_map(|r| r.addresses());
        all.filter(|ip| !pool.avoids(*ip))
            .find(|ip| may_have(wish, *ip, holders).is_ok())
    };
    let (first, both) = (wish.families.v6_first, wish.families.both);
    let second = both.then(|| of_family(!first)).flatten();
    of_family(first).into_iter().chain(second).collect()
}

fn may_have(wish: &Wish, ip: IpAddr, holders: &Holders) -> Result<(), String> {
    if holders.nodes.contains(&ip) {
        return Err(format!("{ip} is a node's own address"));
    }
    let others = (holders.users)(ip).into_iter().filter(|user| user.key != wish.user.key);
    others.into_iter().try_for_each(|other| beside(&wish.user, &other, ip))
}

/// Whether both can have the address.
fn beside(new: &User, there: &User, ip: IpAddr) -> Result<(), String> {
    let shares = |why: &str| {
        Err(format!(
            "can't change sharing key for {:?}, address {ip} also in use by {}: {why}",
            new.key, there.key
        ))
    };
    if there.sharing.is_empty() {
        return shares("existing service does not allow sharing");
    }
    if new.sharing.is_empty() {
        return shares("new service does not allow sharing");
    }
    if new.sharing != there.sharing {
        return shares("sharing keys differ");
    }
    if new.backend != there.backend {
        return shares("backend key differs");
    }
    // What somebody has, he doesn't lose to one who has come to want it.
    let taken = |port: &&Port| there.held.contains(port) || (there.ports.contains(port) && !new.held.contains(port));
    match new.ports.iter().find(taken) {
        Some(port) => Err(format!("port {port} is already in use on {ip:?} by {}", there.key)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
