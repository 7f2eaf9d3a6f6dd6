//! Which of the authorities that somebody tells of are believed, by those that are trusted already.

use crate::x509::{Certificate, pem};
use jiff::Timestamp;

/// Told at once; a cluster has two.
const MOST: usize = 8;

/// What is trusted from now on, in the order in which it was told: what was trusted before, and what one of that introduces. `None` if
/// nothing of it is: whoever tells so is not to be heeded.
pub fn believed(trusted: &str, told: &str, introductions: &str, now: Timestamp) -> Option<String> {
    let read = |text: &str| -> Vec<Certificate> {
        let each = pem::certificates(text.as_bytes()).take(MOST);
        each.filter_map(|der| Certificate::from_der(&der).ok()).collect()
    };
    let (trusted, introductions) = (read(trusted), read(introductions));
    let known = |one: &Certificate| trusted.iter().any(|t| t.raw == one.raw);
    let valid = |one: &Certificate| one.not_before <= now && now < one.not_after;
    let introduced = |one: &Certificate| {
        let says_so = |i: &&Certificate| {
            i.says.is_ca() && i.raw_subject == one.raw_subject && i.key.is_some() && i.key == one.key && valid(i)
        };
        introductions.iter().filter(says_so).any(|i| {
            let by = |t: &&Certificate| i.raw_issuer == t.raw_subject && valid(t) && t.says.is_ca();
            trusted
                .iter()
                .filter(by)
                .any(|t| i.check_signature(t.key.as_ref()).is_ok())
        })
    };
    let own = |one: &Certificate| one.says.is_ca() && one.check_signature(one.key.as_ref()).is_ok();
    let taken: String = read(told)
        .iter()
        .filter(|one| known(one) || (own(one) && introduced(one)))
        .map(|one| pem::encode(pem::CERTIFICATE, &one.raw))
        .collect();
    (!taken.is_empty()).then_some(taken)
}
