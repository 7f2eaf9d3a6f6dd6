//! How components reach the cluster: clients, typed objects, informers, work queues, leader election and events.
//!
//! * [`factory`]: one [`kube::Client`] per identity, in-process or from a kubeconfig. A component can't tell which.
//! * [`accounts`]: clients that act as service accounts, by tokens that one user asks for.
//! * [`kind`]: the built-in types components use. Their (de)serialisation is compiled here, once, behind plain functions.
//! * [`rest`] and [`objects`]: requests as bytes, and the thin typed face of them.
//! * [`reflector`], [`store`] and [`informer`]: a local, indexed copy of a collection that is told of every change.
//! * [`selection`]: who selects whom by labels, without a look at all.
//! * [`together`]: informers of many clients in one process that share their watches.
//! * [`queue`] and [`controller`]: keys to work on; one key never runs twice at once, the earliest time wins.
//! * [`expect`]: a controller doesn't decide again before it has seen what it last wrote.
//! * [`snapshots`] and [`cluster_policies`]: kinds that are custom resources.
//! * [`labels`] and [`discovery`]: selectors, and which resources there are.
//! * [`declared_features`]: what pods need of a node that nodes declare.
//! * [`reviews`]: who asks a component, and whether they may, as the API server says.
//! * [`revocations`]: which certificates and tokens have been taken back.
//! * [`telling`]: what of queues, requests and elections is measured.
//! * [`leader`]: leader election on a Lease. [`events`]: `Event` objects, aggregated as clients expect.
//!
//! Nothing here knows the server, its store or, but for declared features, any rule of a single kind. Nothing polls: a timer stands only for a
//! back-off, a lease or a delay somebody asked for.

pub mod accounts;
pub mod cluster_policies;
pub mod controller;
pub mod declared_features;
pub mod discovery;
pub mod events;
pub mod expect;
pub mod factory;
pub mod informer;
pub mod key;
pub mod kind;
mod kubeconfig;
pub mod labels;
pub mod leader;
pub mod objects;
pub mod pace;
pub mod partial;
pub mod queue;
pub mod reflector;
pub mod rest;
pub mod reviews;
pub mod revocations;
pub mod selection;
pub mod snapshots;
pub mod store;
pub mod telling;
pub mod together;

pub use accounts::Accounts;
pub use controller::{Controller, Outcome, Reconcile};
pub use events::{EventType, Recorder};
pub use expect::Expectations;
pub use factory::{ClientFactory, KubeconfigFactory, from_kubeconfig, host, in_process};
pub use informer::{Change, Informer, InformerOptions, Informers};
pub use key::ObjectKey;
pub use kind::{ApiObject, Kind, ResourceId};
pub use objects::{Objects, Patch, delete_options};
pub use pace::Pace;
pub use partial::PartialObject;
pub use queue::WorkQueue;
pub use rest::{Error, Rest, Result, is_already_exists, is_conflict, is_forbidden, is_gone, is_invalid, is_not_found};
pub use store::Store;
pub use telling::Telling;
pub use together::Together;
