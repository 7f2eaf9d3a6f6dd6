//! Services, ingresses, and the way from a pod to another.

pub mod ingress;
pub mod reach;
pub mod service;
