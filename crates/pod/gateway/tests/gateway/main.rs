//! The gateway as it is used: what is planned and found, and what a node does with real connections.

#![allow(clippy::unwrap_used)]

mod backends;
mod clients;
mod counted;
mod datagrams;
mod identity;
mod infrastructure;
mod matching;
mod misdirected;
mod plans;
mod serving;
mod sets;
mod shared;
mod streams;
mod trust;
