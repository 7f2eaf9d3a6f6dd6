//! The lexer and parser of the string form of label selectors.

use super::labels::{Operator, Requirement};
use crate::names;
use keelson_api::Str;
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Error,
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
}

fn keyword(s: &str) -> Option<Token> {
    Some(match s {
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "in" => Token::In,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "notin" => Token::NotIn,
        "(" => Token::Open,
        _ => return None,
    })
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | b'\n')
}
fn is_special(b: u8) -> bool {
    matches!(b, b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<')
}

fn lex(s: &str) -> Vec<(Token, String)> {
    let b = s.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < b.len() {
        if is_space(b[i]) {
            i += 1;
        } else if is_special(b[i]) {
            // The longest known symbol that starts here.
            let mut best = None;
            let mut end = i;
            while end < b.len() && is_special(b[end]) {
                end += 1;
                match keyword(&s[i..end]) {
                    Some(t) => best = Some((t, end)),
                    None if best.is_some() => break,
                    None => {}
                }
            }
            match best {
                Some((t, stop)) => {
                    out.push((t, s[i..stop].to_string()));
                    i = stop;
                }
                None => {
                    out.push((Token::Error, format!("error expected: keyword found '{}'", &s[i..end])));
                    i = end;
                }
            }
        } else {
            let start = i;
            while i < b.len() && !is_special(b[i]) && !is_space(b[i]) {
                i += 1;
            }
            let word = &s[start..i];
            out.push((keyword(word).unwrap_or(Token::Identifier), word.to_string()));
        }
    }
    out.push((Token::End, String::new()));
    out
}

struct Parser {
    items: Vec<(Token, String)>,
    at: usize,
}

impl Parser {
    fn raw(&self) -> (Token, &str) {
        // Past the end stays at the end: every path below stops there.
        let (t, s) = &self.items[self.at.min(self.items.len() - 1)];
        (*t, s)
    }
    /// The next token where `in` and `notin` may be plain words.
    fn peek(&self) -> (Token, &str) {
        match self.raw() {
            (Token::In | Token::NotIn, s) => (Token::Identifier, s),
            other => other,
        }
    }
    fn next(&mut self) -> (Token, String) {
        let (t, s) = self.peek();
        let out = (t, s.to_string());
        self.at += 1;
        out
    }
    fn next_operator(&mut self) -> (Token, String) {
        let (t, s) = self.raw();
        let out = (t, s.to_string());
        self.at += 1;
        out
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut tok, mut lit) = self.next();
        let mut negated = false;
        if tok == Token::Not {
            negated = true;
            (tok, lit) = self.next();
        }
        if tok != Token::Identifier {
            return Err(format!("found '{lit}', expected: identifier"));
        }
        let bad = names::label_key(&lit);
        if !bad.is_empty() {
            return Err(format!(
                "<nil>: Invalid value: {}: {}",
                names::go_quote(&lit),
                bad.join("; ")
            ));
        }
        if negated {
            return Requirement::new(lit, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Requirement::new(lit, Operator::Exists, Vec::new());
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => self.exact_value()?,
        };
        Requirement::new(lit, operator, values.into_iter().collect())
    }

    fn operator(&mut self) -> Result<Operator, String> {
        let (tok, lit) = self.next_operator();
        Ok(match tok {
            Token::In => Operator::In,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            Token::NotIn => Operator::NotIn,
            Token::NotEquals => Operator::NotEquals,
            _ => return Err(format!("found '{lit}', expected: in, notin, =, ==, !=, gt, lt")),
        })
    }

    fn values(&mut self) -> Result<BTreeSet<Str>, String> {
        let (tok, lit) = self.next();
        if tok != Token::Open {
            return Err(format!("found '{lit}' expected: '('"));
        }
        let (tok, lit) = self.peek();
        let lit = lit.to_string();
        match tok {
            Token::Identifier | Token::Comma => {
                let set = self.identifiers()?;
                if self.next().0 != Token::Close {
                    return Err(format!("found '{lit}', expected: ')'"));
                }
                Ok(set)
            }
            Token::Close => {
                self.at += 1;
                Ok([Str::default()].into())
            }
            _ => Err(format!("found '{lit}', expected: ',', ')' or identifier")),
        }
    }

    fn identifiers(&mut self) -> Result<BTreeSet<Str>, String> {
        let mut set = BTreeSet::new();
        loop {
            let (tok, lit) = self.next();
            match tok {
                Token::Identifier => {
                    set.insert(Str::from(lit));
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(set),
                        (_, lit) => return Err(format!("found '{lit}', expected: ',' or ')'")),
                    }
                }
                Token::Comma => {
                    if set.is_empty() {
                        set.insert(Str::default());
                    }
                    match self.peek().0 {
                        Token::Close => {
                            set.insert(Str::default());
                            return Ok(set);
                        }
                        Token::Comma => {
                            set.insert(Str::default());
                        }
                        _ => {}
                    }
                }
                _ => return Err(format!("found '{lit}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<BTreeSet<Str>, String> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok([Str::default()].into());
        }
        let (tok, lit) = self.next();
        if tok == Token::Identifier {
            return Ok([Str::from(lit)].into());
        }
        Err(format!("found '{lit}', expected: identifier"))
    }
}

/// Parses the string form; requirements in the order written.
pub(super) fn parse(s: &str) -> Result<Vec<Requirement>, String> {
    let mut p = Parser { items: lex(s), at: 0 };
    let mut out = Vec::new();
    loop {
        match p.peek() {
            (Token::Identifier | Token::Not, _) => {
                out.push(
                    p.requirement()
                        .map_err(|e| format!("unable to parse requirement: {e}"))?,
                );
                match p.next() {
                    (Token::End, _) => return Ok(out),
                    (Token::Comma, _) => {
                        let (tok, lit) = p.peek();
                        if tok != Token::Identifier && tok != Token::Not {
                            return Err(format!("found '{lit}', expected: identifier after ','"));
                        }
                    }
                    (_, lit) => return Err(format!("found '{lit}', expected: ',' or 'end of string'")),
                }
            }
            (Token::End, _) => return Ok(out),
            (_, lit) => return Err(format!("found '{lit}', expected: !, identifier, or 'end of string'")),
        }
    }
}
