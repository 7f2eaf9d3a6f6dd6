//! ListenerSets: listeners that others than a Gateway's owner add to it, if it lets them.
//!
//! A Gateway's own go before those of sets, those of older sets before younger ones: what is in conflict with an earlier one isn't served.

use super::attach::{Listener, Place, Set, is_from};
use super::listeners::{self, GATEWAY, Holder, UNAVAILABLE};
use super::status::{OfListener, OfSet, Told};
use super::{World, created};
use crate::kinds::{GROUP, ListenerSet};
use crate::table::Outer;
use keelson_client::ApiObject;
use std::collections::BTreeSet;
use std::sync::Arc;

pub fn add(world: &World, place: &mut Place) {
    let gateway = place.gateway.clone();
    let is_ours = |set: &&Arc<ListenerSet>| {
        let parent = &set.spec.parent_ref;
        parent.group.as_deref().unwrap_or(GROUP) == GROUP
            && parent.kind.as_deref().unwrap_or(GATEWAY) == GATEWAY
            && parent.name == gateway.name()
            && parent.namespace.as_deref().unwrap_or(set.namespace()) == gateway.namespace()
    };
    let all = world.listener_sets.iter().filter(|s| !s.is_deleting());
    let mut all: Vec<&Arc<ListenerSet>> = all.filter(is_ours).collect();
    all.sort_by_key(|s| (created(s.as_ref()), s.key()));
    let from = gateway
        .spec
        .allowed_listeners
        .as_ref()
        .and_then(|a| a.namespaces.as_ref());
    for set in all {
        let allowed = is_from(world, from, "None", gateway.namespace(), set.namespace());
        if allowed {
            listen(world, set, place);
        }
        place.sets.push(Set {
            key: set.key(),
            allowed,
        });
    }
}

fn listen(world: &World, set: &ListenerSet, place: &mut Place) {
    let holder = Holder {
        kind: listeners::SET,
        key: set.key(),
        since: created(set).max(created(place.gateway.as_ref())),
        listeners: &[],
    };
    let all = set.spec.listeners.iter().map(|one| {
        let mut read = listeners::read(world, &holder, one);
        read.conflict = clash(&read, &place.listeners);
        (one, read)
    });
    let all: Vec<_> = all.collect();
    // Who isn't served for the sake of an earlier one is in nobody else's way.
    let left = all.iter().filter(|(_, read)| read.conflict.is_none());
    let left: Vec<_> = left.map(|(one, _)| (*one).clone()).collect();
    for (one, mut read) in all {
        read.conflict = read.conflict.or_else(|| listeners::conflict(one, &left));
        place.listeners.push(read);
    }
}

fn clash(listener: &Listener, earlier: &[Listener]) -> Option<&'static str> {
    let same = |l: &&Listener| l.outer() == listener.outer() && l.refused.is_none() && l.conflict.is_none();
    let clashes =
        earlier
            .iter()
            .filter(same)
            .filter_map(|l| match (l.speaks == listener.speaks, l.host == listener.host) {
                (false, _) => Some("ProtocolConflict"),
                (true, true) => Some("HostnameConflict"),
                _ => None,
            });
    clashes.max()
}

/// The ports that a Gateway wouldn't have without sets. One without listeners of its own has nothing to lose by them.
pub fn extra<'a>(all: impl Iterator<Item = &'a Listener>) -> BTreeSet<Outer> {
    let (of_sets, own): (Vec<&Listener>, Vec<&Listener>) = all.partition(|l| l.set.is_some());
    let own: BTreeSet<Outer> = own.into_iter().map(Listener::outer).collect();
    let of_sets = of_sets.into_iter().map(Listener::outer);
    of_sets.filter(|port| !own.is_empty() && !own.contains(port)).collect()
}

/// What sets ask for beyond the Gateway isn't asked for, as somebody else has some of it: the Gateway keeps what it has without them.
pub fn leave_out(all: &mut [Listener], extra: &BTreeSet<Outer>) {
    let asks = |l: &Listener| l.refused.is_none() && l.conflict.is_none() && extra.contains(&l.outer());
    for listener in all.iter_mut().filter(|l| asks(l)) {
        let why = "The Gateway can't have all ports that are added to it: one of them is somebody else's";
        listener.refused = Some((UNAVAILABLE, why.into()));
    }
}

/// `reached`: the Gateway has an address.
pub fn told(set: &Set, accepted: bool, reached: bool, all: Vec<(bool, OfListener)>) -> OfSet {
    let good = all.iter().filter(|(serves, _)| *serves).count();
    let refused = match (set.allowed, accepted) {
        (false, _) => Some(("NotAllowed", "The Gateway takes in no listeners of this namespace")),
        (true, false) => Some(("ParentNotAccepted", "The Gateway is not accepted")),
        (true, true) if good == 0 => Some(("ListenersNotValid", "No listener is valid")),
        _ => None,
    };
    let conditions = match refused {
        Some((reason, why)) => ["Accepted", "Programmed"].map(|kind| Told::new(kind, false, reason, why)),
        None => {
            let accepted = match good == all.len() {
                true => Told::new("Accepted", true, "Accepted", "All listeners are valid"),
                false => Told::new("Accepted", true, "ListenersNotValid", "Some listeners are not valid"),
            };
            let programmed = match reached {
                true => Told::new(
                    "Programmed",
                    true,
                    "Programmed",
                    "The listeners are served on every node",
                ),
                false => Told::new("Programmed", false, "Pending", "The Gateway has no address yet"),
            };
            [accepted, programmed]
        }
    };
    OfSet {
        conditions: conditions.to_vec(),
        listeners: all.into_iter().map(|(_, told)| told).collect(),
    }
}
