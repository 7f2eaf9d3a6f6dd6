//! YAML, as upstream reads it: turned into JSON first, so that one decoder judges both.

use super::{DecodeError, Decoded, Strictness, json};
use crate::{SchemaRef, Value};

/// Of a document's events those that stand there only as aliases of others. Who writes manifests resolves them before.
const MOST_REPLAYED: usize = 10_000;

fn options(duplicate_keys: serde_saphyr::DuplicateKeyPolicy) -> serde_saphyr::Options {
    serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        // A few bytes could stand for a document that takes minutes.
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_REPLAYED },
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

/// The longest document that is tried as JSON: well below any bound of the YAML reader's.
const MOST_TRIED: usize = 64 << 10;

/// Decodes a YAML document; see [`json::decode`].
pub fn decode(bytes: &[u8], schema: Option<&SchemaRef>, strictness: Strictness) -> Result<Decoded, DecodeError> {
    if schema.is_none()
        && let Some(decoded) = plain_json(bytes)
    {
        return Ok(decoded);
    }
    let read = |policy| serde_saphyr::from_slice_with_options::<Value>(bytes, options(policy));
    let value = read(serde_saphyr::DuplicateKeyPolicy::LastWins)
        .map_err(|e| DecodeError(format!("error converting YAML to JSON: yaml: {e}")))?;
    let mut decoded = json::decode(&json::encode(&value), schema, strictness)?;
    if strictness == Strictness::Report
        && let Err(e) = read(serde_saphyr::DuplicateKeyPolicy::Error)
    {
        decoded.findings.insert(0, finding(&e));
    }
    Ok(decoded)
}

/// JSON that YAML reads as the same: no escapes, no keys that stand twice, no numbers but integers. Programs write YAML so.
fn plain_json(bytes: &[u8]) -> Option<Decoded> {
    let is_plain = |b: &u8| matches!(b, b'\n' | b' '..=b'~') && *b != b'\\';
    if !bytes.starts_with(b"{") || bytes.len() > MOST_TRIED || !bytes.iter().all(is_plain) {
        return None;
    }
    let decoded = json::decode(bytes, None, Strictness::Report).ok()?;
    (decoded.findings.is_empty() && reads_alike(&decoded.value)).then_some(decoded)
}

fn reads_alike(value: &Value) -> bool {
    match value {
        Value::Float(_) => false,
        Value::Array(items) => items.iter().all(reads_alike),
        // YAML's key for merging.
        Value::Object(map) => map.iter().all(|(key, v)| key != "<<" && reads_alike(v)),
        _ => true,
    }
}

/// What the strict reading says, in the words of upstream's reader when a key stands twice.
fn finding(e: &serde_saphyr::Error) -> String {
    match e {
        serde_saphyr::Error::DuplicateMappingKey {
            key: Some(key),
            location,
        } => {
            format!(
                "yaml: unmarshal errors:\n  line {}: key {key:?} already set in map",
                location.line()
            )
        }
        e => format!("yaml: {e}"),
    }
}

/// Encodes a value as a YAML document.
pub fn encode(value: &Value) -> Vec<u8> {
    // Every value is plain data and the target is memory: there is nothing to fail.
    serde_saphyr::to_string(value).unwrap_or_default().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_reads_as_yaml_does_by_whichever_way() {
        let same = [
            r#"{"a": {"b":[1,-2,null,true,"x: y # z","no","0x1F"]},"c":"","":"~"}"#,
            "{\"a\" :\n [ ] , \"b\": {}}",
        ];
        for text in same {
            let quick = plain_json(text.as_bytes()).unwrap().value;
            let read = serde_saphyr::from_slice_with_options::<Value>(
                text.as_bytes(),
                options(serde_saphyr::DuplicateKeyPolicy::Error),
            );
            assert_eq!(quick, read.unwrap(), "{text}");
        }
        let other = [
            r#"{"a":1.0}"#,
            r#"{"a":1e3}"#,
            r#"{"a":"\u0041"}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"<<":{"a":1}}"#,
            r#"{a: 1}"#,
            "a: 1",
            "{\"a\":\t1}",
            r#"{"a":"ä"}"#,
        ];
        for text in other {
            assert!(plain_json(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn a_few_bytes_are_not_a_billion_values() {
        let mut bomb = String::from("x: &b0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
        for level in 1..=8 {
            let before = level - 1;
            bomb += &format!("f{level}: &b{level} [*b{before}, *b{before}, *b{before}, *b{before}, *b{before}]\n");
        }
        assert!(decode(bomb.as_bytes(), None, Strictness::Report).is_err());
        let honest = "a: &a {b: 1}\nc: *a\nd: [*a, *a]\n";
        assert!(decode(honest.as_bytes(), None, Strictness::Report).is_ok());
    }
}
