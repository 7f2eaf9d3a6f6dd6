//! One walk over an object by its type: checks, conversions, omissions and zero values.

use super::defaults::{self, zero_of};
use super::{Path, Report};
use crate::go;
use crate::structural::Structural;
use keelson_api::codec::{base64_error, has_room};
use keelson_api::go_names;
use keelson_api::schema::{Field, FieldType, Omit, Schema, SchemaRef, TypeDef};
use keelson_api::{Map, Value};
use std::fmt;

/// A value that the type can't hold, in the words of Go's decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError(pub String);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for DecodeError {}

type Res<T> = Result<T, DecodeError>;

/// Whose words tell of a value that the type can't hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wording {
    /// The JSON decoder's.
    Json,
    /// Those of upstream's conversion of untyped objects, which strategic patches go through. It also cuts integers to
    /// their size instead of refusing them.
    Unstructured,
}

/// Where a value stands, for messages: the innermost struct and the fields on the way.
struct Walk<'a> {
    schema: &'a Schema,
    wording: Wording,
    path: Path,
    names: Vec<&'a Field>,
    structs: Vec<&'a str>,
    report: Report,
    /// The first value that its type can't hold, while the JSON decoder reads on.
    misfit: Option<DecodeError>,
}

pub(super) fn object(object: &mut Value, schema: &SchemaRef, known: Option<&Map>, wording: Wording) -> Res<Report> {
    let mut w = Walk::new(&schema.schema, wording);
    w.root(object, schema.def(), known)?;
    w.misfit.map_or(Ok(w.report), Err)
}

/// Canonicalises only `metadata` (custom resources: their metadata is typed, the rest is not). Says what of it is unknown.
pub(super) fn metadata(object: &mut Value, schema: &SchemaRef) -> Res<Vec<String>> {
    let mut w = Walk::new(&schema.schema, Wording::Json);
    if let (Some(field), Some(m)) = (schema.def().field("metadata"), object.get_mut("metadata")) {
        w.metadata(m, field)?;
    }
    w.misfit.map_or(Ok(w.report.unknown), Err)
}

/// The same of resources that stand in a custom resource.
pub(super) fn embedded(object: &mut Value, structural: &Structural, schema: &SchemaRef) -> Res<Vec<String>> {
    let mut w = Walk::new(&schema.schema, Wording::Json);
    if let Some(field) = schema.def().field("metadata")
        && schema.schema.types.iter().any(|t| t.embedded_resource)
    {
        w.embedded(object, structural, field)?;
    }
    w.report.unknown.sort();
    w.misfit.map_or(Ok(w.report.unknown), Err)
}

impl<'a> Walk<'a> {
    fn new(schema: &'a Schema, wording: Wording) -> Self {
        Walk {
            schema,
            wording,
            path: Path::default(),
            names: Vec::new(),
            structs: Vec::new(),
            report: Report::default(),
            misfit: None,
        }
    }

    fn metadata(&mut self, m: &mut Value, field: &'a Field) -> Res<()> {
        let FieldType::Struct(id) = field.ty else { return Ok(()) };
        self.path.key("metadata");
        self.names.push(field);
        let done = self.root(m, self.schema.get(id), None);
        self.names.pop();
        self.path.pop();
        done
    }

    fn embedded(&mut self, v: &mut Value, s: &Structural, meta: &'a Field) -> Res<()> {
        match v {
            Value::Object(m) => {
                if let Some(of) = m.get_mut("metadata").filter(|_| s.embedded_resource) {
                    let at = self.path.child("metadata");
                    let done = self.metadata(of, meta);
                    done.and(self.misfit.take().map_or(Ok(()), Err))
                        .map_err(|e| DecodeError(format!("{at}: Invalid value: {}", e.0)))?;
                }
                for (key, v) in m.iter_mut() {
                    if let Some(below) = s.properties.get(key).or(s.additional_schema()) {
                        self.path.key(key);
                        self.embedded(v, below, meta)?;
                        self.path.pop();
                    }
                }
            }
            Value::Array(a) => {
                for (i, v) in a.iter_mut().enumerate() {
                    if let Some(items) = s.items.as_deref() {
                        self.path.index(i);
                        self.embedded(v, items, meta)?;
                        self.path.pop();
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn root(&mut self, v: &mut Value, def: &'a TypeDef, known: Option<&Map>) -> Res<()> {
        match v {
            Value::Object(m) => self.fields(m, def, known),
            Value::Null => {
                *v = Value::Object(Map::new());
                Ok(())
            }
            other => Err(DecodeError(format!(
                "json: cannot unmarshal {} into Go value of type {}",
                kind(other),
                go_name(def)
            ))),
        }
    }

    fn mismatch(&self, v: &Value, ty: &FieldType) -> DecodeError {
        let target = go_names::type_name(self.names.last().copied(), ty, Some(self.schema));
        if self.wording == Wording::Unstructured && !ty.reads_itself() {
            return DecodeError(unconvertible(v, ty, &target));
        }
        let shown = match v {
            Value::Int(i) if is_number(ty) => format!("number {i}"),
            Value::Float(f) if is_number(ty) => format!("number {}", go::go_float(*f)),
            other => kind(other).to_string(),
        };
        match self.structs.last().filter(|_| self.wording == Wording::Json) {
            Some(s) => DecodeError(format!(
                "json: cannot unmarshal {shown} into Go struct field {s}.{} of type {target}",
                go_names::path(self.names.iter().copied())
            )),
            None => DecodeError(format!("json: cannot unmarshal {shown} into Go value of type {target}")),
        }
    }

    /// Makes a number what a conversion, which is no decoding, makes of it.
    fn convert(&self, v: &mut Value, ty: &FieldType) {
        if let Value::Float(f) = v
            && f.fract() == 0.0
            && f.abs() < 9.0e15
        {
            *v = Value::Int(*f as i64);
        }
        if let Value::Int(i) = v {
            *i = match ty {
                FieldType::Int32 => i64::from(*i as i32),
                FieldType::UInt32 => i64::from(*i as u32),
                _ => *i,
            };
        }
    }

    /// A struct's members, in place. `known`: the same struct in an object that is canonical.
    fn fields(&mut self, m: &mut Map, def: &'a TypeDef, known: Option<&Map>) -> Res<()> {
        self.structs.push(go_name(def));
        let mut error = None;
        m.retain(|key, v| {
            if error.is_some() {
                return true;
            }
            let known = known.and_then(|known| known.get(key));
            if known.is_some_and(|known| known == v) {
                return true;
            }
            let Some(field) = def.field(key) else {
                if let Some(ty) = &def.additional {
                    self.path.key(key);
                    error = self.value(v, ty, known).err();
                    self.path.pop();
                    return true;
                }
                if !def.preserve_unknown {
                    if has_room(&self.report.unknown) {
                        self.report.unknown.push(self.path.child(key));
                    }
                    return false;
                }
                return true;
            };
            self.path.key(key);
            self.names.push(field);
            let keep = self.member(v, field, known);
            self.names.pop();
            self.path.pop();
            match keep {
                Ok(keep) => keep,
                Err(e) => {
                    error = Some(e);
                    true
                }
            }
        });
        self.structs.pop();
        if let Some(e) = error {
            return Err(e);
        }
        defaults::write_always(m, def, self.schema);
        Ok(())
    }

    /// Whether the member stays.
    fn member(&mut self, v: &mut Value, field: &'a Field, known: Option<&Value>) -> Res<bool> {
        if v.is_null() {
            return Ok(false);
        }
        either(v, &field.format)?;
        if v.is_null() {
            return Ok(false);
        }
        self.value(v, &field.ty, known)?;
        // An empty list of managers asks for all of them to be forgotten.
        if self.path.as_str() == "metadata.managedFields" {
            return Ok(true);
        }
        Ok(!omitted(v, field, self.schema))
    }

    fn value(&mut self, v: &mut Value, ty: &'a FieldType, known: Option<&Value>) -> Res<()> {
        if self.wording == Wording::Unstructured && is_number(ty) {
            self.convert(v, ty);
        }
        match (ty, &mut *v) {
            (FieldType::Bool, Value::Bool(_)) => Ok(()),
            (FieldType::Int32, Value::Int(i)) if i32::try_from(*i).is_ok() => Ok(()),
            (FieldType::UInt32, Value::Int(i)) if u32::try_from(*i).is_ok() => Ok(()),
            (FieldType::Int64, Value::Int(_)) => Ok(()),
            (FieldType::UInt64, Value::Int(i)) if *i >= 0 => Ok(()),
            (FieldType::UInt64, Value::Float(f)) if f.fract() == 0.0 && *f >= 0.0 && *f < 1.9e19 => Ok(()),
            (FieldType::Float32 | FieldType::Float64, Value::Int(_)) => Ok(()),
            (FieldType::Float32 | FieldType::Float64, Value::Float(f)) => {
                // Go writes a whole float without a point.
                if f.fract() == 0.0 && f.abs() < 9.0e15 {
                    *v = Value::Int(*f as i64);
                }
                Ok(())
            }
            (FieldType::String, Value::String(_)) => Ok(()),
            (FieldType::Bytes, Value::String(s)) => match base64_error(s) {
                None => Ok(()),
                Some(at) => {
                    let converted = match self.wording {
                        Wording::Json => "",
                        Wording::Unstructured => "error decoding from json: ",
                    };
                    self.misfits(DecodeError(format!(
                        "{converted}illegal base64 data at input byte {at}"
                    )))
                }
            },
            (FieldType::Quantity, Value::String(_) | Value::Int(_) | Value::Float(_)) => {
                super::scalars::quantity(v).map_err(DecodeError)
            }
            (FieldType::IntOrString, Value::String(_)) => Ok(()),
            (FieldType::IntOrString, Value::Int(i)) if i32::try_from(*i).is_ok() => Ok(()),
            (FieldType::Time, Value::String(s)) => super::scalars::time(s).map_err(DecodeError),
            (FieldType::MicroTime, Value::String(s)) => super::scalars::micro_time(s).map_err(DecodeError),
            (FieldType::Duration, Value::String(s)) => super::scalars::duration(s).map_err(DecodeError),
            (FieldType::RawExtension | FieldType::Any | FieldType::FieldsV1, _) => Ok(()),
            (FieldType::Struct(id), Value::Object(m)) => {
                self.fields(m, self.schema.get(*id), known.and_then(Value::as_object))
            }
            (FieldType::List(el), Value::Array(a)) => self.elements(a, el, known),
            (FieldType::ListOf(def), Value::Array(a)) => self.elements(a, &def.element, known),
            (FieldType::Map(el), Value::Object(m)) => {
                for (key, v) in m.iter_mut() {
                    if v.is_null() {
                        *v = zero_of(el, self.schema);
                        continue;
                    }
                    self.path.key(key);
                    self.value(v, el, known.and_then(|known| known.get(key)))?;
                    self.path.pop();
                }
                Ok(())
            }
            (ty, other) => {
                let why = self.mismatch(other, ty);
                if ty.reads_itself() { Err(why) } else { self.misfits(why) }
            }
        }
    }

    /// What doesn't fit ends a conversion, and only is remembered by the JSON decoder.
    fn misfits(&mut self, why: DecodeError) -> Res<()> {
        if self.wording == Wording::Unstructured {
            return Err(why);
        }
        self.misfit.get_or_insert(why);
        Ok(())
    }

    fn elements(&mut self, a: &mut [Value], el: &'a FieldType, known: Option<&Value>) -> Res<()> {
        let known = known.and_then(Value::as_array);
        for (i, v) in a.iter_mut().enumerate() {
            let known = known.and_then(|known| known.get(i));
            if known.is_some_and(|known| known == v) {
                continue;
            }
            if v.is_null() {
                *v = zero_of(el, self.schema);
                continue;
            }
            self.path.index(i);
            self.value(v, el, known)?;
            self.path.pop();
        }
        Ok(())
    }
}

/// A schema, or what else may stand in its place in another: some of these are particular, some hold nothing of what they aren't.
fn either(v: &mut Value, format: &str) -> Res<()> {
    match (format, &mut *v) {
        ("JSONSchemaPropsOrBool", Value::Object(_) | Value::Bool(_)) => Ok(()),
        ("JSONSchemaPropsOrBool", _) => Err(DecodeError("boolean or JSON schema expected".into())),
        ("JSONSchemaPropsOrArray", Value::Object(_) | Value::Array(_)) => Ok(()),
        ("JSONSchemaPropsOrStringArray", Value::Object(each)) => {
            for one in each.iter_mut().map(|(_, v)| v) {
                if !matches!(one, Value::Object(_) | Value::Array(_)) {
                    *one = Value::Null;
                }
            }
            Ok(())
        }
        ("JSONSchemaPropsOrArray", other) => {
            *other = Value::Null;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn is_number(ty: &FieldType) -> bool {
    matches!(
        ty,
        FieldType::Int32
            | FieldType::Int64
            | FieldType::UInt32
            | FieldType::UInt64
            | FieldType::Float32
            | FieldType::Float64
            | FieldType::IntOrString
    )
}

/// Why an untyped value doesn't convert to a type.
fn unconvertible(v: &Value, ty: &FieldType, target: &str) -> String {
    let from = match v {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int64",
        Value::Float(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    };
    match (ty, v) {
        (FieldType::Struct(_), _) => format!("cannot restore struct from: {from}"),
        (FieldType::Map(_), _) => format!("cannot restore map from {from}"),
        (FieldType::List(_) | FieldType::ListOf(_) | FieldType::Bytes, _) => {
            format!("cannot restore slice from {from}")
        }
        // Go could convert these, if JSON did.
        (FieldType::String, Value::Int(_)) => format!("cannot convert {from} to {target}"),
        (ty, Value::Int(_) | Value::Float(_)) if is_number(ty) => format!("cannot convert {from} to {target}"),
        _ => format!("unrecognized type: {}", go_names::kind_name(ty)),
    }
}

fn kind(v: &Value) -> &'static str {
    v.type_name()
}

fn go_name(def: &TypeDef) -> &str {
    def.name.rsplit('.').next().unwrap_or_default()
}

/// Whether the encoder leaves the member out.
fn omitted(v: &Value, field: &Field, schema: &Schema) -> bool {
    match field.omit {
        Omit::Never => false,
        Omit::Zero if !field.pointer => is_zero(v, &field.ty, schema) || go_empty(v, field),
        Omit::Zero | Omit::Empty => go_empty(v, field),
    }
}

/// Go's notion of "empty": false, 0, "", an empty list or map; never a struct, nor what a pointer points to.
fn go_empty(v: &Value, field: &Field) -> bool {
    let collection = matches!(
        field.ty,
        FieldType::List(_) | FieldType::ListOf(_) | FieldType::Map(_) | FieldType::Bytes
    );
    if collection {
        return match v {
            Value::Array(a) => a.is_empty(),
            Value::Object(m) => m.is_empty(),
            Value::String(s) => s.is_empty(),
            _ => v.is_null(),
        };
    }
    if field.pointer {
        return false;
    }
    match (v, &field.ty) {
        // These are structs in Go: omitempty doesn't touch them.
        (_, FieldType::Quantity | FieldType::IntOrString | FieldType::Time | FieldType::MicroTime) => false,
        (Value::Bool(b), _) => !b,
        (Value::Int(i), _) => *i == 0,
        (Value::Float(f), _) => *f == 0.0,
        (Value::String(s), _) => s.is_empty(),
        _ => false,
    }
}

fn is_zero(v: &Value, ty: &FieldType, schema: &Schema) -> bool {
    match (v, ty) {
        (Value::Null, _) => true,
        (Value::Object(m), FieldType::Struct(id)) => {
            let def = schema.get(*id);
            m.iter().all(|(k, v)| {
                def.field(k)
                    .is_some_and(|f| v.is_null() || (!f.pointer && is_zero(v, &f.ty, schema)))
            })
        }
        (Value::Bool(b), _) => !b,
        (Value::Int(i), _) => *i == 0,
        (Value::Float(f), _) => *f == 0.0,
        (Value::String(s), _) => s.is_empty(),
        _ => false,
    }
}
