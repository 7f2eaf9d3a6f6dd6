//! Certificate authorities, certificates, tokens and kubeconfigs.
//!
//! * [`files`]: files that appear whole, with modes that fit their secrecy.
//! * [`authority`]: a certificate authority: issues certificates, signs requests.
//! * [`layout`]: which certificates a cluster has and where they stand under the data directory.
//! * [`jwt`]: service-account tokens and the keys that check them.
//! * [`bootstrap`]: bootstrap tokens and what a joining machine is given.
//! * [`kubeconfig`]: kubeconfig files.
//! * [`revocation`]: what no longer counts before it ends.
//! * [`succession`]: an authority and the one that follows it, in steps.
//! * [`sharing`]: what the servers of a cluster have alike, and the token that seals it.
//! * [`verify`]: whether a certificate is to be trusted, with Go's verdicts.
//! * [`x509`]: the one reading of requests and certificates, and the one writing.
//! * [`request`]: requests for certificates, for machines whose authority is elsewhere.
//!
//! Every private key is ECDSA P-256, in a file of mode 0600. Nothing here knows HTTP or the API.

pub mod authority;
pub mod bootstrap;
pub mod files;
pub mod jwt;
pub mod kubeconfig;
pub mod layout;
pub mod request;
pub mod revocation;
pub mod sharing;
pub mod succession;
pub mod verify;
pub mod x509;

pub use authority::{Authority, CertSpec, Issued, San, Usage};
pub use bootstrap::{BootstrapToken, JoinToken};
pub use jwt::{Claims, ServiceAccountKeys};
pub use kubeconfig::Kubeconfig;
pub use layout::{CertFiles, Current, Pki, due};
pub use sharing::ServerToken;
