//! Who is to be acted as, as the headers say: nothing is completed and nothing judged.

use crate::request::{UserInfo, extra_key, name_of};
use http::{HeaderMap, HeaderName};
use keelson_api::{ApiError, ApiResult, Str};
use std::fmt::Write;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// Takes the headers off. `None` if there are none.
pub fn take(headers: &mut HeaderMap) -> ApiResult<Option<UserInfo>> {
    let asked: Vec<HeaderName> = headers
        .keys()
        .filter(|k| matches!(k.as_str(), USER | GROUP | UID) || k.as_str().starts_with(EXTRA))
        .cloned()
        .collect();
    let all = |key: &str| -> Vec<Str> { headers.get_all(key).iter().map(name_of).collect() };
    let one = |key: &str| headers.get(key).map(name_of).unwrap_or_default();
    let mut wanted = UserInfo {
        name: one(USER),
        uid: one(UID),
        groups: all(GROUP),
        ..UserInfo::default()
    };
    for key in &asked {
        let Some(field) = key.as_str().strip_prefix(EXTRA) else {
            continue;
        };
        wanted
            .extra
            .entry(extra_key(field))
            .or_default()
            .extend(all(key.as_str()));
    }
    if wanted.name.is_empty() {
        if wanted == UserInfo::default() {
            return Ok(None);
        }
        let shown = shown(&wanted);
        let error = format!("requested {shown} without impersonating a user name");
        return Err(ApiError::bad_request(error));
    }
    for key in asked {
        headers.remove(key);
    }
    Ok(Some(wanted))
}

/// As Go shows the value, which the message has.
fn shown(user: &UserInfo) -> String {
    let list = |values: &[Str]| {
        let quoted: Vec<String> = values.iter().map(|v| format!("{:?}", v.as_str())).collect();
        format!("[]string{{{}}}", quoted.join(", "))
    };
    let mut text = format!("&user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:", user.uid.as_str());
    text += &match user.groups.as_slice() {
        [] => "[]string(nil)".into(),
        groups => list(groups),
    };
    text += ", Extra:map[string][]string";
    if user.extra.is_empty() {
        return text + "(nil)}";
    }
    let pairs: Vec<String> = user
        .extra
        .iter()
        .map(|(key, values)| format!("{:?}:{}", key.as_str(), list(values)))
        .collect();
    let _ = write!(text, "{{{}}}}}", pairs.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (key, value) in pairs {
            headers.append(*key, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn headers_are_read_and_taken_off() {
        let mut given = headers(&[
            ("accept", "*/*"),
            ("impersonate-user", "bob"),
            ("impersonate-group", "a"),
            ("impersonate-group", "b"),
            ("impersonate-uid", "7"),
            ("impersonate-extra-example.com%2fscopes", "x"),
            ("impersonate-extra-example.com%2fscopes", "y"),
        ]);
        let wanted = take(&mut given).unwrap().unwrap();
        assert_eq!((wanted.name.as_str(), wanted.uid.as_str()), ("bob", "7"));
        assert_eq!(wanted.groups, ["a", "b"]);
        assert_eq!(wanted.extra["example.com/scopes"], ["x", "y"]);
        assert_eq!(given, headers(&[("accept", "*/*")]));
        assert_eq!(take(&mut given).unwrap(), None);
    }

    /// As Go's `PathUnescape` has it: one escape that is none leaves the whole key as it was sent.
    #[test]
    fn a_key_that_is_escaped_wrongly_stands_as_it_is() {
        for (sent, key) in [
            ("a%2fb", "a/b"),
            ("a%2Fb%41", "a/bA"),
            ("a+b", "a+b"),
            ("100%", "100%"),
            ("%zz%41", "%zz%41"),
            ("%4", "%4"),
            ("a%2fb%2", "a%2fb%2"),
        ] {
            assert_eq!(extra_key(sent), key, "{sent}");
        }
    }

    /// Left out, somebody would act as himself who asked to be less.
    #[test]
    fn names_have_letters_beyond_ascii_and_no_value_is_passed_over() {
        let mut given = HeaderMap::new();
        let bytes = |b: &[u8]| http::HeaderValue::from_bytes(b).unwrap();
        given.insert("impersonate-user", bytes("j\u{fc}rgen".as_bytes()));
        given.insert("impersonate-group", bytes("b\u{fc}ro".as_bytes()));
        let wanted = take(&mut given).unwrap().unwrap();
        assert_eq!(
            (wanted.name.as_str(), wanted.groups.as_slice()),
            ("j\u{fc}rgen", &["b\u{fc}ro".into()][..])
        );
        given.insert("impersonate-user", bytes(b"a\xff"));
        assert_eq!(take(&mut given).unwrap().unwrap().name, "a\u{fffd}");
    }

    #[test]
    fn nobody_to_act_as_is_said_as_upstream_says_it() {
        let said = |pairs: &[(&'static str, &'static str)]| take(&mut headers(pairs)).unwrap_err().message;
        assert_eq!(
            said(&[
                ("impersonate-group", "g1"),
                ("impersonate-extra-foo", "a"),
                ("impersonate-extra-foo", "b"),
                ("impersonate-uid", "7")
            ]),
            "requested &user.DefaultInfo{Name:\"\", UID:\"7\", Groups:[]string{\"g1\"}, \
             Extra:map[string][]string{\"foo\":[]string{\"a\", \"b\"}}} without impersonating a user name"
        );
        assert_eq!(
            said(&[("impersonate-uid", "7")]),
            "requested &user.DefaultInfo{Name:\"\", UID:\"7\", Groups:[]string(nil), Extra:map[string][]string(nil)} \
             without impersonating a user name"
        );
    }
}
