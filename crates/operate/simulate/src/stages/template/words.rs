//! The words of an action.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// A keyword or a function.
    Name(String),
    /// `.`, `.a.b`.
    Field(Vec<String>),
    /// `$`, `$a.b`.
    Variable(String, Vec<String>),
    Literal(Value),
    Pipe,
    Open,
    /// With the fields that are asked of what is in the parentheses.
    Close(Vec<String>),
    Declare,
    Assign,
    Comma,
}

pub fn words(action: &str) -> Result<Vec<Word>, String> {
    let mut all = Vec::new();
    let mut rest = action.trim();
    while let Some(first) = rest.chars().next() {
        let (word, length) = match first {
            '|' => (Word::Pipe, 1),
            '(' => (Word::Open, 1),
            ')' => {
                let (path, length) = path(&rest[1..]);
                (Word::Close(path), 1 + length)
            }
            ',' => (Word::Comma, 1),
            '=' => (Word::Assign, 1),
            ':' if rest.starts_with(":=") => (Word::Declare, 2),
            '.' => {
                let (path, length) = path(rest);
                (Word::Field(path), length.max(1))
            }
            '$' => {
                let name = name(&rest[1..]);
                let (path, length) = path(&rest[1 + name.len()..]);
                (Word::Variable(name.to_owned(), path), 1 + name.len() + length)
            }
            '`' => {
                let end = rest[1..].find('`').ok_or("a raw text doesn't end")?;
                (Word::Literal(rest[1..1 + end].into()), end + 2)
            }
            '"' => {
                let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
                match values.next() {
                    Some(Ok(text)) => (Word::Literal(text), values.byte_offset()),
                    _ => return Err(format!("{rest:?} doesn't begin with a text")),
                }
            }
            c if c.is_ascii_digit() || c == '-' => {
                let end = rest[1..].find(|c: char| !c.is_ascii_digit() && c != '.');
                let end = end.map_or(rest.len(), |end| end + 1);
                let number = serde_json::from_str(&rest[..end]);
                (
                    Word::Literal(number.map_err(|_| format!("{:?} is no number", &rest[..end]))?),
                    end,
                )
            }
            c if c.is_alphabetic() || c == '_' => {
                let name = name(rest);
                let word = match name {
                    "true" => Word::Literal(true.into()),
                    "false" => Word::Literal(false.into()),
                    "nil" => Word::Literal(Value::Null),
                    _ => Word::Name(name.to_owned()),
                };
                (word, name.len())
            }
            other => return Err(format!("{other:?} isn't understood in an action")),
        };
        all.push(word);
        rest = rest[length..].trim_start();
    }
    Ok(all)
}

fn name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// `.a.b`, and how long that is.
fn path(text: &str) -> (Vec<String>, usize) {
    let (mut all, mut length) = (Vec::new(), 0);
    while let Some(rest) = text[length..].strip_prefix('.') {
        let name = name(rest);
        if name.is_empty() {
            break;
        }
        all.push(name.to_owned());
        length += 1 + name.len();
    }
    (all, length)
}
