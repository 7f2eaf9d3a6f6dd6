//! One revocation, as it is written down.

use super::{BACKDATE, bearer};
use crate::jwt::ServiceAccountKeys;
use crate::x509::{Certificate, pem};
use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::Digest;

/// What is taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// Certificates and tokens of this name that were issued until the record's moment.
    User(String),
    /// The certificate with this serial number, in small hexadecimal digits.
    Certificate(String),
    /// The token with this id (`jti`).
    Token(String),
    /// The token with this hash ([`bearer`]), in small hexadecimal digits.
    Bearer(String),
}

/// Fields are added and never change their meaning: what a later version says beside them is passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub revoked: Subject,
    /// When; absent in what is asked for: the server's clock says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// From when on nobody needs the record any more: what it takes back has ended.
    pub until: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// The longest name, id and reason. A list of [`super::MOST`] records of the usual length fits into an object; of long ones the object's own
/// bound refuses one more earlier.
const LONGEST: usize = 253;
/// A record that has ended is kept for so long: a clock that is set back by less brings nothing back to life.
const KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Nothing that a cluster issues to a name outlives its authority.
const OF_A_NAME: SignedDuration = SignedDuration::from_secs(crate::authority::CA_LIFETIME.as_secs().cast_signed());

pub(super) const USER: &str = "user";
pub(super) const CERTIFICATE: &str = "certificate";
pub(super) const TOKEN: &str = "token";
pub(super) const BEARER: &str = "bearer";

/// The key of what is said about something: of one thing there is one record.
pub(super) fn key_of(kind: &str, what: &str) -> String {
    let plain = what.len() <= 64 && what.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    match plain {
        true => format!("{kind}.{what}"),
        // Names with signs that no key has.
        false => format!("{kind}..{}", &hex::encode(sha2::Sha256::digest(what))[..40]),
    }
}

/// Whether it is a key of something that is known here.
pub(super) fn is_known(key: &str) -> bool {
    let kind = key.split_once('.').map(|(kind, _)| kind);
    kind.is_some_and(|kind| [USER, CERTIFICATE, TOKEN, BEARER].contains(&kind))
}

/// Leading zeros are no part of a number.
fn serial(hex: &str) -> &str {
    match hex.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    }
}

/// A serial number as tools write it: hexadecimal digits, in pairs with colons or not.
pub fn read_serial(text: &str) -> Option<String> {
    let hex: String = text
        .trim()
        .trim_start_matches("0x")
        .replace(':', "")
        .to_ascii_lowercase();
    let good = (1..=64).contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit());
    good.then(|| serial(&hex).to_string())
}

/// A certificate's serial number as records have it.
pub fn serial_of(certificate: &Certificate) -> String {
    serial(&hex::encode(&certificate.serial)).to_string()
}

impl Record {
    pub fn of_name(name: &str, now: Timestamp) -> Record {
        Record {
            revoked: Subject::User(name.into()),
            at: None,
            until: now.saturating_add(OF_A_NAME).unwrap_or(Timestamp::MAX),
            reason: String::new(),
        }
    }

    /// `ends`: when the certificate does, where that is known.
    pub fn of_serial(text: &str, ends: Option<Timestamp>, now: Timestamp) -> Option<Record> {
        Some(Record {
            revoked: Subject::Certificate(read_serial(text)?),
            until: ends.unwrap_or_else(|| now.saturating_add(OF_A_NAME).unwrap_or(Timestamp::MAX)),
            at: None,
            reason: String::new(),
        })
    }

    /// The first certificate of a PEM text.
    pub fn of_certificate(text: &str, now: Timestamp) -> Result<Record> {
        let der = pem::certificates(text.as_bytes())
            .next()
            .context("there is no certificate in PEM")?;
        let certificate = Certificate::from_der(&der)?;
        Record::of_serial(&serial_of(&certificate), Some(certificate.not_after), now).context("its serial number")
    }

    /// A token: by its id if it has one, else by its text.
    pub fn of_token(token: &str, now: Timestamp) -> Result<Record> {
        let token = token.trim();
        ensure!(
            !token.is_empty() && token.len() <= 64 * 1024 && !token.contains(char::is_whitespace),
            "this is no token"
        );
        let claims = ServiceAccountKeys::unverified(token);
        let ends = claims.as_ref().and_then(|c| Timestamp::from_second(c.exp?).ok());
        let revoked = match claims.map(|c| c.jti) {
            Some(id) if !id.is_empty() && id.len() <= LONGEST => Subject::Token(id),
            _ => Subject::Bearer(hex::encode(bearer(token))),
        };
        Ok(Record {
            revoked,
            at: None,
            // A token is taken for a minute after its end.
            until: ends
                .unwrap_or_else(|| now.saturating_add(OF_A_NAME).unwrap_or(Timestamp::MAX))
                .saturating_add(SignedDuration::try_from(BACKDATE)?)?,
            reason: String::new(),
        })
    }

    /// The key under which it stands.
    pub fn key(&self) -> String {
        match &self.revoked {
            Subject::User(name) => key_of(USER, name),
            Subject::Certificate(serial) => key_of(CERTIFICATE, serial),
            Subject::Token(id) => key_of(TOKEN, id),
            Subject::Bearer(hash) => key_of(BEARER, hash),
        }
    }

    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// What stands under a key; an error says what is wrong with it.
    pub fn read(key: &str, text: &str) -> Result<Record> {
        let record: Record = serde_json::from_str(text)?;
        let what = match &record.revoked {
            Subject::User(what) | Subject::Token(what) => what,
            Subject::Certificate(what) => {
                ensure!(
                    read_serial(what).as_deref() == Some(what),
                    "the serial number has to be in small hexadecimal digits, without zeros before it"
                );
                what
            }
            Subject::Bearer(what) => {
                let good = what.len() == 64 && what.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                ensure!(good, "the hash has to be 64 small hexadecimal digits");
                what
            }
        };
        ensure!(!what.is_empty(), "it names nothing");
        if what.len() > LONGEST || record.reason.len() > LONGEST {
            bail!("names and reasons have {LONGEST} bytes at most");
        }
        ensure!(record.key() == key, "it has to stand under {:?}", record.key());
        Ok(record)
    }

    /// Whether nobody needs it any more.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.saturating_add(KEPT).is_ok_and(|over| over < now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, CertSpec};

    fn now() -> Timestamp {
        "2026-11-29T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn records_are_what_was_written() {
        let ca = Authority::generate("kubernetes").unwrap();
        let certificate = ca.issue(&CertSpec::client("ana", None)).unwrap().cert_pem;
        for record in [
            Record::of_name("system:serviceaccount:a:b", now()),
            Record::of_name("ana", now()),
            Record::of_certificate(&certificate, now()).unwrap(),
            Record::of_token("abcdef.0123456789abcdef", now()).unwrap(),
        ] {
            let key = record.key();
            assert!(
                key.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')),
                "{key}"
            );
            assert_eq!(Record::read(&key, &record.to_json().unwrap()).unwrap(), record);
            assert!(Record::read("user.other", &record.to_json().unwrap()).is_err());
            assert!(!record.is_over(now()) && record.is_over("2200-01-01T00:00:00Z".parse().unwrap()));
        }
        let ends = crate::authority::read_certificate(&certificate).unwrap().not_after;
        assert_eq!(
            Record::of_certificate(&certificate, now()).unwrap().until.as_second(),
            ends
        );
    }

    #[test]
    fn serial_numbers_come_in_several_forms() {
        for text in ["00:0A:ff", "0aff", "0x0AFF", " aff "] {
            assert_eq!(read_serial(text).as_deref(), Some("aff"), "{text}");
        }
        assert_eq!(read_serial("0").as_deref(), Some("0"));
        for wrong in ["", "xyz", "a b", &"f".repeat(65), "-1"] {
            assert_eq!(read_serial(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_nobody_can_mean_is_refused() {
        let wrong = |key: &str, text: &str| assert!(Record::read(key, text).is_err(), "{text}");
        let until = r#""until":"2027-01-01T00:00:00Z""#;
        wrong("user.a", "{}");
        wrong("user.a", "no JSON");
        wrong("user.a", r#"{"revoked":{"user":"a"}}"#);
        wrong("group.a", &format!(r#"{{"revoked":{{"group":"a"}},{until}}}"#));
        wrong("user.", &format!(r#"{{"revoked":{{"user":""}},{until}}}"#));
        wrong(
            "certificate.0A",
            &format!(r#"{{"revoked":{{"certificate":"0A"}},{until}}}"#),
        );
        wrong("bearer.aa", &format!(r#"{{"revoked":{{"bearer":"aa"}},{until}}}"#));
        let long = "x".repeat(254);
        wrong(
            "user.a",
            &format!(r#"{{"revoked":{{"user":"a"}},{until},"reason":"{long}"}}"#),
        );
        for text in ["", "two words", &"x".repeat(65 * 1024)] {
            assert!(Record::of_token(text, now()).is_err());
        }
    }

    #[test]
    fn what_a_later_version_says_beside_is_passed_over() {
        let later = r#"{"revoked":{"user":"a"},"until":"2027-01-01T00:00:00Z","by":{"name":"ana"},"reason":"lost"}"#;
        let read = Record::read("user.a", later).unwrap();
        assert_eq!(
            (read.revoked, read.reason.as_str()),
            (Subject::User("a".into()), "lost")
        );
    }
}
