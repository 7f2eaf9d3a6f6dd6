//! Tokens that a file names (`--token-auth-file`): one a line, with the user's name, his uid, and his groups. They never end
//! and are read at the start only.

use crate::config::file;
use crate::request::UserInfo;
use anyhow::{Context, Result, bail, ensure};
use keelson_api::Str;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;

/// Known by their hashes: the time that it takes to find one tells nothing of it, and no text of one is kept.
#[derive(Default)]
pub struct StaticTokens(HashMap<[u8; 32], UserInfo>);

impl std::fmt::Debug for StaticTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl StaticTokens {
    pub fn open(path: &Path) -> Result<StaticTokens> {
        StaticTokens::parse(&file::read(path)?, &path.display().to_string())
    }

    fn parse(text: &str, path: &str) -> Result<StaticTokens> {
        let mut tokens = HashMap::new();
        for (i, record) in records(text)
            .with_context(|| format!("token file '{path}'"))?
            .iter()
            .enumerate()
        {
            let [token, name, uid, more @ ..] = record.as_slice() else {
                bail!(
                    "token file '{path}' must have at least 3 columns (token, user name, user uid), found {}",
                    record.len()
                );
            };
            let number = i + 1;
            if token.is_empty() {
                tracing::warn!("empty token has been found in token file '{path}', record number '{number}'");
                continue;
            }
            let user = UserInfo {
                name: name.as_str().into(),
                uid: uid.as_str().into(),
                groups: more
                    .first()
                    .map(|groups| groups.split(',').map(Str::from).collect())
                    .unwrap_or_default(),
                ..UserInfo::default()
            };
            if tokens.insert(Sha256::digest(token).into(), user).is_some() {
                tracing::warn!("duplicate token has been found in token file '{path}', record number '{number}'");
            }
        }
        Ok(StaticTokens(tokens))
    }

    pub fn authenticate(&self, token: &str) -> Option<UserInfo> {
        let key: [u8; 32] = Sha256::digest(token).into();
        self.0.get(&key).cloned()
    }
}

/// Four mean something.
const MOST_COLUMNS: usize = 1024;

/// Comma-separated values as Go reads them: empty lines are nothing, a field in quotes has anything in it, a quote twice is
/// one, and a quote anywhere else is wrong. A carriage return is part of a line's end, also where the file ends with it.
fn records(text: &str) -> Result<Vec<Vec<String>>> {
    let text = text.replace("\r\n", "\n");
    let text = text.strip_suffix('\r').unwrap_or(&text);
    let (mut records, mut rest, mut line) = (Vec::new(), text, 1);
    while !rest.is_empty() {
        if let Some(next) = rest.strip_prefix('\n') {
            (rest, line) = (next, line + 1);
            continue;
        }
        let began = rest;
        // Where it is Go's to say, lines and columns counted from one.
        let place = |at: usize| {
            let before = &began[..at];
            let column = at - before.rfind('\n').map_or(0, |end| end + 1) + 1;
            format!(
                "parse error on line {}, column {column}",
                line + before.matches('\n').count()
            )
        };
        let mut record = Vec::new();
        loop {
            let (field, after) = match rest.strip_prefix('"') {
                Some(quoted) => {
                    let (field, after) = in_quotes(quoted);
                    let Some(after) = after else {
                        let end = place(began.strip_suffix('\n').unwrap_or(began).len());
                        bail!("{end}: a quoted field has no end, extraneous or missing \" in quoted-field");
                    };
                    if !after.is_empty() && !after.starts_with([',', '\n']) {
                        let at = place(began.len() - after.len() - 1);
                        bail!("{at}: extraneous or missing \" in quoted-field");
                    }
                    (field, after)
                }
                None => {
                    let end = rest.find([',', '\n']).unwrap_or(rest.len());
                    let field = &rest[..end];
                    if let Some(quote) = field.find('"') {
                        let at = place(began.len() - rest.len() + quote);
                        bail!("{at}: bare \" in non-quoted-field");
                    }
                    (field.to_string(), &rest[end..])
                }
            };
            record.push(field);
            ensure!(
                record.len() <= MOST_COLUMNS,
                "{}: more than {MOST_COLUMNS} columns",
                place(0)
            );
            match after.strip_prefix(',') {
                Some(next) => rest = next,
                None => {
                    rest = after.strip_prefix('\n').unwrap_or(after);
                    break;
                }
            }
        }
        line += began[..began.len() - rest.len()].matches('\n').count();
        records.push(record);
    }
    Ok(records)
}

/// What stands up to the closing quote, and what follows that; `None`: nothing closes it.
fn in_quotes(text: &str) -> (String, Option<&str>) {
    let (mut field, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('"') {
        field.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return (field, Some(rest)),
        }
    }
    (field, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_go_reads_them() {
        let rows = |text: &str| records(text).map_err(|e| e.to_string());
        assert_eq!(
            rows("a,b,c\n\nd,\"e,\"\"f\",\n").unwrap(),
            [["a", "b", "c"], ["d", "e,\"f", ""]]
        );
        assert_eq!(rows("a,\"b\nc\",d\r\n").unwrap(), [["a", "b\nc", "d"]]);
        assert_eq!(rows(" a , b").unwrap(), [[" a ", " b"]]);
        assert_eq!(rows("a,b\r\nc,d\r").unwrap(), [["a", "b"], ["c", "d"]]);
        let quoted = "extraneous or missing \" in quoted-field";
        assert_eq!(
            rows("\"a\"b,c,d\n").unwrap_err(),
            format!("parse error on line 1, column 3: {quoted}")
        );
        assert_eq!(
            rows("a\"b,c,d\n").unwrap_err(),
            "parse error on line 1, column 2: bare \" in non-quoted-field"
        );
        assert_eq!(
            rows("x,y\na,b\"\n").unwrap_err(),
            "parse error on line 2, column 4: bare \" in non-quoted-field"
        );
        assert!(rows("\"tok,name,u\n").unwrap_err().ends_with(quoted));
    }

    #[test]
    fn a_token_is_its_users_and_the_last_of_two_counts() {
        let text = "one,ana,1,\"staff,admins\"\n,nobody,2\ntwo,bob,3,,more\none,carl,4\n";
        let tokens = StaticTokens::parse(text, "f").unwrap();
        let name = |token: &str| tokens.authenticate(token).map(|user| user.name.to_string());
        assert_eq!((name("one"), name("two")), (Some("carl".into()), Some("bob".into())));
        assert_eq!((name(""), name("three")), (None, None));
        assert_eq!(tokens.authenticate("two").unwrap().groups, [""]);
        let ana = StaticTokens::parse("one,ana,1,\"staff,admins\"", "f")
            .unwrap()
            .authenticate("one")
            .unwrap();
        assert_eq!(
            (ana.uid.as_str(), ana.groups),
            ("1", vec!["staff".into(), "admins".into()])
        );
        let short = StaticTokens::parse("a,b\n", "f").unwrap_err();
        assert_eq!(
            short.to_string(),
            "token file 'f' must have at least 3 columns (token, user name, user uid), found 2"
        );
        assert_eq!(format!("{tokens:?}"), "2 tokens");
    }
}
