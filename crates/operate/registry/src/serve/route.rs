//! Which resource a path is. Pure. Names are read from the end, since a repository's has `/` in it.

use crate::error::{Code, Result, refuse, refused};
use crate::names::{Digest, Reference, Repository};
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Ping,
    Token,
    Catalog,
    Tags(Repository),
    Manifest(Repository, Reference),
    Blob(Repository, Digest),
    Begin(Repository),
    Upload(Repository, String),
    Referrers(Repository, Digest),
}

impl Route {
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Route::Ping | Route::Token | Route::Catalog => None,
            Route::Tags(r)
            | Route::Manifest(r, _)
            | Route::Blob(r, _)
            | Route::Begin(r)
            | Route::Upload(r, _)
            | Route::Referrers(r, _) => Some(r),
        }
    }

    /// What it is counted as.
    pub fn kind(&self) -> &'static str {
        match self {
            Route::Ping => "ping",
            Route::Token => "token",
            Route::Catalog => "catalog",
            Route::Tags(_) => "tags",
            Route::Manifest(..) => "manifest",
            Route::Blob(..) => "blob",
            Route::Begin(_) | Route::Upload(..) => "upload",
            Route::Referrers(..) => "referrers",
        }
    }
}

/// `stands_for`: of a mirror, the registry that is meant, whose repositories stand under its name.
pub fn route(path: &str, stands_for: Option<&str>) -> Result<Route> {
    let nothing = || refused(Code::NotFound, "there is nothing at this path");
    if path == "/token" {
        return Ok(Route::Token);
    }
    let rest = match path.strip_prefix("/v2") {
        Some("" | "/") => return Ok(Route::Ping),
        Some(rest) => rest.strip_prefix('/').ok_or_else(nothing)?,
        None => return Err(nothing()),
    };
    if rest == "_catalog" {
        return Ok(Route::Catalog);
    }
    let name = |text: &str| {
        let whole = stands_for.map_or_else(|| text.to_owned(), |registry| format!("{registry}/{text}"));
        let invalid = || {
            refused(
                Code::NameInvalid,
                "a repository's name is small letters and digits, with . _ - and / between",
            )
        };
        Repository::parse(&whole).ok_or_else(invalid)
    };
    let (front, last) = rest.rsplit_once('/').ok_or_else(nothing)?;
    let last = percent_decode_str(last)
        .decode_utf8()
        .map_err(|_| nothing())?
        .into_owned();
    if let Some(repository) = front.strip_suffix("/blobs/uploads") {
        return match last.as_str() {
            "" => Ok(Route::Begin(name(repository)?)),
            id => Ok(Route::Upload(name(repository)?, id.to_owned())),
        };
    }
    let (repository, kind) = front.rsplit_once('/').ok_or_else(nothing)?;
    match (kind, last.as_str()) {
        ("tags", "list") => Ok(Route::Tags(name(repository)?)),
        ("blobs", "uploads") => Ok(Route::Begin(name(repository)?)),
        ("blobs", text) => Ok(Route::Blob(name(repository)?, digest(text)?)),
        ("referrers", text) => Ok(Route::Referrers(name(repository)?, digest(text)?)),
        ("manifests", text) => match Reference::parse(text) {
            Some(reference) => Ok(Route::Manifest(name(repository)?, reference)),
            None if text.contains(':') => refuse(Code::DigestInvalid, "that is no digest of sha256 or sha512"),
            None => refuse(
                Code::ManifestInvalid,
                "a tag is up to 128 letters, digits, and . _ - after the first",
            ),
        },
        _ => Err(nothing()),
    }
}

pub fn digest(text: &str) -> Result<Digest> {
    Digest::parse(text).ok_or_else(|| refused(Code::DigestInvalid, "that is no digest of sha256 or sha512"))
}

/// What stands after the question mark; of what is given twice, all.
pub struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    pub fn parse(text: Option<&str>) -> Query {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in form_urlencoded::parse(text.unwrap_or_default().as_bytes()) {
            found.entry(key.into_owned()).or_default().push(value.into_owned());
        }
        Query(found)
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).first().map(String::as_str)
    }

    pub fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// How many of a list are asked for.
    pub fn number(&self, usual: usize, most: usize) -> Result<usize> {
        match self.get("n").map(str::parse::<usize>) {
            None => Ok(usual),
            Some(Ok(n)) => Ok(n.min(most)),
            Some(Err(_)) => refuse(Code::PaginationInvalid, "n is a number of entries"),
        }
    }
}

/// Which bytes of a whole are asked for: the first, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Some(u64, u64),
    None,
}

/// One range of bytes; several, and what can't be read, are the whole, as HTTP has it.
pub fn part(header: Option<&str>, length: u64) -> Part {
    let Some(range) = header.and_then(|h| h.trim().strip_prefix("bytes=")) else {
        return Part::Whole;
    };
    let Some((from, to)) = range.trim().split_once('-') else {
        return Part::Whole;
    };
    let (from, to) = (from.trim(), to.trim());
    let number = |text: &str| {
        text.parse::<u64>()
            .ok()
            .filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
    };
    match (from, to) {
        ("", to) => match number(to) {
            Some(0) => Part::None,
            Some(_) if length == 0 => Part::None,
            Some(n) => Part::Some(length.saturating_sub(n), n.min(length)),
            None => Part::Whole,
        },
        (from, "") => match number(from) {
            Some(from) if from < length => Part::Some(from, length - from),
            Some(_) => Part::None,
            None => Part::Whole,
        },
        (from, to) => match (number(from), number(to)) {
            (Some(from), Some(to)) if from <= to && from < length => {
                Part::Some(from, (to - from).min(length - from - 1) + 1)
            }
            (Some(_), Some(_)) => Part::None,
            _ => Part::Whole,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_the_end() {
        let d = format!("sha256:{}", "a".repeat(64));
        let of = |path: &str| route(path, None);
        let name = |text: &str| Repository::parse(text).unwrap();
        assert_eq!(of("/v2/"), Ok(Route::Ping));
        assert_eq!(of("/v2/a/b/tags/list"), Ok(Route::Tags(name("a/b"))));
        assert_eq!(of("/v2/tags/list/tags/list"), Ok(Route::Tags(name("tags/list"))));
        assert_eq!(
            of("/v2/a/manifests/v1"),
            Ok(Route::Manifest(name("a"), Reference::Tag("v1".into())))
        );
        let digest = Digest::parse(&d).unwrap();
        assert_eq!(
            of(&format!("/v2/a/blobs/{d}")),
            Ok(Route::Blob(name("a"), digest.clone()))
        );
        let encoded = d.replace(':', "%3A");
        assert_eq!(
            of(&format!("/v2/a/blobs/{encoded}")),
            Ok(Route::Blob(name("a"), digest))
        );
        assert_eq!(of("/v2/a/blobs/uploads/"), Ok(Route::Begin(name("a"))));
        assert_eq!(of("/v2/a/b/blobs/uploads"), Ok(Route::Begin(name("a/b"))));
        assert_eq!(of("/v2/a/blobs/uploads/x"), Ok(Route::Upload(name("a"), "x".into())));
        let mirrored = route("/v2/library/x/manifests/1", Some("docker.io")).unwrap();
        assert_eq!(mirrored.repository(), Some(&name("docker.io/library/x")));
    }

    #[test]
    fn paths_that_lead_elsewhere_lead_nowhere() {
        let d = format!("sha256:{}", "a".repeat(64));
        for bad in [
            "/",
            "/v1/",
            "/v2x",
            "/v2/a",
            "/v2/a/blobs/x",
            "/v2/../../etc/passwd",
            "/v2/../a/tags/list",
            "/v2/a/../b/manifests/x",
            "/v2/a/manifests/..",
            "/v2/a/manifests/%2e%2e%2fx",
            "/v2/a/manifests/sha256:x",
            "/v2//tags/list",
            "/v2/tags/list",
            "/v2/%2e%2e/tags/list",
            "/v2/A/tags/list",
            &format!("/v2/a%2fb/blobs/{d}"),
            "/v2/a/blobs/sha256:../../../../../../etc/passwd",
        ] {
            assert!(route(bad, None).is_err(), "{bad}");
        }
        assert!(route("/v2/x/manifests/1", Some("../..")).is_err());
    }

    #[test]
    fn ranges_are_of_what_is_there() {
        for (range, want) in [
            ("bytes=0-0", Part::Some(0, 1)),
            ("bytes=5-9", Part::Some(5, 5)),
            ("bytes=5-900", Part::Some(5, 5)),
            ("bytes=9-", Part::Some(9, 1)),
            ("bytes=-3", Part::Some(7, 3)),
            ("bytes=-300", Part::Some(0, 10)),
            ("bytes=10-", Part::None),
            ("bytes=5-4", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=0-18446744073709551615", Part::Some(0, 10)),
            ("bytes=a-b", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("lines=1-2", Part::Whole),
        ] {
            assert_eq!(part(Some(range), 10), want, "{range}");
        }
        assert_eq!(part(None, 10), Part::Whole);
        assert_eq!(part(Some("bytes=0-"), 0), Part::None);
    }
}
