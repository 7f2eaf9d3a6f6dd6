//! Templates of Go's `text/template`, in the part of it that stages are written in: fields, variables, pipelines, `if`, `range`,
//! `with`, and functions of a fixed list. Anything else is refused by its name when a stage is read, not when it is played.

mod parse;
mod play;
mod words;

use serde_json::Value;

pub use play::Functions;

/// How deep blocks and parentheses nest, and how much a template may write.
const DEEPEST: usize = 64;
const LONGEST: usize = 1 << 20;

#[derive(Clone, Debug)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Print(Pipe),
    Set {
        name: String,
        is_new: bool,
        to: Pipe,
    },
    If {
        branches: Vec<(Pipe, Vec<Part>)>,
        other: Vec<Part>,
    },
    Range {
        index: Option<String>,
        item: Option<String>,
        over: Pipe,
        body: Vec<Part>,
        other: Vec<Part>,
    },
    With {
        name: Option<String>,
        of: Pipe,
        body: Vec<Part>,
        other: Vec<Part>,
    },
}

/// Each command's value is the last argument of the next.
#[derive(Clone, Debug)]
struct Pipe(Vec<Command>);

#[derive(Clone, Debug)]
enum Command {
    Call(String, Vec<Term>),
    Term(Term),
}

#[derive(Clone, Debug)]
enum Term {
    Literal(Value),
    /// Of `.`.
    Field(Vec<String>),
    /// Of a variable; the empty name is `$`.
    Variable(String, Vec<String>),
    /// What a function gives that takes nothing.
    Function(String),
    Nested(Pipe, Vec<String>),
}

impl Template {
    pub fn parse(text: &str) -> Result<Template, String> {
        parse::template(text).map(Template)
    }

    pub fn render(&self, object: &Value, functions: &dyn Functions) -> Result<String, String> {
        play::render(&self.0, object, functions)
    }

    /// What it renders, read as YAML.
    pub fn value(&self, object: &Value, functions: &dyn Functions) -> Result<Value, String> {
        let text = self.render(object, functions)?;
        serde_saphyr::from_str(&text).map_err(|e| format!("what the template gives is no YAML: {e}"))
    }
}
