//! The flags, for a parser of command lines and its help.

use super::kinds::Kind;
use super::{Document, fields, show};
use crate::config::{Alone, Config};
use fields::What;

/// A flag of upstream's kubelet that says a field.
pub struct Flag {
    pub name: &'static str,
    /// The field, or the way to a part of it.
    pub field: String,
    /// What stands for its value; empty: it is true or false, and true if it says nothing.
    pub value: &'static str,
    /// What a kubelet that is a program of its own does without it.
    pub default: Option<String>,
    /// Whether anything but the default can be had.
    pub is_free: bool,
}

/// All of them, as a kubelet that is a program of its own takes them.
pub fn all() -> impl Iterator<Item = Flag> {
    let defaults = show::configz(&alone());
    fields::flags().map(move |(name, field, path)| {
        let keys: Vec<&str> = std::iter::once(field.name)
            .chain(path.iter().map(|(key, _)| *key))
            .collect();
        let kind = path.last().map_or(field.kind, |(_, kind)| *kind);
        let default = defaults.pointer(&format!("/kubeletconfig/{}", keys.join("/")));
        Flag {
            name,
            field: keys.join("."),
            value: match kind {
                Kind::Bool => "",
                Kind::Int | Kind::Float => "N",
                Kind::Text => "TEXT",
                Kind::Path => "PATH",
                Kind::Duration => "DURATION",
                Kind::Texts | Kind::Map(_) | Kind::Bools | Kind::Taints | Kind::Memory | Kind::Object | Kind::List => {
                    "LIST"
                }
            },
            default: default.and_then(|value| show::as_flag(kind, value)),
            is_free: matches!(field.what, What::Set { .. } | What::Alone { .. }),
        }
    })
}

/// What is wrong with a flag for such a kubelet, whatever else is said.
pub fn judge(name: &str, text: &str) -> Result<(), String> {
    let mut document = Document::default();
    document.flag(name, text)?;
    match fields::flag(name) {
        Some((field, _)) => document.apply_one(field, &mut alone()),
        None => Ok(()),
    }
}

fn alone() -> Config {
    Config {
        alone: Some(Alone::default()),
        ..Config::default()
    }
}
