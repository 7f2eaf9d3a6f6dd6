//! The gateway as it is used: what is planned and found, and what a node does with real connections.

#![allow(clippy::unwrap_used)]

mod backends;
mod matching;
mod plans;
mod serving;
