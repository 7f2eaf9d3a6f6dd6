//! Add-ons: files of servers' directories as objects of the cluster, and k3s' `HelmChart` objects.
//!
//! * [`source`]: each server tells the cluster what the files of its directories say, as Secrets. It applies nothing.
//! * [`apply`]: one server at a time makes objects of that: in order, under a field manager of its own, with an inventory by which it prunes.
//! * [`manifest`], [`order`], [`inventory`], [`health`], [`choose`], [`drift`]: what a file says, what comes before what, what was applied, how it is,
//!   whose file counts, and what has to be applied again. Pure.
//! * [`helm`]: jobs that run helm for charts that are objects, as k3s' helm-controller makes them.
//! * [`run`]: who leads, and when anything runs at all.
//!
//! Knows the cluster by the API only. What a file says is never logged: it may be a secret.

pub mod addon;
pub mod apply;
pub mod choose;
mod definitions;
pub mod drift;
pub mod health;
pub mod helm;
pub mod inventory;
mod kinds;
pub mod live;
pub mod manifest;
pub mod order;
pub mod run;
pub mod source;

pub use addon::Addon;
pub use definitions::addon as addon_definition;
pub use run::{Config, run};

/// By which objects are applied.
pub const MANAGER: &str = "keelson-addons";
/// On every object that is applied: its add-on.
pub const LABEL: &str = "keelson.dev/addon";
/// On an object, or in a file: `"false"`, and it stays when no file says it any more.
pub const PRUNE: &str = "keelson.dev/prune";
/// In a file, on any of its objects: names of add-ons, by commas, that have to be ready before.
pub const DEPENDS_ON: &str = "keelson.dev/depends-on";
/// On an object of a file: `"true"`, and it is deleted and made anew where the API refuses to change it.
pub const REPLACE: &str = "keelson.dev/replace";
pub(crate) const JSON: &str = "application/json";
