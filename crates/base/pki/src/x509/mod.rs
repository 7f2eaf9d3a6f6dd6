//! X.509 as Go's `crypto/x509` reads it: one reading for requests and certificates, one way of writing certificates.
//!
//! Kubernetes' verdicts on certificates are Go's verdicts, down to which of two common names counts. A second reading
//! beside it, however correct, would make certificates mean two things: what was checked is then not what was signed, and
//! what was signed not who comes in. So everything here that looks into a request or a certificate does it by this module,
//! and what is issued is written anew from what was read, never copied.
//!
//! * [`der`]: the bytes. * [`pem`]: the text around them. * [`oid`]: what things are called.
//! * [`name`]: subjects. * [`names`]: alternative names. * [`key`]: public keys. * [`signature`]: checking signatures.
//! * [`mailbox`]: addresses for mail. * [`request`]: certificate requests. * [`certificate`]: certificates.
//! * [`extensions`]: what their extensions say. * [`template`]: writing certificates.
//!
//! Messages are Go's too: users search for them.

pub mod certificate;
pub mod der;
pub mod extensions;
pub mod key;
pub mod mailbox;
pub mod name;
pub mod names;
pub mod oid;
pub mod pem;
pub mod request;
pub mod signature;
pub mod template;

pub use certificate::Certificate;
pub use key::PublicKey;
pub use name::Name;
pub use names::AltNames;
pub use request::Request;

/// Why something is no certificate, or not a good one, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

impl Error {
    pub fn new(message: impl Into<String>) -> Self {
        Error(message.into())
    }
}

pub type Result<T> = std::result::Result<T, Error>;
