//! Questions to an object in the part of jq that stages ask in: paths, `[]`, and `select` by one comparison, in a row of pipes.
//! Whatever else jq knows is refused.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub struct Query(Vec<Filter>);

#[derive(Clone, Debug, PartialEq)]
enum Filter {
    Path(Vec<Step>),
    /// Goes on with what has, by this path, one of its values equal to another; or not, or anything at all.
    Select(Vec<Step>, Test),
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Equal(Value),
    Unequal(Value),
    True,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    At(usize),
    Each,
}

impl Query {
    pub fn parse(text: &str) -> Result<Query, String> {
        let mut reader = Reader { rest: text.trim() };
        let mut filters = Vec::new();
        loop {
            filters.push(reader.filter()?);
            reader.skip();
            if reader.rest.is_empty() {
                return Ok(Query(filters));
            }
            if !reader.takes("|") {
                return Err(format!("jq isn't understood from {:?} on", reader.rest));
            }
        }
    }

    /// All that is found but nulls. Nothing at all where jq would fail.
    pub fn values<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![object];
        for filter in &self.0 {
            let next: Option<Vec<Vec<&Value>>> = match filter {
                Filter::Path(path) => found.into_iter().map(|v| walk(v, path)).collect(),
                Filter::Select(path, test) => {
                    let keep = |v: &'a Value| {
                        let values = walk(v, path)?;
                        let fits = values.into_iter().any(|v| match test {
                            Test::Equal(other) => v == other,
                            Test::Unequal(other) => v != other,
                            Test::True => !matches!(v, Value::Null | Value::Bool(false)),
                        });
                        Some(if fits { vec![v] } else { Vec::new() })
                    };
                    found.into_iter().map(keep).collect()
                }
            };
            match next {
                Some(next) => found = next.into_iter().flatten().collect(),
                None => return Vec::new(),
            }
        }
        found.retain(|v| !v.is_null());
        found
    }
}

static NULL: Value = Value::Null;

/// `None`: a step doesn't fit what is there.
fn walk<'a>(value: &'a Value, path: &[Step]) -> Option<Vec<&'a Value>> {
    let mut found = vec![value];
    for step in path {
        let mut next = Vec::new();
        for value in found {
            match (step, value) {
                (Step::Key(key), Value::Object(map)) => next.push(map.get(key).unwrap_or(&NULL)),
                (Step::At(n), Value::Array(list)) => next.push(list.get(*n).unwrap_or(&NULL)),
                (Step::Key(_) | Step::At(_), Value::Null) => next.push(&NULL),
                (Step::Each, Value::Array(list)) => next.extend(list),
                (Step::Each, Value::Object(map)) => next.extend(map.values()),
                _ => return None,
            }
        }
        found = next;
    }
    Some(found)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn takes(&mut self, word: &str) -> bool {
        self.skip();
        match self.rest.strip_prefix(word) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn needs(&mut self, word: &str) -> Result<(), String> {
        match self.takes(word) {
            true => Ok(()),
            false => Err(format!("{word:?} is missing in jq before {:?}", self.rest)),
        }
    }

    fn filter(&mut self) -> Result<Filter, String> {
        if !self.takes("select") {
            return self.path().map(Filter::Path);
        }
        self.needs("(")?;
        let path = self.path()?;
        let test = if self.takes("==") {
            Test::Equal(self.literal()?)
        } else if self.takes("!=") {
            Test::Unequal(self.literal()?)
        } else {
            Test::True
        };
        self.needs(")")?;
        Ok(Filter::Select(path, test))
    }

    fn path(&mut self) -> Result<Vec<Step>, String> {
        self.skip();
        if !self.rest.starts_with('.') {
            return Err(format!(
                "jq isn't understood from {:?} on: only paths and select are",
                self.rest
            ));
        }
        let mut path = Vec::new();
        loop {
            if let Some(rest) = self.rest.strip_prefix('.') {
                self.rest = rest;
                let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let end = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
                let (name, after) = rest.split_at(end);
                if name.starts_with(|c: char| c.is_ascii_digit()) {
                    return Err(format!("jq isn't understood from {rest:?} on"));
                }
                if !name.is_empty() {
                    path.push(Step::Key(name.to_owned()));
                    self.rest = after;
                }
            } else if let Some(rest) = self.rest.strip_prefix('[') {
                self.rest = rest;
                if !self.takes("]") {
                    let step = match self.literal()? {
                        Value::String(key) => Step::Key(key),
                        Value::Number(n) => {
                            let n = n.as_u64().and_then(|n| usize::try_from(n).ok());
                            Step::At(n.ok_or("jq: only whole numbers stand in brackets")?)
                        }
                        other => return Err(format!("jq: {other} in brackets isn't understood")),
                    };
                    path.push(step);
                    self.needs("]")?;
                } else {
                    path.push(Step::Each);
                }
            } else {
                return Ok(path);
            }
        }
    }

    fn literal(&mut self) -> Result<Value, String> {
        self.skip();
        let wrong = || {
            format!(
                "jq: {:?} doesn't begin with a text, a number, true, false or null",
                self.rest
            )
        };
        let mut values = serde_json::Deserializer::from_str(self.rest).into_iter::<Value>();
        let (value, read) = match self.rest.starts_with('"') {
            true => match values.next() {
                Some(Ok(value)) => (value, values.byte_offset()),
                _ => return Err(wrong()),
            },
            // What may follow it here is nothing that could follow it in JSON.
            false => {
                let ends = |c: char| c.is_whitespace() || ")]|,".contains(c);
                let end = self.rest.find(ends).unwrap_or(self.rest.len());
                (serde_json::from_str(&self.rest[..end]).map_err(|_| wrong())?, end)
            }
        };
        if value.is_object() || value.is_array() {
            return Err(wrong());
        }
        self.rest = &self.rest[read..];
        Ok(value)
    }
}
