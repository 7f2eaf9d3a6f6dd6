//! Names of devices' attributes, pools and extended resources.

use super::super::check::Errs;
use super::super::storage::driver_name;
use keelson_machinery::names::{dns1123_subdomain, label_key, regex_error};

const LONGEST_ID: usize = 32;
const LONGEST_POOL: usize = 253;

/// Subdomains with slashes between.
pub fn pool_name(e: &mut Errs, key: &str, name: &str) {
    if name.is_empty() {
        return e.required(key, "");
    }
    if name.len() > LONGEST_POOL {
        e.too_long(key, LONGEST_POOL);
    }
    for part in name.split('/') {
        e.format(key, part, dns1123_subdomain);
    }
}

/// The same where upstream's rule is declared.
pub fn declared_pool_name(e: &mut Errs, key: &str, name: &str) {
    if name.is_empty() {
        return e.required(key, "");
    }
    if name.len() > LONGEST_POOL {
        e.too_long(key, LONGEST_POOL);
    }
    for (i, part) in name.split('/').enumerate() {
        if part.is_empty() {
            e.invalid(key, name, &format!("segment {i}: must not be empty"));
            continue;
        }
        for why in dns1123_subdomain(part) {
            e.invalid(key, part, &format!("segment {i}: {why}"));
        }
    }
}

/// `name`, or `domain/name`.
pub fn qualified_name(e: &mut Errs, key: &str, name: &str) {
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [id] => c_identifier(e, key, id),
        [domain, id] => {
            match *domain {
                "" => e.invalid(key, "", "the domain must not be empty"),
                domain => driver_name(e, key, domain),
            }
            match *id {
                "" => e.invalid(key, "", "the name must not be empty"),
                id => c_identifier(e, key, id),
            }
        }
        _ => {}
    }
}

/// `domain/name`.
pub fn fully_qualified_name(e: &mut Errs, key: &str, name: &str) {
    qualified_name(e, key, name);
    if !name.contains('/') {
        let why = "a fully qualified name must be a domain and a name separated by a slash";
        e.invalid(key, name, why);
    }
}

fn c_identifier(e: &mut Errs, key: &str, id: &str) {
    if id.len() > LONGEST_ID {
        e.too_long(key, LONGEST_ID);
    }
    let starts = |c: char| c.is_ascii_alphabetic() || c == '_';
    if !id.starts_with(starts) || !id.chars().all(|c| starts(c) || c.is_ascii_digit()) {
        let why = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
        let examples = ["my_name", "MY_NAME", "MyName"];
        e.invalid(key, id, &regex_error(why, "[A-Za-z_][A-Za-z0-9_]*", &examples));
    }
}

/// The name under which pods ask for devices of a class as for any resource.
pub fn extended_resource(e: &mut Errs, key: &str, name: &str) {
    if !name.contains('/') {
        let why = "a name must be a domain-prefixed path, such as 'example.com/my-prop'";
        e.invalid(key, name, why);
    } else if name.contains(OWN) {
        e.invalid(key, name, &format!("must not have {OWN:?} domain"));
    }
    if name.starts_with(QUOTA) {
        e.invalid(key, name, &format!("must not have {QUOTA:?} prefix"));
    }
    // Quotas name it with a prefix, which must be a name, too.
    for why in label_key(&format!("{QUOTA}{name}")) {
        e.invalid(key, name, &why);
    }
}

const OWN: &str = "kubernetes.io/";
const QUOTA: &str = "requests.";
