//! All revocations, to be asked about each request.

use super::record::{BEARER, CERTIFICATE, TOKEN, USER, is_known, key_of};
use super::{Record, Subject, bearer};
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::fmt;

/// What somebody shows. What isn't known of it is `None`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credential<'a> {
    pub name: &'a str,
    /// Unix seconds. What doesn't tell counts as issued before any moment.
    pub issued: Option<i64>,
    /// Of a certificate.
    pub serial: Option<&'a str>,
    /// The id of a token.
    pub token: Option<&'a str>,
    pub bearer: Option<&'a [u8; 32]>,
}

/// By which record something is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked<'a> {
    Name(&'a str, Timestamp),
    Certificate(&'a str),
    Token(&'a str),
    Bearer,
    /// The key of a record that can't be read.
    Unread(&'a str),
}

impl fmt::Display for Revoked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Revoked::Name(name, at) => write!(f, "what was issued to {name:?} until {at:.0} has been revoked"),
            Revoked::Certificate(serial) => write!(f, "the certificate with serial number {serial} has been revoked"),
            Revoked::Token(id) => write!(f, "the token with id {id:?} has been revoked"),
            Revoked::Bearer => f.write_str("the token has been revoked"),
            Revoked::Unread(key) => write!(f, "{key} has been revoked, by a record that can't be read"),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// With the moment until which what was issued is taken back.
    names: HashMap<String, Timestamp>,
    serials: HashSet<String>,
    tokens: HashSet<String>,
    bearers: HashSet<[u8; 32]>,
    /// Keys of records that can't be read. Only what they are about is known, so all of that is taken back.
    unread: HashSet<String>,
}

impl Table {
    /// Reads what stands in the object. What can't be read is told; it takes back all that its key stands for, if that is anything
    /// known here: what somebody took back doesn't come in again by a version that doesn't understand how.
    pub fn read<'a>(
        data: impl IntoIterator<Item = (&'a str, &'a str)>,
        mut wrong: impl FnMut(&str, anyhow::Error),
    ) -> Table {
        let mut table = Table::default();
        for (key, text) in data {
            match Record::read(key, text) {
                Ok(record) => table.add(record),
                Err(error) if is_known(key) => {
                    table.unread.insert(key.to_owned());
                    wrong(key, error.context("all that its key stands for counts as revoked"));
                }
                Err(error) => wrong(
                    key,
                    error.context("of a kind that isn't known here, it takes nothing back"),
                ),
            }
        }
        table
    }

    /// Records that have ended still count: what they are about has ended too, unless the clock is wrong.
    fn add(&mut self, record: Record) {
        match record.revoked {
            Subject::User(name) => {
                // Without a moment it can't have come through a server: all of the name's is taken back.
                self.names.insert(name, record.at.unwrap_or(Timestamp::MAX));
            }
            Subject::Certificate(serial) => {
                self.serials.insert(serial);
            }
            Subject::Token(id) => {
                self.tokens.insert(id);
            }
            Subject::Bearer(hash) => {
                let mut bytes = [0; 32];
                if hex::decode_to_slice(hash, &mut bytes).is_ok() {
                    self.bearers.insert(bytes);
                }
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn len(&self) -> usize {
        self.names.len() + self.serials.len() + self.tokens.len() + self.bearers.len() + self.unread.len()
    }

    /// The moment until which what was issued to a name is taken back.
    pub fn of_name(&self, name: &str) -> Option<Timestamp> {
        let unread = || self.unread_of(USER, name).map(|_| Timestamp::MAX);
        self.names.get(name).copied().or_else(unread)
    }

    /// The key of a record about this that can't be read. Where all can be, which is nearly always, nothing is computed.
    fn unread_of(&self, kind: &str, what: &str) -> Option<&str> {
        if self.unread.is_empty() {
            return None;
        }
        self.unread.get(&key_of(kind, what)).map(String::as_str)
    }

    /// Whether what somebody shows has been taken back.
    pub fn judge<'a>(&'a self, shown: &Credential<'_>) -> Option<Revoked<'a>> {
        if self.is_empty() {
            return None;
        }
        if let Some((name, at)) = self.names.get_key_value(shown.name)
            && shown.issued.is_none_or(|issued| issued <= at.as_second())
        {
            return Some(Revoked::Name(name, *at));
        }
        if let Some(serial) = shown.serial.and_then(|serial| self.serials.get(serial)) {
            return Some(Revoked::Certificate(serial));
        }
        if let Some(id) = shown.token.and_then(|id| self.tokens.get(id)) {
            return Some(Revoked::Token(id));
        }
        if shown.bearer.is_some_and(|hash| self.bearers.contains(hash)) {
            return Some(Revoked::Bearer);
        }
        let unread = self
            .unread_of(USER, shown.name)
            .or_else(|| self.unread_of(CERTIFICATE, shown.serial?))
            .or_else(|| self.unread_of(TOKEN, shown.token?))
            .or_else(|| self.unread_of(BEARER, &hex::encode(shown.bearer?)));
        unread.map(Revoked::Unread)
    }

    /// The same of a token's text alone; what isn't asked for isn't computed.
    pub fn has(&self, token: &str) -> bool {
        if self.bearers.is_empty() && self.unread.is_empty() {
            return false;
        }
        let hash = bearer(token);
        self.bearers.contains(&hash) || self.unread_of(BEARER, &hex::encode(hash)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(records: &[Record]) -> Table {
        let texts: Vec<(String, String)> = records.iter().map(|r| (r.key(), r.to_json().unwrap())).collect();
        let data = texts.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        Table::read(data, |key, error| panic!("{key}: {error}"))
    }

    #[test]
    fn what_is_shown_is_judged_by_name_number_and_id() {
        let now: Timestamp = "2026-11-29T12:00:00Z".parse().unwrap();
        let at = |record: Record| Record {
            at: Some(now),
            ..record
        };
        let jwt = "e30.eyJhIjoxfQ.c2ln";
        let table = table(&[
            at(Record::of_name("ana", now)),
            at(Record::of_serial("0a:ff", None, now).unwrap()),
            at(Record {
                revoked: Subject::Token("id-1".into()),
                ..Record::of_name("x", now)
            }),
            at(Record::of_token(jwt, now).unwrap()),
        ]);
        assert_eq!(table.len(), 4);
        let second = now.as_second();
        let (hash, other_signature) = (bearer(jwt), bearer("e30.eyJhIjoxfQ.b3RoZXI"));
        assert_eq!(hash, other_signature, "a signature written otherwise is the same token");
        let ana = |issued| Credential {
            name: "ana",
            issued,
            ..Credential::default()
        };
        let cases: [(Credential, Option<Revoked>); 10] = [
            (ana(Some(second - 1)), Some(Revoked::Name("ana", now))),
            (ana(Some(second)), Some(Revoked::Name("ana", now))),
            (ana(Some(second + 1)), None),
            (ana(None), Some(Revoked::Name("ana", now))),
            (
                Credential {
                    name: "anna",
                    issued: Some(0),
                    ..Credential::default()
                },
                None,
            ),
            (
                Credential {
                    serial: Some("aff"),
                    issued: Some(second + 9),
                    ..Credential::default()
                },
                Some(Revoked::Certificate("aff")),
            ),
            (
                Credential {
                    serial: Some("0aff"),
                    ..Credential::default()
                },
                None,
            ),
            (
                Credential {
                    token: Some("id-1"),
                    ..Credential::default()
                },
                Some(Revoked::Token("id-1")),
            ),
            (
                Credential {
                    token: Some("id-2"),
                    ..Credential::default()
                },
                None,
            ),
            (
                Credential {
                    bearer: Some(&hash),
                    ..Credential::default()
                },
                Some(Revoked::Bearer),
            ),
        ];
        for (shown, expected) in cases {
            assert_eq!(table.judge(&shown), expected, "{shown:?}");
            assert_eq!(Table::default().judge(&shown), None);
        }
        assert!(table.has(jwt) && !table.has("e30.eyJhIjoyfQ.c2ln") && !Table::default().has(jwt));
    }

    #[test]
    fn one_record_that_cannot_be_read_spoils_no_other() {
        let mut wrong = Vec::new();
        let good = Record::of_name("ana", Timestamp::UNIX_EPOCH);
        let (key, text) = (good.key(), good.to_json().unwrap());
        let table = Table::read([("user.b", "{"), (key.as_str(), text.as_str())], |key, _| {
            wrong.push(key.to_string())
        });
        assert_eq!(wrong, ["user.b"]);
        let later = Credential {
            name: "ana",
            issued: Some(i64::MAX),
            ..Credential::default()
        };
        assert!(table.judge(&later).is_none(), "no certificate is issued then");
        let now = Credential {
            name: "ana",
            issued: Some(1_800_000_000),
            ..Credential::default()
        };
        assert!(table.judge(&now).is_some(), "without a moment everything is meant");
    }

    /// As an older program meets what a newer one wrote, or a damaged object: whom it is about isn't let in, and nobody else is shut out.
    #[test]
    fn what_cannot_be_read_lets_nobody_in_that_its_key_stands_for() {
        let now = Timestamp::UNIX_EPOCH;
        let jwt = "e30.eyJhIjoxfQ.c2ln";
        let records = [
            Record::of_name("ana", now),
            Record::of_name("system:node:a", now),
            Record::of_serial("aff", None, now).unwrap(),
            Record::of_token("e30.eyJqdGkiOiJpZCJ9.c2ln", now).unwrap(),
            Record::of_token(jwt, now).unwrap(),
        ];
        let keys: Vec<String> = records.iter().map(Record::key).collect();
        let texts = keys
            .iter()
            .map(|key| (key.as_str(), r#"{"revoked":{"user":{"name":1}}}"#));
        let mut told = Vec::new();
        let table = Table::read(texts.chain([("group.x", "{}"), ("x", "")]), |key, error| {
            told.push((key.to_string(), format!("{error:#}")));
        });
        assert_eq!((table.len(), told.len()), (5, 7));
        for (key, why) in &told {
            let known = keys.contains(key);
            assert_eq!(why.contains("counts as revoked"), known, "{key}: {why}");
        }
        let hash = bearer(jwt);
        let named = |name| Credential {
            name,
            issued: Some(i64::MAX),
            ..Credential::default()
        };
        for shown in [
            named("ana"),
            named("system:node:a"),
            Credential {
                serial: Some("aff"),
                ..named("x")
            },
            Credential {
                token: Some("id"),
                ..named("x")
            },
            Credential {
                bearer: Some(&hash),
                ..named("x")
            },
        ] {
            assert!(matches!(table.judge(&shown), Some(Revoked::Unread(_))), "{shown:?}");
        }
        assert!(table.has(jwt) && !table.has("e30.eyJhIjoyfQ.c2ln"));
        assert_eq!(table.of_name("ana"), Some(Timestamp::MAX));
        assert_eq!(table.of_name("x"), None);
        let other = Credential {
            serial: Some("aa"),
            token: Some("other"),
            ..named("x")
        };
        assert_eq!(table.judge(&other), None);
    }
}
