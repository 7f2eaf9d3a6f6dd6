//! The resource metrics API, `metrics.k8s.io/v1beta1`: what `kubectl top` and horizontal pod autoscalers read.
//!
//! An extension server like metrics-server, whose place it takes and which can take its place: the API server passes on what
//! the APIService `v1beta1.metrics.k8s.io` says. It keeps no watch and asks nobody unless it is asked: an answer comes of two
//! looks at the kubelets' `/metrics/resource`, of which the second is at most [`FRESH`] old. Who asks for the first time in a
//! while waits for the second look.
//!
//! Kubelets are asked directly, as metrics-server asks them: who may reach them through the API by `nodes/proxy` may run
//! commands in every pod. A kubelet is trusted with what it says of the pods that are bound to its node, and with little of this
//! program's memory and time.
//!
//! It knows the cluster by the API only. Who may read is decided before a request gets here.

mod api;
mod cluster;
mod openapi;
mod scrape;
mod usage;

pub use api::MetricsServer;
pub use scrape::{AT_ONCE, Address, Kubelets, MOST_BYTES, PATH, PATIENCE};
pub use usage::{AFTER_FAILURE, FRESH, LONGEST, SHORTEST};
