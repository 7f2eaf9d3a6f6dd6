//! Nodes: created whole, status included (kubelets register so); later the status has its own path.

use crate::context::Cx;
use crate::strategy::{Behaviour, restore};
use keelson_api::Object;

pub const NODE: Behaviour = Behaviour {
    prepare_create: create,
    prepare_update: update,
    ..Behaviour::DEFAULT
};

/// Dynamic kubelet configuration is no more.
fn create(_: &Cx, o: &mut Object) {
    o.remove_at(&["spec", "configSource"]);
    o.remove_at(&["status", "config"]);
}

fn update(_: &Cx, new: &mut Object, old: &Object) {
    restore(&mut new.0, Some(&old.0), "status");
    if old.at(&["spec", "configSource"]).is_none() {
        new.remove_at(&["spec", "configSource"]);
    }
}
