//! From a template's text to its parts.

use super::play::KNOWN;
use super::words::{Word, words};
use super::{Command, DEEPEST, Part, Pipe, Term};

/// Text and actions, in order.
enum Piece<'a> {
    Text(&'a str),
    Action(&'a str),
}

pub fn template(text: &str) -> Result<Vec<Part>, String> {
    let pieces = pieces(text)?;
    let mut parser = Parser {
        pieces: pieces.into_iter(),
        depth: 0,
    };
    let (parts, end) = parser.block()?;
    match end {
        Stop::Text => Ok(parts),
        Stop::End => Err("there is an {{end}} without a beginning".into()),
        Stop::Else(_) => Err("there is an {{else}} without an if, range or with".into()),
    }
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let (mut all, mut rest, mut trims) = (Vec::new(), text, false);
    loop {
        let begin = rest.find("{{");
        let mut before = &rest[..begin.unwrap_or(rest.len())];
        if trims {
            before = before.trim_start();
        }
        let Some(begin) = begin else {
            all.push(Piece::Text(before));
            return Ok(all);
        };
        let mut inside = &rest[begin + 2..];
        if let Some(after) = inside.strip_prefix("- ") {
            inside = after;
            before = before.trim_end();
        }
        all.push(Piece::Text(before));
        let end = end_of(inside).ok_or("an action doesn't end: }} is missing")?;
        let mut action = &inside[..end];
        rest = &inside[end + 2..];
        trims = action.ends_with(" -");
        if trims {
            action = &action[..action.len() - 2];
        }
        let is_comment = action.trim().starts_with("/*") && action.trim().ends_with("*/");
        if !is_comment {
            all.push(Piece::Action(action));
        }
    }
}

/// Where an action ends: not within its texts.
fn end_of(text: &str) -> Option<usize> {
    let (mut within, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match within {
            None if text[at..].starts_with("}}") => return Some(at),
            None if c == '"' || c == '`' => within = Some(c),
            None => {}
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(quote) if c == quote => within = None,
            Some(_) => {}
        }
    }
    None
}

/// What ended a block.
enum Stop {
    Text,
    End,
    /// With what follows the word, as in `else if`.
    Else(Vec<Word>),
}

struct Parser<'a> {
    pieces: std::vec::IntoIter<Piece<'a>>,
    depth: usize,
}

impl Parser<'_> {
    fn block(&mut self) -> Result<(Vec<Part>, Stop), String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("blocks nest deeper than {DEEPEST}"));
        }
        let mut parts = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let action = match piece {
                Piece::Text("") => continue,
                Piece::Text(text) => {
                    parts.push(Part::Text(text.to_owned()));
                    continue;
                }
                Piece::Action(action) => action,
            };
            let words = words(action).map_err(|e| format!("{{{{{action}}}}}: {e}"))?;
            let end = match words.first() {
                Some(Word::Name(name)) if name == "end" && words.len() == 1 => Some(Stop::End),
                Some(Word::Name(name)) if name == "else" => Some(Stop::Else(words[1..].to_vec())),
                _ => None,
            };
            if let Some(end) = end {
                self.depth -= 1;
                return Ok((parts, end));
            }
            parts.push(self.part(&words).map_err(|e| format!("{{{{{action}}}}}: {e}"))?);
        }
        self.depth -= 1;
        Ok((parts, Stop::Text))
    }

    fn part(&mut self, words: &[Word]) -> Result<Part, String> {
        match words {
            [Word::Name(name), rest @ ..] if name == "if" => self.choice(rest),
            [Word::Name(name), rest @ ..] if name == "range" => {
                let (index, item, over) = match rest {
                    [
                        Word::Variable(i, _),
                        Word::Comma,
                        Word::Variable(v, _),
                        Word::Declare,
                        over @ ..,
                    ] => (Some(i.clone()), Some(v.clone()), over),
                    [Word::Variable(v, _), Word::Declare, over @ ..] => (None, Some(v.clone()), over),
                    over => (None, None, over),
                };
                let over = pipe(over)?;
                let (body, other) = self.body_and_other("range")?;
                Ok(Part::Range {
                    index,
                    item,
                    over,
                    body,
                    other,
                })
            }
            [Word::Name(name), rest @ ..] if name == "with" => {
                let (name, of) = match rest {
                    [Word::Variable(v, _), Word::Declare, of @ ..] => (Some(v.clone()), of),
                    of => (None, of),
                };
                let of = pipe(of)?;
                let (body, other) = self.body_and_other("with")?;
                Ok(Part::With { name, of, body, other })
            }
            [
                Word::Variable(name, path),
                sign @ (Word::Declare | Word::Assign),
                to @ ..,
            ] if path.is_empty() => Ok(Part::Set {
                name: name.clone(),
                is_new: *sign == Word::Declare,
                to: pipe(to)?,
            }),
            _ => Ok(Part::Print(pipe(words)?)),
        }
    }

    fn choice(&mut self, first: &[Word]) -> Result<Part, String> {
        let mut branches = Vec::new();
        let mut condition = pipe(first)?;
        loop {
            let (body, end) = self.block()?;
            branches.push((condition, body));
            match end {
                Stop::End => {
                    return Ok(Part::If {
                        branches,
                        other: Vec::new(),
                    });
                }
                Stop::Text => return Err("it doesn't end: {{end}} is missing".into()),
                Stop::Else(words) => match &words[..] {
                    [] => {
                        let other = self.last("if")?;
                        return Ok(Part::If { branches, other });
                    }
                    [Word::Name(name), rest @ ..] if name == "if" => condition = pipe(rest)?,
                    _ => return Err("only if can follow else".into()),
                },
            }
        }
    }

    fn body_and_other(&mut self, what: &str) -> Result<(Vec<Part>, Vec<Part>), String> {
        let (body, end) = self.block()?;
        match end {
            Stop::End => Ok((body, Vec::new())),
            Stop::Else(words) if words.is_empty() => Ok((body, self.last(what)?)),
            Stop::Else(_) => Err(format!("nothing can follow else in {what}")),
            Stop::Text => Err("it doesn't end: {{end}} is missing".into()),
        }
    }

    fn last(&mut self, what: &str) -> Result<Vec<Part>, String> {
        match self.block()? {
            (parts, Stop::End) => Ok(parts),
            _ => Err(format!("the else of {what} doesn't end: {{{{end}}}} is missing")),
        }
    }
}

fn pipe(words: &[Word]) -> Result<Pipe, String> {
    let mut rest = words;
    let pipe = read_pipe(&mut rest, 0)?;
    match rest {
        [] => Ok(pipe),
        [word, ..] => Err(format!("{word:?} isn't understood here")),
    }
}

fn read_pipe(rest: &mut &[Word], depth: usize) -> Result<Pipe, String> {
    if depth > DEEPEST {
        return Err(format!("parentheses nest deeper than {DEEPEST}"));
    }
    let mut commands = Vec::new();
    loop {
        commands.push(command(rest, depth)?);
        match *rest {
            [Word::Pipe, after @ ..] => *rest = after,
            _ => return Ok(Pipe(commands)),
        }
    }
}

fn command(rest: &mut &[Word], depth: usize) -> Result<Command, String> {
    let mut terms = Vec::new();
    while let [first, after @ ..] = *rest {
        let term = match first {
            Word::Pipe | Word::Close(_) => break,
            Word::Literal(value) => Term::Literal(value.clone()),
            Word::Field(path) => Term::Field(path.clone()),
            Word::Variable(name, path) => Term::Variable(name.clone(), path.clone()),
            Word::Name(name) if KNOWN.contains(&name.as_str()) => Term::Function(name.clone()),
            Word::Name(name) => return Err(format!("the function {name} isn't one of those that are understood")),
            Word::Open => {
                *rest = after;
                let nested = read_pipe(rest, depth + 1)?;
                let [Word::Close(path), after @ ..] = *rest else {
                    return Err("a parenthesis isn't closed".into());
                };
                *rest = after;
                terms.push(Term::Nested(nested, path.clone()));
                continue;
            }
            other => return Err(format!("{other:?} isn't understood here")),
        };
        terms.push(term);
        *rest = after;
    }
    let mut terms = terms.into_iter();
    match (terms.next(), terms.len()) {
        (Some(Term::Function(name)), _) => Ok(Command::Call(name, terms.collect())),
        (Some(term), 0) => Ok(Command::Term(term)),
        (Some(_), _) => Err("only functions take arguments".into()),
        (None, _) => Err("a value is missing".into()),
    }
}
