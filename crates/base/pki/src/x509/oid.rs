//! Object identifiers, as the content of their encoding: comparing bytes compares them.

pub const COMMON_NAME: &[u8] = &[0x55, 4, 3];
pub const SERIAL_NUMBER: &[u8] = &[0x55, 4, 5];
pub const COUNTRY: &[u8] = &[0x55, 4, 6];
pub const LOCALITY: &[u8] = &[0x55, 4, 7];
pub const PROVINCE: &[u8] = &[0x55, 4, 8];
pub const STREET_ADDRESS: &[u8] = &[0x55, 4, 9];
pub const ORGANIZATION: &[u8] = &[0x55, 4, 10];
pub const ORGANIZATIONAL_UNIT: &[u8] = &[0x55, 4, 11];
pub const POSTAL_CODE: &[u8] = &[0x55, 4, 17];
/// `1.3.6.1.4.1.57683.2`: a Kubernetes user's UID within a name.
pub const KUBERNETES_UID: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xc2, 0x53, 2];

pub const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 14];
pub const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
pub const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];
pub const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
pub const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 30];
pub const CRL_DISTRIBUTION_POINTS: &[u8] = &[0x55, 0x1d, 31];
pub const CERTIFICATE_POLICIES: &[u8] = &[0x55, 0x1d, 32];
pub const ANY_POLICY: &[u8] = &[0x55, 0x1d, 32, 0];
pub const POLICY_MAPPINGS: &[u8] = &[0x55, 0x1d, 33];
pub const POLICY_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 36];
pub const INHIBIT_ANY_POLICY: &[u8] = &[0x55, 0x1d, 54];
pub const AUTHORITY_INFO_ACCESS: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 1, 1];
pub const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 35];
pub const EXT_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
/// The attribute of a request that holds the extensions it asks for.
pub const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14];

pub const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
pub const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
pub const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
pub const DSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1];
pub const P224: &[u8] = &[0x2b, 0x81, 4, 0, 33];
pub const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
pub const P384: &[u8] = &[0x2b, 0x81, 4, 0, 34];
pub const P521: &[u8] = &[0x2b, 0x81, 4, 0, 35];

pub const RSA_MD5: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4];
pub const RSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5];
/// ISO's own name for the same.
pub const ISO_RSA_SHA1: &[u8] = &[0x2b, 0x0e, 3, 2, 29];
pub const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];
pub const RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
pub const RSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12];
pub const RSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13];
pub const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8];
pub const DSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x38, 4, 3];
pub const DSA_SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 2];
pub const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1];
pub const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
pub const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
pub const ECDSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4];
pub const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
pub const SHA384: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2];
pub const SHA512: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3];

/// Each arc in its shortest form and, as Go has it, at most 31 bits.
pub fn is_valid(content: &[u8]) -> bool {
    arcs(content).is_some()
}

fn arcs(content: &[u8]) -> Option<Vec<u32>> {
    let mut arcs = Vec::new();
    let (mut arc, mut inside) = (0u64, false);
    for byte in content {
        if !inside && *byte == 0x80 {
            return None;
        }
        arc = arc << 7 | u64::from(byte & 0x7f);
        if arc > 0x7fff_ffff {
            return None;
        }
        inside = byte & 0x80 != 0;
        if !inside {
            arcs.push(arc as u32);
            arc = 0;
        }
    }
    (!inside && !arcs.is_empty()).then_some(arcs)
}

/// In dots and digits.
pub fn text(content: &[u8]) -> String {
    let Some(arcs) = arcs(content) else {
        return hex::encode(content);
    };
    let first = arcs[0].min(80) / 40;
    let mut parts = vec![first.to_string(), (arcs[0] - 40 * first).to_string()];
    parts.extend(arcs[1..].iter().map(u32::to_string));
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_what_they_are_called() {
        for (oid, written) in [
            (COMMON_NAME, "2.5.4.3"),
            (KUBERNETES_UID, "1.3.6.1.4.1.57683.2"),
            (EXTENSION_REQUEST, "1.2.840.113549.1.9.14"),
            (P521, "1.3.132.0.35"),
            (DSA_SHA256, "2.16.840.1.101.3.4.3.2"),
            (ECDSA_SHA384, "1.2.840.10045.4.3.3"),
            (ISO_RSA_SHA1, "1.3.14.3.2.29"),
        ] {
            assert_eq!(text(oid), written);
        }
        assert!(!is_valid(&[]) && !is_valid(&[0x55, 0x80, 1]) && !is_valid(&[0x55, 0x81]));
    }
}
