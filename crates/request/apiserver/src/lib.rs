//! A request from the socket to the response: chain, authentication, authorisation, admission, handlers, discovery, OpenAPI.
//!
//! [`chain`] is the way of every request, whether it comes from the network or from within the process. [`ApiServer`] puts
//! the parts together.

pub mod admission;
pub mod aggregation;
pub mod audit;
pub mod authn;
pub mod authorities;
pub mod authz;
pub mod bootstrap;
pub mod chain;
mod compressed;
pub mod config;
pub mod connect;
mod consistency;
pub mod crd;
pub mod discovery;
pub mod encryption;
pub mod flow;
pub mod handlers;
mod health;
pub mod joining;
pub mod live;
mod metrics;
mod nonresource;
mod nowhere;
pub mod openapi;
pub mod peers;
pub mod planted;
mod remote;
mod renew;
pub mod request;
pub mod serve;
mod server;
pub mod snapshots;
mod socket;
pub mod state;
pub mod sync;
mod traces;
pub mod upgrades;
pub mod version;
pub mod webhook;

pub use config::Config;
pub use metrics::process::write as write_process_metrics;
pub use renew::CertificateFiles;
pub use request::user::LOCAL_STORAGE;
pub use request::{Body, RequestContext, RequestInfo, UserInfo};
pub use serve::{ApiService, InProcessIdentity, Loopback};
pub use server::ApiServer;
pub use state::ServerState;
