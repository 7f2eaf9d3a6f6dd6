//! Documents that nobody sends who means well: they cost no more than a bound, and are refused or read, never fatal.
#![allow(clippy::unwrap_used)]

use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{Format, Strictness, decode_text};
use std::time::{Duration, Instant};

fn read(text: &[u8], format: Format) -> Result<(), String> {
    let begun = Instant::now();
    let schema = builtin_kind_at("v1", "ConfigMap");
    let read = decode_text(text, format, schema.as_ref(), Strictness::Report);
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it took {:?}",
        begun.elapsed()
    );
    read.map(drop).map_err(|e| e.to_string())
}

/// Each name stands for nine of the one before: a few lines for a billion words.
#[test]
fn aliases_that_multiply_are_refused() {
    let mut text =
        String::from("apiVersion: v1\nkind: ConfigMap\ndata:\n  a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for pair in ('a'..='i').collect::<Vec<_>>().windows(2) {
        let list = vec![format!("*{}", pair[0]); 9].join(", ");
        text += &format!("  {0}: &{0} [{list}]\n", pair[1]);
    }
    assert!(read(text.as_bytes(), Format::Yaml).is_err());
}

#[test]
fn what_nests_without_end_is_refused() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = [open.repeat(200_000), "1".into(), close.repeat(200_000)].concat();
        assert!(read(deep.as_bytes(), Format::Json).is_err());
        assert!(read(deep.as_bytes(), Format::Yaml).is_err());
        assert!(read(open.repeat(200_000).as_bytes(), Format::Json).is_err());
    }
    let stairs: String = (0..3000).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    assert!(read(stairs.as_bytes(), Format::Yaml).is_err());
}
