//! Gateways that share a port of the nodes' addresses with those who have it already, Ingress or another Gateway: by host.
//!
//! The load balancer gives a port of an address to one. A Gateway that comes too late is served where that one's requests come in, if all that it
//! listens for is nobody's there: its protocol is the same, its hosts are other ones, and it takes no name away from a rule that is older than
//! itself. When the port becomes free, it gets it by itself. What ListenerSets add to it has to keep to the same, and is left out else.

use super::attach::Listener;
use super::listeners::UNAVAILABLE;
use super::{Front, Owner, Plan, World};
use crate::kinds::Gateway;
use crate::table::{self, Host};
use keelson_client::ApiObject;

/// The ports and addresses of others by which a Gateway can be reached, or why it can't be.
pub fn front(world: &World, plan: &Plan, gateway: &Gateway, listeners: &mut [&mut Listener]) -> Result<Front, String> {
    let own = Owner::Gateway(gateway.key());
    let mut shared = Front::default();
    for listener in listeners {
        match join(world, plan, &own, &mut shared, listener) {
            // The Gateway's own come first: who adds to it takes nothing away from it.
            Err(why) if listener.set.is_some() => listener.refused = Some((UNAVAILABLE, why)),
            joined => joined?,
        }
    }
    match shared.ports.is_empty() {
        true => Err("it has no listener that could be served".into()),
        false => Ok(shared),
    }
}

fn join(world: &World, plan: &Plan, own: &Owner, shared: &mut Front, listener: &Listener) -> Result<(), String> {
    let (number, outer) = (listener.port, listener.outer());
    let has = |(owner, front): &(&Owner, &Front)| *owner != own && !front.taken && front.ports.contains_key(&outer);
    let mut all = world.fronts.iter().filter(|(_, f)| !f.addresses.is_empty()).filter(has);
    let (Some((_, front)), None) = (all.next(), all.next()) else {
        return Err(format!(
            "port {number} can't be shared, as it isn't one Gateway's or Ingress's"
        ));
    };
    if !shared.addresses.is_empty() && shared.addresses != front.addresses {
        return Err("its ports are on different addresses".into());
    }
    let Some(at) = front.ports.get(&outer) else {
        return Ok(());
    };
    if let Some(port) = plan.table.ports.get(at) {
        clash(port, listener).map_or(Ok(()), Err)?;
    }
    shared.addresses.clone_from(&front.addresses);
    shared.ports.insert(outer, *at);
    Ok(())
}

/// What keeps a listener from sharing a port.
fn clash(port: &table::Port, listener: &Listener) -> Option<String> {
    let number = port.number;
    if port.speaks != listener.speaks {
        return Some(format!(
            "port {number} can't be shared, as another protocol is spoken there"
        ));
    }
    let name = |host: &Host| match host.text() {
        "" => "all hosts".to_string(),
        text => text.to_string(),
    };
    port.listeners.iter().find_map(|other| {
        if other.host == listener.host {
            return Some(format!(
                "port {number} is already listened on for {}",
                name(&other.host)
            ));
        }
        // The more specific listener takes requests away from the other.
        if other.host.rank() > listener.host.rank() {
            return None;
        }
        let older = other.hosts.iter().find(|(host, rules)| {
            !host.is_empty()
                && Host::new(host).and(&listener.host).is_some()
                && rules.iter().any(|r| r.order.created <= listener.since)
        });
        older.map(|(host, _)| format!("on port {number} an older rule is for {host}"))
    })
}
