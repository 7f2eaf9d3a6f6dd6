//! Values encrypted at rest, as kube-apiserver does it: a [`Store`](keelson_store::Store) over a store.
//!
//! * [`Sealed`] seals what is written and opens what is read, by the rules of an `EncryptionConfiguration` ([`config`]). What
//!   stands in the store is upstream's to the byte ([`provider`], [`kms`]): kube-apiserver reads it by the same configuration.
//! * A value is bound to its key in the store, where the cipher can (AES-GCM). Which resource a key belongs to is told by
//!   whoever makes the store ([`Resources`]): this crate knows no kinds.
//! * A value that can't be opened is handed on as a mark ([`keelson_store::unopened`]): its reader says so for that object, and
//!   everything else stays readable. It is never overwritten by chance, since an update reads first.
//! * [`Sealing`] is what a server has: where its configuration comes from, and what is done while it runs ([`keep`]). For those
//!   who give no configuration there is one of our own ([`own`]): secrets are sealed by a key made at the first start. What was
//!   stored plainly, or by an older key, is written anew in the background ([`reseal`]).
//! * Keys are never logged, and no type that holds one can be printed.

pub mod config;
pub mod keep;
pub mod kms;
pub mod metrics;
pub mod own;
pub mod provider;
mod reload;
pub mod reseal;
mod rules;
mod sealed;

pub use keep::{Place, Report, Sealing, Source};
pub use rules::{GroupResource, Resources, Rules};
pub use sealed::Sealed;
