//! Whether a certificate is to be trusted: Go's `Certificate.Verify`, with its verdicts and its words.
//!
//! Users make certificates until their tools take them, and the tools are written in Go. So what Go takes is taken here (a
//! certificate that is its own authority, one that is itself in the bundle, those of version 1, any key the field has), and
//! what it refuses is refused (an authority that has ended, SHA-1, names in the common name, keys of 512 bits).
//!
//! * [`roots`]: who is trusted: a bundle, or the machine's own list. * [`chain`]: finding a way from a certificate to them.
//! * [`hostname`]: whether it is the one of whom we wanted to reach. * [`constraints`]: names an authority may sign for.
//! * [`tls`]: the same as `rustls` asks for it, with the signatures of handshakes.
//!
//! One thing is stricter than Go: of certificate policies only their absence is understood, so a chain in which one *must*
//! be named is refused. Revocation is not looked at, as in Go.

pub mod chain;
pub mod constraints;
pub mod hostname;
pub mod roots;
pub mod tls;

pub use chain::{Purpose, verify};
pub use roots::{Live, Roots};
