//! JSON: decoding in one pass, guided by a schema, and encoding.

use super::json_lex::{Lexer, Number};
use super::{DecodeError, Decoded, MAX_DEPTH, Strictness, has_room};
use crate::go_names;
use crate::schema::{Field, FieldType, Schema, TypeDef};
use crate::value::{Map, Str, Value};
use crate::{Quantity, SchemaRef, Time, duration};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

/// Decodes a JSON text. With a schema, values must have its types, unknown fields are dropped and scalars normalised;
/// without one everything is kept as it stands.
pub fn decode(bytes: &[u8], schema: Option<&SchemaRef>, strictness: Strictness) -> Result<Decoded, DecodeError> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        // Go replaces what isn't UTF-8.
        Err(_) => String::from_utf8_lossy(bytes),
    };
    let mut d = Decoder {
        lex: Lexer::new(&text),
        schema: schema.map(|s| &*s.schema),
        path: Vec::new(),
        owner: None,
        misfit: None,
        depth: 0,
        report: strictness == Strictness::Report,
        findings: Vec::new(),
        members: Vec::with_capacity(64),
        order: Vec::with_capacity(64),
    };
    let value = match schema {
        Some(s) => d.object_of(s.def(), None)?,
        None => d.any()?,
    };
    if !d.lex.at_end() {
        return d.lex.invalid("after top-level value");
    }
    if let Some(misfit) = d.misfit {
        return Err(misfit);
    }
    Ok(Decoded {
        value,
        findings: d.findings,
    })
}

/// One step of the path to the value being read.
enum Step<'a, 's> {
    Field(&'s Field),
    Key(Cow<'a, str>),
    Index(usize),
}

struct Decoder<'a, 's> {
    lex: Lexer<'a>,
    schema: Option<&'s Schema>,
    path: Vec<Step<'a, 's>>,
    /// The innermost struct, for type errors.
    owner: Option<&'s TypeDef>,
    /// The first value that its type can't hold: Go's decoder reads on, and tells of it unless a type that reads itself refuses.
    misfit: Option<DecodeError>,
    depth: usize,
    report: bool,
    findings: Vec<String>,
    /// Members of the objects being read, innermost last: each object is allocated once, at its size.
    members: Vec<(Str, Value)>,
    /// The field numbers of the members of structs; fields are sorted by name, so sorting by number sorts by name.
    order: Vec<u16>,
}

/// The keys of a map so far: few are looked through, many are indexed.
#[derive(Default)]
struct Keys(Option<HashSet<Str>>);

impl Keys {
    const FEW: usize = 64;

    fn has_twice(&mut self, members: &[(Str, Value)], key: &str) -> bool {
        if members.len() < Self::FEW {
            return members.iter().any(|(k, _)| k == key);
        }
        let index = || members.iter().map(|(k, _)| k.clone()).collect();
        !self.0.get_or_insert_with(index).insert(key.into())
    }
}

impl<'a, 's> Decoder<'a, 's> {
    fn enter(&mut self) -> Result<(), DecodeError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            Err(DecodeError("exceeded max depth".into()))
        } else {
            Ok(())
        }
    }
    fn path_text(&self, last: &str) -> String {
        let mut out = String::new();
        let keys = self.path.iter().map(|s| match s {
            Step::Field(field) => (Some(field.name.as_str()), 0),
            Step::Key(k) => (Some(&**k), 0),
            Step::Index(i) => (None, *i),
        });
        for step in keys.chain([(Some(last), 0)]) {
            match step {
                (Some(key), _) => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(key);
                }
                (None, i) => out.push_str(&format!("[{i}]")),
            }
        }
        out
    }
    #[cold]
    fn find(&mut self, what: &str, key: &str) {
        if !has_room(&self.findings) {
            return;
        }
        let finding = format!("{what} {:?}", self.path_text(key));
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }
    /// A value that a type can't hold; `ty` is that of the field being read, or of what stands in it.
    #[cold]
    fn mismatch(&self, found: &str, ty: &FieldType) -> DecodeError {
        let fields = || {
            self.path.iter().filter_map(|s| match s {
                Step::Field(field) => Some(*field),
                _ => None,
            })
        };
        let wanted = go_names::type_name(fields().next_back(), ty, self.schema);
        DecodeError(match self.owner {
            Some(def) if !self.path.is_empty() => {
                let name = def.name.rsplit('.').next().unwrap_or_default();
                let path = go_names::path(fields());
                format!("json: cannot unmarshal {found} into Go struct field {name}.{path} of type {wanted}")
            }
            _ => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
        })
    }
    /// Notes a value that the type can't hold, and reads over it if that hasn't been done.
    #[cold]
    fn unexpected(&mut self, ty: &FieldType) -> Result<Value, DecodeError> {
        let found = self.next_kind()?;
        let why = self.mismatch(found, ty);
        if ty.reads_itself() {
            return Err(why);
        }
        self.misfit.get_or_insert(why);
        self.skip().map(|()| Value::Null)
    }
    /// What Go calls the next value.
    fn next_kind(&mut self) -> Result<&'static str, DecodeError> {
        Ok(match self.lex.peek() {
            b'{' => "object",
            b'[' => "array",
            b'"' => "string",
            b't' | b'f' => "bool",
            b'n' => "null",
            b'-' | b'0'..=b'9' => "number",
            _ => return self.lex.invalid("looking for beginning of value"),
        })
    }

    fn any(&mut self) -> Result<Value, DecodeError> {
        match self.lex.peek() {
            b'"' => Ok(Value::String(self.lex.string()?.into())),
            b'{' => self.map_of(None),
            b'[' => self.list_of(None),
            b't' => self.lex.literal("true").map(|()| Value::Bool(true)),
            b'f' => self.lex.literal("false").map(|()| Value::Bool(false)),
            b'n' => self.lex.literal("null").map(|()| Value::Null),
            b'-' | b'0'..=b'9' => {
                let n = self.lex.number()?;
                Ok(n.integer
                    .map_or_else(|| Value::Float(n.text.parse().unwrap_or(f64::NAN)), Value::Int))
            }
            _ => self.lex.invalid("looking for beginning of value"),
        }
    }

    fn value(&mut self, ty: &'s FieldType) -> Result<Value, DecodeError> {
        let next = self.lex.peek();
        if next == b'n' && !matches!(ty, FieldType::Any) {
            self.lex.literal("null")?;
            return Ok(Value::Null);
        }
        match ty {
            FieldType::String => match next {
                b'"' => Ok(Value::String(self.lex.string()?.into())),
                _ => self.unexpected(ty),
            },
            FieldType::Struct(id) => match self.schema {
                Some(schema) => self.object_of(schema.get(*id), Some(ty)),
                None => self.any(),
            },
            FieldType::List(element) => self.list_of_type(ty, element),
            FieldType::ListOf(list) => self.list_of_type(ty, &list.element),
            FieldType::Map(value) => match next {
                b'{' => self.map_of(Some(value)),
                _ => self.unexpected(ty),
            },
            FieldType::Bool => match next {
                b't' => self.lex.literal("true").map(|()| Value::Bool(true)),
                b'f' => self.lex.literal("false").map(|()| Value::Bool(false)),
                _ => self.unexpected(ty),
            },
            FieldType::Int32 => self.integer(ty, i32::MIN.into(), i32::MAX.into()),
            FieldType::Int64 => self.integer(ty, i64::MIN, i64::MAX),
            FieldType::UInt32 => self.integer(ty, 0, u32::MAX.into()),
            FieldType::UInt64 => self.integer(ty, 0, i64::MAX),
            FieldType::Float32 | FieldType::Float64 => self.float(ty),
            FieldType::Any | FieldType::RawExtension | FieldType::FieldsV1 => self.any(),
            FieldType::IntOrString => match next {
                b'"' => Ok(Value::String(self.lex.string()?.into())),
                b'-' | b'0'..=b'9' => self.integer(ty, i32::MIN.into(), i32::MAX.into()),
                _ => self.unexpected(ty),
            },
            FieldType::Quantity => self.quantity(),
            FieldType::Bytes | FieldType::Time | FieldType::MicroTime | FieldType::Duration => match next {
                b'"' => {
                    let text = self.lex.string()?;
                    match scalar_text(ty, &text) {
                        Err(why) if !ty.reads_itself() => {
                            self.misfit.get_or_insert(why);
                            Ok(Value::Null)
                        }
                        read => read.map(Value::String),
                    }
                }
                _ => self.unexpected(ty),
            },
        }
    }

    fn integer(&mut self, ty: &FieldType, min: i64, max: i64) -> Result<Value, DecodeError> {
        match self.lex.peek() {
            b'-' | b'0'..=b'9' => {
                let Number { text, integer } = self.lex.number()?;
                match integer {
                    Some(i) if i >= min && i <= max => Ok(Value::Int(i)),
                    _ => {
                        let why = self.mismatch(&format!("number {text}"), ty);
                        if ty.reads_itself() {
                            return Err(why);
                        }
                        self.misfit.get_or_insert(why);
                        Ok(Value::Null)
                    }
                }
            }
            _ => self.unexpected(ty),
        }
    }
    fn float(&mut self, ty: &FieldType) -> Result<Value, DecodeError> {
        match self.lex.peek() {
            b'-' | b'0'..=b'9' => {
                let Number { text, integer } = self.lex.number()?;
                Ok(integer.map_or_else(|| float(text.parse().unwrap_or(f64::NAN)), Value::Int))
            }
            _ => self.unexpected(ty),
        }
    }
    fn quantity(&mut self) -> Result<Value, DecodeError> {
        let text = match self.lex.peek() {
            b'"' => self.lex.string()?,
            b'-' | b'0'..=b'9' => Cow::Borrowed(self.lex.number()?.text),
            _ => {
                let start = self.lex.pos;
                self.any()?;
                Cow::Borrowed(self.lex.since(start))
            }
        };
        Quantity::normalize(&text)
            .map(Value::String)
            .map_err(|e| DecodeError(e.to_string()))
    }

    /// The key of a map's member, and the colon after it.
    fn key(&mut self) -> Result<Cow<'a, str>, DecodeError> {
        if self.lex.peek() != b'"' {
            return self.lex.invalid("looking for beginning of object key string");
        }
        let key = self.lex.string()?;
        if self.lex.peek() != b':' {
            return self.lex.invalid("after object key");
        }
        self.lex.pos += 1;
        Ok(key)
    }
    /// What follows a member: true when there is another.
    fn more(&mut self, close: u8, context: &str) -> Result<bool, DecodeError> {
        match self.lex.peek() {
            b',' => {
                self.lex.pos += 1;
                Ok(true)
            }
            c if c == close => {
                self.lex.pos += 1;
                Ok(false)
            }
            _ => self.lex.invalid(context),
        }
    }

    fn object_of(&mut self, def: &'s TypeDef, ty: Option<&'s FieldType>) -> Result<Value, DecodeError> {
        if self.lex.peek() != b'{' {
            return match ty {
                Some(ty) => self.unexpected(ty),
                None => {
                    let found = self.next_kind()?;
                    Err(DecodeError(format!(
                        "json: cannot unmarshal {found} into Go value of type {}",
                        go_names::struct_name(def)
                    )))
                }
            };
        }
        self.enter()?;
        self.lex.pos += 1;
        let (first, first_order) = (self.members.len(), self.order.len());
        let mut repeats = BTreeMap::new();
        let outer = self.owner.replace(def);
        let mut open = self.lex.peek() != b'}';
        if !open {
            self.lex.pos += 1;
        }
        while open {
            let key = self.key()?;
            match def.field_index(&key) {
                Some(i) => self.member(&def.fields[i], i as u16, first, first_order, &mut repeats)?,
                None => {
                    if self.report {
                        self.find("unknown field", &key);
                    }
                    self.skip()?;
                }
            }
            open = self.more(b'}', "after object key:value pair")?;
        }
        self.owner = outer;
        self.depth -= 1;
        for (index, more) in repeats {
            if let Ok(at) = self.order[first_order..].binary_search(&index) {
                let mut values = vec![std::mem::take(&mut self.members[first + at].1)];
                values.extend(more);
                self.members[first + at].1 = folded(values, &def.fields[usize::from(index)].ty, self.schema);
            }
        }
        self.order.truncate(first_order);
        Ok(Value::Object(Map::from_sorted(self.members.split_off(first))))
    }
    fn member(
        &mut self,
        field: &'s Field,
        index: u16,
        first: usize,
        first_order: usize,
        repeats: &mut BTreeMap<u16, Vec<Value>>,
    ) -> Result<(), DecodeError> {
        let twice = self.report && self.order[first_order..].contains(&index);
        if twice {
            self.find("duplicate field", &field.name);
        }
        self.path.push(Step::Field(field));
        let value = self.value(&field.ty)?;
        self.path.pop();
        let at = self.order[first_order..]
            .iter()
            .rposition(|i| *i <= index)
            .map_or(0, |p| p + 1);
        if at > 0 && self.order[first_order + at - 1] == index {
            repeats.entry(index).or_default().push(value);
        } else {
            self.members.insert(first + at, (field.name.clone(), value));
            self.order.insert(first_order + at, index);
        }
        Ok(())
    }
    /// Reads over a value of an unknown field; it must be well formed, its own duplicates don't matter.
    fn skip(&mut self) -> Result<(), DecodeError> {
        let report = std::mem::replace(&mut self.report, false);
        let result = self.any().map(|_| ());
        self.report = report;
        result
    }

    fn map_of(&mut self, ty: Option<&'s FieldType>) -> Result<Value, DecodeError> {
        self.enter()?;
        self.lex.pos += 1;
        let first = self.members.len();
        let mut seen = Keys::default();
        let mut open = self.lex.peek() != b'}';
        if !open {
            self.lex.pos += 1;
        }
        while open {
            let key = self.key()?;
            if self.report {
                if seen.has_twice(&self.members[first..], &key) {
                    self.find("duplicate field", &key);
                }
                self.path.push(Step::Key(key.clone()));
            }
            let value = match ty {
                Some(ty) => self.value(ty)?,
                None => self.any()?,
            };
            if self.report {
                self.path.pop();
            }
            self.members.push((key.into(), value));
            open = self.more(b'}', "after object key:value pair")?;
        }
        self.depth -= 1;
        Ok(Value::Object(Map::from_pairs(self.members.split_off(first))))
    }

    fn list_of_type(&mut self, ty: &'s FieldType, element: &'s FieldType) -> Result<Value, DecodeError> {
        match self.lex.peek() {
            b'[' => self.list_of(Some(element)),
            _ => self.unexpected(ty),
        }
    }
    fn list_of(&mut self, ty: Option<&'s FieldType>) -> Result<Value, DecodeError> {
        self.enter()?;
        self.lex.pos += 1;
        let mut out = Vec::new();
        let mut open = self.lex.peek() != b']';
        if !open {
            self.lex.pos += 1;
        }
        while open {
            self.path.push(Step::Index(out.len()));
            out.push(match ty {
                Some(ty) => self.value(ty)?,
                None => self.any()?,
            });
            self.path.pop();
            open = self.more(b']', "after array element")?;
        }
        self.depth -= 1;
        Ok(Value::Array(out))
    }
}

/// What is left of the values of one field that comes more than once: Go reads a struct or a map into the one that is there. All are
/// read at once, for each alone would move the members of a large one again.
fn folded(mut values: Vec<Value>, ty: &FieldType, schema: Option<&Schema>) -> Value {
    let since = values
        .iter()
        .rposition(|value| !matches!(value, Value::Object(_)))
        .map_or(0, |at| at + 1);
    if since == values.len() || !matches!(ty, FieldType::Struct(_) | FieldType::Map(_)) {
        return values.pop().unwrap_or_default();
    }
    let mut members: Vec<(Str, Value)> = Vec::new();
    for value in values.drain(since..) {
        if let Value::Object(more) = value {
            members.extend(more);
        }
    }
    let (FieldType::Struct(id), Some(schema)) = (ty, schema) else {
        return Value::Object(Map::from_iter(members));
    };
    members.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
    let mut fields: Vec<(Str, Vec<Value>)> = Vec::new();
    for (key, value) in members {
        match fields.last_mut() {
            Some((last, values)) if *last == key => values.push(value),
            _ => fields.push((key, vec![value])),
        }
    }
    let def = schema.get(*id);
    let of_field = |(key, mut values): (Str, Vec<Value>)| {
        let value = match def.field(&key) {
            Some(field) => folded(values, &field.ty, Some(schema)),
            None => values.pop().unwrap_or_default(),
        };
        (key, value)
    };
    Value::Object(Map::from_iter(fields.into_iter().map(of_field)))
}

/// A float; an integral one becomes an integer, since both are written the same.
pub(super) fn float(f: f64) -> Value {
    if f.fract() == 0.0 && f.abs() < 9.0e15 {
        Value::Int(f as i64)
    } else {
        Value::Float(f)
    }
}

/// Checks and normalises the text of a scalar that reads itself in Go.
pub(super) fn scalar_text(ty: &FieldType, text: &str) -> Result<Str, DecodeError> {
    let said = |e: &dyn std::fmt::Display| DecodeError(e.to_string());
    match ty {
        // Twenty characters that parse and end in Z are the form we would write.
        FieldType::Time => match Time::parse(text) {
            Ok(_) if text.len() == 20 && text.ends_with('Z') => Ok(text.into()),
            Ok(t) => Ok(t.rfc3339().into()),
            Err(e) => Err(said(&e)),
        },
        FieldType::MicroTime => Time::parse_micro(text)
            .map(|t| t.rfc3339_micro().into())
            .map_err(|e| said(&e)),
        FieldType::Duration => duration::parse(text)
            .map(|n| duration::format(n).into())
            .map_err(|e| said(&e)),
        FieldType::Quantity => Quantity::normalize(text).map_err(|e| said(&e)),
        FieldType::Bytes => match super::wire::base64_decode(text) {
            Ok(bytes) => Ok(super::wire::base64_encode(&bytes).into()),
            Err(at) => Err(DecodeError(format!("illegal base64 data at input byte {at}"))),
        },
        _ => Ok(text.into()),
    }
}

/// Encodes as Go's encoder does, without its final line feed: `<`, `>` and `&` are escaped.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    encode_into(value, &mut out);
    out
}

pub fn encode_map(map: &Map) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write_map(map, &mut out);
    out
}

pub fn encode_into(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(i) => write_int(*i, out),
        Value::Float(f) => write_float(*f, out),
        Value::String(s) => write_string(s, out),
        Value::Array(a) => {
            out.push(b'[');
            for (i, v) in a.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                encode_into(v, out);
            }
            out.push(b']');
        }
        Value::Object(m) => write_map(m, out),
    }
}

fn write_map(map: &Map, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (k, v)) in map.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_string(k, out);
        out.push(b':');
        encode_into(v, out);
    }
    out.push(b'}');
}

pub(super) fn write_int(i: i64, out: &mut Vec<u8>) {
    let mut buffer = [0u8; 20];
    let (mut at, mut n) = (buffer.len(), i.unsigned_abs());
    loop {
        at -= 1;
        buffer[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    if i < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&buffer[at..]);
}

fn write_float(f: f64, out: &mut Vec<u8>) {
    let size = f.abs();
    let text = if !f.is_finite() {
        // Neither JSON nor protobuf input can make one.
        "null".to_string()
    } else if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{f:e}");
        match text.split_once('e') {
            Some((mantissa, exponent)) if !exponent.starts_with('-') => format!("{mantissa}e+{exponent}"),
            _ => text,
        }
    } else {
        f.to_string()
    };
    out.extend_from_slice(text.as_bytes());
}

/// Bytes that stand in a string as they are. Line separators begin with 0xe2, and so do many others.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut b = 0;
    while b < 0x20 {
        plain[b] = false;
        b += 1;
    }
    let special = [b'"', b'\\', b'<', b'>', b'&', 0xe2];
    let mut i = 0;
    while i < special.len() {
        plain[special[i] as usize] = false;
        i += 1;
    }
    plain
};

/// Whether all of eight bytes are [`PLAIN`] and ASCII.
fn are_plain(eight: &[u8; 8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let text = u64::from_ne_bytes(*eight);
    // A byte's highest bit says that it is below; bytes above the first one that is may say so as well.
    let below = |n: u64, text: u64| text.wrapping_sub(ONES * n) & !text;
    let is = |byte: u8, text: u64| below(1, text ^ (ONES * u64::from(byte)));
    // Two that differ in one bit each: quote and ampersand, the angles.
    let quotes = is(b'"', text & !(ONES * u64::from(b'"' ^ b'&')));
    let angles = is(b'<', text & !(ONES * u64::from(b'<' ^ b'>')));
    (text | below(0x20, text) | quotes | angles | is(b'\\', text)) & HIGHS == 0
}

pub(super) fn write_string(s: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = s.as_bytes();
    let (eights, rest) = bytes.as_chunks();
    if eights.iter().all(are_plain) && rest.iter().all(|b| PLAIN[usize::from(*b)]) {
        out.extend_from_slice(bytes);
    } else {
        write_escaped(bytes, out);
    }
    out.push(b'"');
}

fn write_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    let mut start = 0;
    for (i, &b) in bytes.iter().enumerate() {
        if PLAIN[usize::from(b)] {
            continue;
        }
        // The line and paragraph separators are E2 80 A8 and E2 80 A9.
        if b == 0xe2 && !(bytes[i..].starts_with(b"\xe2\x80\xa8") || bytes[i..].starts_with(b"\xe2\x80\xa9")) {
            continue;
        }
        out.extend_from_slice(&bytes[start..i]);
        start = i + 1;
        match b {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            0xe2 => {
                out.extend_from_slice(if bytes[i + 2] == 0xa8 { b"\\u2028" } else { b"\\u2029" });
                start = i + 3;
            }
            _ => out.extend_from_slice(format!("\\u{b:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(&bytes[start..]);
}
