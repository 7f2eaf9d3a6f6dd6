//! Source text to a syntax tree, and messages that point into the text.
//!
//! The parser is the `cel` crate's; its standard macros come expanded. Macros it doesn't know (two variables, optional
//! maps) stay calls, which checking and evaluation understand.

use cel::common::ast::{EntryExpr, Expr, IdedExpr, SourceInfo};
use cel::parser::Parser;

/// A parsed expression.
#[derive(Debug)]
pub struct Parsed {
    pub expr: IdedExpr,
    pub info: SourceInfo,
}

/// The longest expression that is parsed.
const MAX_SOURCE: usize = 100_000;
/// The deepest tree that is checked and evaluated, both by recursion.
const MAX_NESTING: usize = 96;
/// Whoever parses recurs too: with so few marks that can nest, the caller's stack is enough; with more it has one of its
/// own, that is enough for the most.
const FEW_MARKS: usize = 24;
const MOST_MARKS: usize = 10_000;
const STACK: usize = 128 << 20;

pub fn parse(source: &str) -> Result<Parsed, String> {
    if source.len() > MAX_SOURCE {
        return Err(format!(
            "ERROR: <input>:-1:0: expression code point size exceeds limit: size: {}, limit {MAX_SOURCE}",
            source.chars().count()
        ));
    }
    let marks = source.bytes().filter(|b| b"([{.+-*/%?!=<>&|".contains(b)).count();
    if marks > MOST_MARKS {
        return Err(too_deep());
    }
    if marks <= FEW_MARKS {
        return parse_here(source);
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let parsing = thread.spawn_scoped(scope, || parse_here(source));
        let parsing = parsing.map_err(|e| format!("ERROR: <input>:-1:0: the expression can't be parsed now: {e}"))?;
        parsing
            .join()
            .unwrap_or_else(|_| Err("ERROR: <input>:-1:0: the parser failed".into()))
    })
}

fn too_deep() -> String {
    format!("ERROR: <input>:-1:0: expression recursion limit exceeded: {MAX_NESTING}")
}

/// How deep the tree goes, as far as it matters.
fn is_too_deep(e: &IdedExpr, room: usize) -> bool {
    let Some(room) = room.checked_sub(1) else { return true };
    let deep = |e: &IdedExpr| is_too_deep(e, room);
    let entry = |e: &EntryExpr| match e {
        EntryExpr::StructField(f) => deep(&f.value),
        EntryExpr::MapEntry(m) => deep(&m.key) || deep(&m.value),
    };
    match &e.expr {
        Expr::Call(c) => c.target.as_deref().is_some_and(deep) || c.args.iter().any(deep),
        Expr::Comprehension(c) => [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result]
            .into_iter()
            .any(deep),
        Expr::List(l) => l.elements.iter().any(deep),
        Expr::Map(m) => m.entries.iter().any(|e| entry(&e.expr)),
        Expr::Struct(s) => s.entries.iter().any(|e| entry(&e.expr)),
        Expr::Select(s) => deep(&s.operand),
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => false,
    }
}

fn parse_here(source: &str) -> Result<Parsed, String> {
    let parser = Parser::new()
        .enable_optional_syntax(true)
        .enable_ident_escape_syntax(true);
    match parser.parse_with_source_info(source) {
        Ok((expr, _)) if is_too_deep(&expr, MAX_NESTING) => Err(too_deep()),
        Ok((expr, info)) => Ok(Parsed { expr, info }),
        Err(errors) => {
            let each: Vec<String> = errors
                .errors
                .iter()
                .map(|e| {
                    let (line, column) = (e.pos.0.max(1) as usize, e.pos.1.max(1) as usize);
                    let mut message = if e.msg.starts_with("Syntax error") || e.msg.contains("unsupported") {
                        e.msg.clone()
                    } else {
                        format!("Syntax error: {}", e.msg)
                    };
                    // What stands after a whole expression could be anything that goes on, but only the end would do.
                    if let Some((found, _)) = message.split_once(" expecting {<EOF>, ")
                        && found.contains("mismatched input")
                    {
                        message = format!("{found} expecting <EOF>");
                    }
                    match source.is_empty() {
                        true => format!("ERROR: <input>:1:0: {message}"),
                        false => located(source, line, column, &message),
                    }
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
        // Below what isn't ASCII the marks are wide.
        let mut chars = text.chars();
        let dots: String = chars
            .by_ref()
            .take(column - 1)
            .map(|c| if c.is_ascii() { '.' } else { '\u{ff0e}' })
            .collect();
        let mark = if chars.next().is_none_or(|c| c.is_ascii()) {
            '^'
        } else {
            '\u{ff3e}'
        };
        let dots = format!(
            "{dots}{}",
            ".".repeat((column - 1).saturating_sub(dots.chars().count()))
        );
        out.push_str(&format!("\n | {}\n | {dots}{mark}", text.replace('\t', " ")));
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
