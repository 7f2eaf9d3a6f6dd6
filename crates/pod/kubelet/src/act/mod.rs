//! Carrying out what the plan says, call by call.

pub mod config;
pub mod credentials;
pub mod dns;
pub mod env;
pub mod expand;
pub mod fields;
pub mod hooks;
pub mod image_name;
pub mod images;
pub mod kill;
pub mod mounts;
pub mod pulled;
pub mod sandbox;
pub mod security;
pub mod start;
