//! JSONPath as printer columns use it: `.spec.x`, `.items[0]`, `.list[*].name`, `..name`,
//! `.status.conditions[?(@.type=="Ready")].status`.

use keelson_api::Value;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>, i64),
    All,
    Recursive,
    /// A comparison on each element; no operator: the path must exist.
    Filter {
        left: Vec<Step>,
        op: String,
        right: Operand,
    },
    Union(Vec<Step>),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    None,
    Literal(Value),
    Path(Vec<Step>),
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn take_while(&mut self, f: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !f(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }
    fn eat(&mut self, s: &str) -> bool {
        match self.rest.strip_prefix(s) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }
    /// Text in quotes.
    fn quoted(&mut self) -> Option<String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let mut out = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => out.push(chars.next()?.1),
                c if c == quote => {
                    self.rest = &self.rest[i + 1..];
                    return Some(out);
                }
                c => out.push(c),
            }
        }
        None
    }

    fn steps(&mut self) -> Option<Vec<Step>> {
        let mut out = Vec::new();
        self.eat("$");
        while !self.rest.is_empty() {
            if self.eat("..") {
                out.push(Step::Recursive);
                let name = self.name();
                if !name.is_empty() {
                    out.push(Step::Field(name));
                }
            } else if self.eat(".") {
                if self.eat("*") {
                    out.push(Step::All);
                    continue;
                }
                let name = self.name();
                if name.is_empty() && !self.rest.is_empty() && !self.rest.starts_with('[') {
                    return None;
                }
                if !name.is_empty() {
                    out.push(Step::Field(name));
                }
            } else if self.eat("[") {
                out.push(self.bracket()?);
            } else {
                break;
            }
        }
        Some(out)
    }

    fn name(&mut self) -> String {
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => out.extend(chars.next().map(|(_, c)| c)),
                '.' | '[' | ']' | ')' | '=' | '!' | '<' | '>' | ' ' | '}' => {
                    end = i;
                    break;
                }
                c => out.push(c),
            }
        }
        self.rest = &self.rest[end..];
        out
    }

    fn bracket(&mut self) -> Option<Step> {
        if self.eat("?(") {
            let step = self.filter()?;
            return (self.eat(")") && self.eat("]")).then_some(step);
        }
        let mut parts = Vec::new();
        loop {
            self.take_while(|c| c == ' ');
            let step = if self.eat("*") {
                Step::All
            } else if let Some(name) = self.quoted() {
                Step::Field(name)
            } else {
                let word = self.take_while(|c| c.is_ascii_digit() || matches!(c, '-' | ':'));
                let number = |s: &str| {
                    if s.is_empty() {
                        Some(None)
                    } else {
                        s.parse().ok().map(Some)
                    }
                };
                match word.split(':').collect::<Vec<_>>().as_slice() {
                    [i] => Step::Index(i.parse().ok()?),
                    [a, b] => Step::Slice(number(a)?, number(b)?, 1),
                    [a, b, n] => Step::Slice(number(a)?, number(b)?, number(n)?.unwrap_or(1)),
                    _ => return None,
                }
            };
            parts.push(step);
            self.take_while(|c| c == ' ');
            if self.eat("]") {
                return if parts.len() == 1 {
                    parts.pop()
                } else {
                    Some(Step::Union(parts))
                };
            }
            if !self.eat(",") {
                return None;
            }
        }
    }

    fn filter(&mut self) -> Option<Step> {
        self.take_while(|c| c == ' ');
        self.eat("@");
        let left = self.steps()?;
        self.take_while(|c| c == ' ');
        let op = self.take_while(|c| matches!(c, '=' | '!' | '<' | '>')).to_string();
        self.take_while(|c| c == ' ');
        if op.is_empty() {
            return Some(Step::Filter {
                left,
                op,
                right: Operand::None,
            });
        }
        let right = if let Some(s) = self.quoted() {
            Operand::Literal(s.into())
        } else if self.eat("@") {
            Operand::Path(self.steps()?)
        } else {
            let word = self.take_while(|c| c != ')' && c != ' ');
            Operand::Literal(serde_json::from_str(word).ok()?)
        };
        self.take_while(|c| c == ' ');
        Some(Step::Filter { left, op, right })
    }
}

impl JsonPath {
    /// Reads a path, with or without braces around it.
    pub fn parse(s: &str) -> Option<JsonPath> {
        let s = s.trim();
        let s = s.strip_prefix('{').and_then(|s| s.strip_suffix('}')).unwrap_or(s);
        let mut p = Parser { rest: s };
        let steps = p.steps()?;
        p.rest.is_empty().then_some(JsonPath(steps))
    }

    /// Every value at the path.
    pub fn find<'a>(&self, v: &'a Value) -> Vec<&'a Value> {
        run(&self.0, vec![v])
    }
}

fn run<'a>(steps: &[Step], mut at: Vec<&'a Value>) -> Vec<&'a Value> {
    for step in steps {
        at = at.into_iter().flat_map(|v| apply(step, v)).collect();
    }
    at
}

fn index(i: i64, n: usize) -> i64 {
    if i < 0 { i + n as i64 } else { i }
}

fn apply<'a>(step: &Step, v: &'a Value) -> Vec<&'a Value> {
    match step {
        Step::Field(name) => v.get(name).into_iter().collect(),
        Step::Index(i) => {
            let Some(a) = v.as_array() else { return Vec::new() };
            usize::try_from(index(*i, a.len()))
                .ok()
                .and_then(|i| a.get(i))
                .into_iter()
                .collect()
        }
        Step::Slice(from, to, step) => {
            let Some(a) = v.as_array() else { return Vec::new() };
            let n = a.len();
            let bound = |i: i64| index(i, n).clamp(0, n as i64) as usize;
            let (from, to) = (bound(from.unwrap_or(0)), bound(to.unwrap_or(n as i64)));
            let step = usize::try_from(*step).unwrap_or(1).max(1);
            a.get(from..to).unwrap_or_default().iter().step_by(step).collect()
        }
        Step::All => match v {
            Value::Array(a) => a.iter().collect(),
            Value::Object(m) => m.values().collect(),
            _ => Vec::new(),
        },
        Step::Recursive => {
            let mut out = vec![v];
            let below: Vec<&Value> = match v {
                Value::Array(a) => a.iter().collect(),
                Value::Object(m) => m.values().collect(),
                _ => Vec::new(),
            };
            out.extend(below.into_iter().flat_map(|v| apply(step, v)));
            out
        }
        Step::Union(parts) => parts.iter().flat_map(|p| apply(p, v)).collect(),
        Step::Filter { left, op, right } => {
            let Some(a) = v.as_array() else { return Vec::new() };
            a.iter()
                .filter(|item| {
                    let have = run(left, vec![item]);
                    let Some(have) = have.first() else { return false };
                    match right {
                        Operand::None => true,
                        Operand::Literal(want) => holds(have, op, want),
                        Operand::Path(p) => run(p, vec![item]).first().is_some_and(|want| holds(have, op, want)),
                    }
                })
                .collect()
        }
    }
}

fn holds(a: &Value, op: &str, b: &Value) -> bool {
    let order = match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
    };
    match op {
        "==" => order.is_some_and(|o| o.is_eq()),
        "!=" => order.is_none_or(|o| o.is_ne()),
        "<" => order.is_some_and(|o| o.is_lt()),
        "<=" => order.is_some_and(|o| o.is_le()),
        ">" => order.is_some_and(|o| o.is_gt()),
        ">=" => order.is_some_and(|o| o.is_ge()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn paths_find_values() {
        let v = value!({"spec": {"a.b": 1, "l": [{"n": "x", "v": 1}, {"n": "y", "v": 2}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        for (path, want) in [
            (".spec.a\\.b", value!([1])),
            (".spec['a.b']", value!([1])),
            (".spec.l[0].n", value!(["x"])),
            (".spec.l[-1].n", value!(["y"])),
            (".spec.l[*].n", value!(["x", "y"])),
            (".spec.l[0:1].v", value!([1])),
            ("{.status.conditions[?(@.type==\"Ready\")].status}", value!(["True"])),
            (".spec.l[?(@.v > 1)].n", value!(["y"])),
            (".spec.l[?(@.v)].n", value!(["x", "y"])),
            ("..n", value!(["x", "y"])),
            (".nope.deep", value!([])),
            (".spec.l[0,1].v", value!([1, 2])),
        ] {
            let found: Vec<Value> = JsonPath::parse(path).unwrap().find(&v).into_iter().cloned().collect();
            assert_eq!(Value::Array(found), want, "{path}");
        }
        assert!(JsonPath::parse(".a[").is_none());
    }
}
