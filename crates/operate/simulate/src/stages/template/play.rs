//! What a template gives for an object.

use super::{Command, LONGEST, Part, Pipe, Term};
use serde_json::{Number, Value, json};

/// What templates ask of the world: times, addresses.
pub trait Functions {
    fn now(&self) -> String;
    fn start_time(&self) -> String;
    fn node_name(&self) -> String;
    /// Addresses of a node, the main one first.
    fn node_ips(&self, node: &str) -> Vec<String>;
    /// Addresses for a pod that has a network of its own.
    fn pod_ips(&self, node: &str, uid: &str) -> Vec<String>;
}

/// The functions that are understood.
pub const KNOWN: [&str; 28] = [
    "Now",
    "StartTime",
    "Quote",
    "YAML",
    "Version",
    "NodeConditions",
    "NodeName",
    "NodeIP",
    "NodeIPs",
    "NodePort",
    "NodeIPWith",
    "NodeIPsWith",
    "PodIPWith",
    "PodIPsWith",
    "and",
    "or",
    "not",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "len",
    "index",
    "printf",
    "dict",
    "default",
];

pub fn render(parts: &[Part], object: &Value, functions: &dyn Functions) -> Result<String, String> {
    let mut play = Play {
        functions,
        variables: vec![(String::new(), object.clone())],
        out: String::new(),
        steps: 0,
    };
    play.parts(parts, object)?;
    Ok(play.out)
}

struct Play<'a> {
    functions: &'a dyn Functions,
    /// The innermost last; the empty name is `$`.
    variables: Vec<(String, Value)>,
    out: String,
    steps: usize,
}

/// Loops within loops would go on for years; whoever writes a stage may not hold up the others.
const STEPS: usize = 20_000;

impl Play<'_> {
    /// What is declared within is gone after it.
    fn parts(&mut self, parts: &[Part], dot: &Value) -> Result<(), String> {
        let outside = self.variables.len();
        for part in parts {
            self.steps += 1;
            if self.steps > STEPS {
                return Err(format!("the template takes more than {STEPS} steps"));
            }
            self.part(part, dot)?;
            if self.out.len() > LONGEST {
                return Err(format!("the template writes more than {LONGEST} bytes"));
            }
        }
        self.variables.truncate(outside);
        Ok(())
    }

    fn part(&mut self, part: &Part, dot: &Value) -> Result<(), String> {
        match part {
            Part::Text(text) => self.out.push_str(text),
            Part::Print(pipe) => {
                let value = self.pipe(pipe, dot)?;
                self.out.push_str(&shown(&value));
            }
            Part::Set { name, is_new, to } => {
                let value = self.pipe(to, dot)?;
                if *is_new {
                    self.variables.push((name.clone(), value));
                } else {
                    let known = self.variables.iter_mut().rev().find(|(n, _)| n == name);
                    known.ok_or_else(|| format!("undefined variable ${name}"))?.1 = value;
                }
            }
            Part::If { branches, other } => {
                for (condition, body) in branches {
                    if is_true(&self.pipe(condition, dot)?) {
                        return self.parts(body, dot);
                    }
                }
                self.parts(other, dot)?;
            }
            Part::With { name, of, body, other } => {
                let value = self.pipe(of, dot)?;
                if !is_true(&value) {
                    return self.parts(other, dot);
                }
                let outside = self.variables.len();
                if let Some(name) = name {
                    self.variables.push((name.clone(), value.clone()));
                }
                self.parts(body, &value)?;
                self.variables.truncate(outside);
            }
            Part::Range {
                index,
                item,
                over,
                body,
                other,
            } => {
                let all: Vec<(Value, Value)> = match self.pipe(over, dot)? {
                    Value::Array(list) => list.into_iter().enumerate().map(|(n, v)| (n.into(), v)).collect(),
                    Value::Object(map) => map.into_iter().map(|(k, v)| (k.into(), v)).collect(),
                    Value::Null => Vec::new(),
                    other => return Err(format!("range can't iterate over {other}")),
                };
                if all.is_empty() {
                    return self.parts(other, dot);
                }
                for (n, value) in all {
                    let outside = self.variables.len();
                    self.variables.extend(index.clone().map(|name| (name, n)));
                    self.variables.extend(item.clone().map(|name| (name, value.clone())));
                    self.steps += 1;
                    self.parts(body, &value)?;
                    self.variables.truncate(outside);
                }
            }
        }
        Ok(())
    }

    fn pipe(&self, pipe: &Pipe, dot: &Value) -> Result<Value, String> {
        let mut last = None;
        for command in &pipe.0 {
            last = Some(match command {
                Command::Term(term) if last.is_none() => self.term(term, dot)?,
                Command::Term(_) => return Err("only functions take what comes through a pipe".into()),
                Command::Call(name, terms) => {
                    let mut arguments = Vec::with_capacity(terms.len() + 1);
                    for term in terms {
                        arguments.push(self.term(term, dot)?);
                    }
                    arguments.extend(last.take());
                    self.call(name, arguments).map_err(|e| format!("{name}: {e}"))?
                }
            });
        }
        Ok(last.unwrap_or_default())
    }

    fn term(&self, term: &Term, dot: &Value) -> Result<Value, String> {
        match term {
            Term::Literal(value) => Ok(value.clone()),
            Term::Field(path) => at(dot, path),
            Term::Variable(name, path) => {
                let known = self.variables.iter().rev().find(|(n, _)| n == name);
                at(&known.ok_or_else(|| format!("undefined variable ${name}"))?.1, path)
            }
            Term::Function(name) => self.call(name, Vec::new()).map_err(|e| format!("{name}: {e}")),
            Term::Nested(pipe, path) => at(&self.pipe(pipe, dot)?, path),
        }
    }

    /// Values may grow no more than what is written.
    fn call(&self, name: &str, arguments: Vec<Value>) -> Result<Value, String> {
        match self.called(name, arguments)? {
            Value::String(text) if text.len() > LONGEST => Err(format!("it gives more than {LONGEST} bytes")),
            value => Ok(value),
        }
    }

    fn called(&self, name: &str, arguments: Vec<Value>) -> Result<Value, String> {
        let text = |n: usize| arguments.get(n).and_then(Value::as_str).unwrap_or_default();
        let host_network = || arguments.get(1) == Some(&Value::Bool(true));
        let pod_ips = || match host_network() {
            true => self.functions.node_ips(text(0)),
            false => self.functions.pod_ips(text(0), text(2)),
        };
        let first = |all: Vec<String>| all.into_iter().next().unwrap_or_default().into();
        let own = || self.functions.node_ips(&self.functions.node_name());
        Ok(match (name, &arguments[..]) {
            ("Now", []) => self.functions.now().into(),
            ("StartTime", []) => self.functions.start_time().into(),
            ("Version", []) => env!("CARGO_PKG_VERSION").into(),
            ("NodeConditions", []) => conditions(),
            ("NodeName", []) => self.functions.node_name().into(),
            ("NodePort", []) => Value::Null,
            ("NodeIP", []) => first(own()),
            ("NodeIPs", []) => own().into(),
            ("NodeIPWith", [_]) => first(self.functions.node_ips(text(0))),
            ("NodeIPsWith", [_]) => self.functions.node_ips(text(0)).into(),
            ("PodIPWith", [_, _, _, _, _]) => first(pod_ips()),
            ("PodIPsWith", [_, _, _, _, _]) => pod_ips().into(),
            ("Quote", [value]) => quoted(value).into(),
            // JSON is YAML, on however many lines.
            ("YAML", [value]) => value.to_string().into(),
            ("YAML", [value, Value::Number(n)]) => {
                let indent = usize::try_from(n.as_u64().unwrap_or(0)).unwrap_or(0).min(32);
                format!("\n{}{value}", "  ".repeat(indent)).into()
            }
            ("dict", []) => json!({}),
            ("default", [usual, value]) => if is_true(value) { value } else { usual }.clone(),
            ("and", [.., last]) => arguments.iter().find(|v| !is_true(v)).unwrap_or(last).clone(),
            ("or", [.., last]) => arguments.iter().find(|v| is_true(v)).unwrap_or(last).clone(),
            ("not", [value]) => (!is_true(value)).into(),
            ("eq", [one, others @ ..]) if !others.is_empty() => others.contains(one).into(),
            ("ne", [one, other]) => (one != other).into(),
            ("lt" | "le" | "gt" | "ge", [one, other]) => {
                let (one, other) = one.as_f64().zip(other.as_f64()).ok_or("only numbers are compared")?;
                match name {
                    "lt" => one < other,
                    "le" => one <= other,
                    "gt" => one > other,
                    _ => one >= other,
                }
                .into()
            }
            ("len", [value]) => match value {
                Value::String(text) => text.len().into(),
                Value::Array(list) => list.len().into(),
                Value::Object(map) => map.len().into(),
                other => return Err(format!("{other} has no length")),
            },
            ("index", [value, keys @ ..]) => {
                let mut found = value.clone();
                for key in keys {
                    found = item(&found, key)?;
                }
                found
            }
            ("printf", [Value::String(form), values @ ..]) => formatted(form, values)?.into(),
            _ => return Err(format!("it doesn't take these {} arguments", arguments.len())),
        })
    }
}

/// What isn't there is nothing, and nothing has nothing in it.
fn at(value: &Value, path: &[String]) -> Result<Value, String> {
    let mut found = value;
    for name in path {
        found = match found {
            Value::Object(map) => map.get(name).unwrap_or(&Value::Null),
            Value::Null => &Value::Null,
            other => return Err(format!("can't evaluate field {name} in {other}")),
        };
    }
    Ok(found.clone())
}

fn item(value: &Value, key: &Value) -> Result<Value, String> {
    match (value, key) {
        (Value::Object(map), Value::String(key)) => Ok(map.get(key).cloned().unwrap_or_default()),
        (Value::Array(list), Value::Number(n)) => {
            let n = n.as_u64().and_then(|n| usize::try_from(n).ok());
            let found = n.and_then(|n| list.get(n));
            found
                .cloned()
                .ok_or_else(|| format!("there is no item {key} among {}", list.len()))
        }
        (Value::Null, _) => Ok(Value::Null),
        _ => Err(format!("{key} is no index of {value}")),
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As Go prints it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", shown(v))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

/// A text in quotes; of what is none, the JSON is the text.
fn quoted(value: &Value) -> String {
    match value {
        Value::String(_) => value.to_string(),
        other => Value::String(other.to_string()).to_string(),
    }
}

fn formatted(form: &str, values: &[Value]) -> Result<String, String> {
    let (mut out, mut values, mut signs) = (String::new(), values.iter(), form.chars());
    while let Some(c) = signs.next() {
        if out.len() > LONGEST {
            return Err(format!("it gives more than {LONGEST} bytes"));
        }
        if c != '%' {
            out.push(c);
            continue;
        }
        let verb = signs.next();
        if verb == Some('%') {
            out.push('%');
            continue;
        }
        let value = values.next().ok_or("there are fewer values than the form wants")?;
        match verb {
            Some('s' | 'v') => out.push_str(&shown(value)),
            Some('d') if value.as_f64().is_some() => {
                let whole = value.as_f64().unwrap_or(0.0) as i64;
                out.push_str(&Number::from(whole).to_string());
            }
            Some('q') => out.push_str(&quoted(value)),
            _ => {
                return Err(format!(
                    "of forms only %s, %v, %d and %q are understood, not those of {form:?}"
                ));
            }
        }
    }
    Ok(out)
}

/// How a node is that nothing is wrong with.
fn conditions() -> Value {
    let one = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "reason": reason, "message": message});
    json!([
        one("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        one(
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available"
        ),
        one(
            "DiskPressure",
            "False",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure"
        ),
        one(
            "PIDPressure",
            "False",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available"
        ),
        one(
            "NetworkUnavailable",
            "False",
            "RouteCreated",
            "RouteController created a route"
        ),
    ])
}
