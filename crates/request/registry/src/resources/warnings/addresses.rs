//! Addresses that are taken for the sake of old objects, though not every reader understands them in the same way.

use super::Errs;
use crate::resources::validation::addresses::{self, Cidr};
use std::net::IpAddr;

/// Warns of an address that isn't written as it should be.
pub fn ip(e: &mut Errs, key: &str, text: &str) {
    let Some(ip) = addresses::ip(text) else { return };
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_none() => {
            if v6.to_string() != text {
                e.warn(
                    key,
                    format!(
                        "IPv6 address {text:?} should be in RFC 5952 canonical format ({:?})",
                        v6.to_string()
                    ),
                );
            }
        }
        Ok(IpAddr::V4(_)) => {}
        _ => e.warn(
            key,
            format!("non-standard IP address {text:?} is invalid: use {:?}", ip.to_string()),
        ),
    }
}

/// Warns of a network that isn't written as it should be.
pub fn cidr(e: &mut Errs, key: &str, text: &str) {
    let Some(Cidr {
        ip,
        network,
        mapped,
        zeros,
    }) = addresses::cidr(text)
    else {
        return;
    };
    let mut well = true;
    if ip != network.network() {
        well = false;
        e.warn(
            key,
            format!(
                "CIDR value {text:?} is ambiguous in this context (should be {:?} or {:?}?)",
                network.to_string(),
                format!("{ip}/{}", network.max_prefix_len())
            ),
        );
    }
    if zeros || mapped {
        well = false;
        e.warn(
            key,
            format!(
                "non-standard CIDR value {text:?} is invalid: use {:?}",
                network.to_string()
            ),
        );
    }
    if well && ip.is_ipv6() && network.to_string() != text {
        e.warn(
            key,
            format!(
                "IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({:?})",
                network.to_string()
            ),
        );
    }
}
