//! Backups of a cluster.
//!
//! * [`place`]: where archives are: a directory, or a bucket of a server that speaks S3.
//! * [`repository`]: pieces of files by what they are, each once, compressed and sealed; [`manifest`]: what a backup is made of.
//! * [`objects`]: what of a backup goes back into a cluster that runs, and how it is changed for that.
//!
//! Nothing here knows a store, a volume or a cluster but by files and JSON: who makes a backup brings them.

pub mod manifest;
pub mod objects;
pub mod place;
pub mod repository;
