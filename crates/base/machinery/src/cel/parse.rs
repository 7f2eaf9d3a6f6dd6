//! Source text to a syntax tree, and messages that point into the text.
//!
//! The parser is the `cel` crate's; its standard macros come expanded. Macros it doesn't know (two variables, optional
//! maps) stay calls, which checking and evaluation understand.

use cel::common::ast::{IdedExpr, SourceInfo};
use cel::parser::Parser;

/// A parsed expression.
#[derive(Debug)]
pub struct Parsed {
    pub expr: IdedExpr,
    pub info: SourceInfo,
}

/// The longest expression that is parsed.
const MAX_SOURCE: usize = 100_000;

pub fn parse(source: &str) -> Result<Parsed, String> {
    if source.len() > MAX_SOURCE {
        return Err(format!(
            "ERROR: <input>:-1:0: expression code point size exceeds limit: size: {}, limit {MAX_SOURCE}",
            source.chars().count()
        ));
    }
    let parser = Parser::new()
        .enable_optional_syntax(true)
        .enable_ident_escape_syntax(true);
    match parser.parse_with_source_info(source) {
        Ok((expr, info)) => Ok(Parsed { expr, info }),
        Err(errors) => {
            let each: Vec<String> = errors
                .errors
                .iter()
                .map(|e| {
                    let (line, column) = (e.pos.0.max(1) as usize, e.pos.1.max(1) as usize);
                    let message = if e.msg.starts_with("Syntax error") || e.msg.contains("unsupported") {
                        e.msg.clone()
                    } else {
                        format!("Syntax error: {}", e.msg)
                    };
                    located(source, line, column, &message)
                })
                .collect();
            Err(each.join("\n"))
        }
    }
}

/// A message with its place: line and column count from 1.
pub fn located(source: &str, line: usize, column: usize, message: &str) -> String {
    let mut out = format!("ERROR: <input>:{line}:{column}: {message}");
    if let Some(text) = source.lines().nth(line - 1) {
        out.push_str(&format!("\n | {text}\n | {}^", ".".repeat(column - 1)));
    }
    out
}

/// The line and column of an offset.
pub fn position(source: &str, offset: usize) -> (usize, usize) {
    let (mut line, mut column) = (1, 1);
    for (i, c) in source.chars().enumerate() {
        if i == offset {
            break;
        }
        if c == '\n' {
            line += 1;
            column = 1;
        } else {
            column += 1;
        }
    }
    (line, column)
}
