//! What the claims of a good token make of a user: names and groups by claim or by expression, and the rules that both have
//! to satisfy. Words are upstream's.

use crate::authn::structured::{Rule, Source, Trusted};
use crate::authn::x509::CREDENTIAL_ID;
use crate::request::UserInfo;
use keelson_api::{Map, Str, Value, value};
use keelson_machinery::cel::{PER_CALL_LIMIT, Val};
use std::collections::BTreeMap;

/// The claims of a token, by name.
#[derive(Clone, Debug)]
pub struct Claims(Map);

impl Trusted {
    /// The claim that groups are in, if they are in one.
    pub fn groups_claim(&self) -> Option<&str> {
        match &self.groups {
            Source::Claim(m) => Some(&m.claim),
            _ => None,
        }
    }
}

impl Claims {
    pub fn parse(payload: &[u8]) -> Result<Claims, String> {
        match serde_json::from_slice(payload).map_err(|e| e.to_string())? {
            Value::Object(claims) => Ok(Claims(claims)),
            other => Err(wrong_kind(&other, "oidc.claims")),
        }
    }
    pub fn has(&self, claim: &str) -> bool {
        self.0.get(claim).is_some()
    }
    pub fn get(&self, claim: &str) -> Option<&Value> {
        self.0.get(claim)
    }
    pub fn insert(&mut self, claim: &str, value: Value) {
        self.0.insert(claim, value);
    }
    /// A claim as a value of another type.
    pub fn read<T: serde::de::DeserializeOwned>(&self, claim: &str) -> Result<T, String> {
        let value = self.0.get(claim).ok_or("claim not present")?;
        let json = serde_json::to_vec(value).map_err(|e| e.to_string())?;
        serde_json::from_slice(&json).map_err(|e| e.to_string())
    }
    fn text(&self, claim: &str) -> Result<String, String> {
        match self.0.get(claim).ok_or("claim not present")? {
            Value::String(s) => Ok(s.to_string()),
            Value::Null => Ok(String::new()),
            other => Err(wrong_kind(other, "string")),
        }
    }
    /// A list of texts, or one text.
    fn texts(&self, claim: &str) -> Result<Vec<Str>, String> {
        if let Some(Value::Array(list)) = self.0.get(claim) {
            let each = list.iter().map(|v| match v {
                Value::String(s) => Some(s.clone()),
                Value::Null => Some(Str::default()),
                _ => None,
            });
            return each
                .collect::<Option<_>>()
                .ok_or_else(|| wrong_kind(&Value::Array(Vec::new()), "string"));
        }
        match self.0.get(claim) {
            Some(Value::Null) => Ok(Vec::new()),
            _ => Ok(vec![self.text(claim)?.into()]),
        }
    }

    /// The user that a trusted issuer's claims mean.
    pub fn user(mut self, trusted: &Trusted) -> Result<UserInfo, String> {
        self.0.iter_mut().for_each(|(_, v)| only_floats(v));
        let mut user = UserInfo {
            name: self.username(trusted)?,
            groups: self.groups(trusted)?,
            uid: self.uid(trusted)?,
            ..UserInfo::default()
        };
        if let Ok(id) = self.text("jti") {
            user.extra
                .insert(CREDENTIAL_ID.into(), vec![format!("JTI={id}").into()]);
        }
        for (key, rule) in &trusted.extra {
            let found = self.evaluate(rule)?;
            let list = texts(&found).ok_or_else(|| {
                format!(
                    "oidc: error evaluating extra claim expression: {}: {NO_TEXTS}",
                    rule.source
                )
            })?;
            if !list.is_empty() {
                user.extra.insert(key.as_str().into(), list);
            }
        }
        self.check(trusted)?;
        check_user(&user, trusted)?;
        Ok(user)
    }

    fn username(&self, trusted: &Trusted) -> Result<Str, String> {
        let said = |why: String| format!("oidc: error evaluating username claim expression: {why}");
        match &trusted.username {
            Source::Expression(rule) => {
                let found = self.evaluate(rule).map_err(said)?;
                match found.as_str() {
                    None => Err(said("username claim expression must return a string".into())),
                    Some("") => Err("oidc: empty username via CEL expression is not allowed".into()),
                    Some(name) => Ok(name.into()),
                }
            }
            Source::Claim(m) => {
                let claim = &m.claim;
                let name = self
                    .text(claim)
                    .map_err(|why| format!("oidc: parse username claims {claim:?}: {why}"))?;
                if claim == "email" {
                    self.verified_email()?;
                }
                Ok(format!("{}{name}", m.prefix).into())
            }
            Source::Nowhere => Err("oidc: no username claim is configured".into()),
        }
    }

    fn verified_email(&self) -> Result<(), String> {
        match self.0.get("email_verified") {
            None | Some(Value::Bool(true)) => Ok(()),
            Some(Value::Bool(false) | Value::Null) => Err("oidc: email not verified".into()),
            Some(other) => {
                let why = wrong_kind(other, "bool");
                Err(format!("oidc: parse 'email_verified' claim: {why}"))
            }
        }
    }

    fn groups(&self, trusted: &Trusted) -> Result<Vec<Str>, String> {
        match &trusted.groups {
            Source::Claim(m) if self.has(&m.claim) => {
                let groups = self
                    .texts(&m.claim)
                    .map_err(|why| format!("oidc: parse groups claim {:?}: {why}", m.claim))?;
                Ok(groups.iter().map(|g| format!("{}{g}", m.prefix).into()).collect())
            }
            Source::Claim(_) | Source::Nowhere => Ok(Vec::new()),
            Source::Expression(rule) => {
                let said = |why: &str| format!("oidc: error evaluating group claim expression: {why}");
                let found = self.evaluate(rule).map_err(|why| said(&why))?;
                texts(&found).ok_or_else(|| said(NO_TEXTS))
            }
        }
    }

    fn uid(&self, trusted: &Trusted) -> Result<Str, String> {
        match &trusted.uid {
            Source::Nowhere => Ok(Str::default()),
            Source::Claim(m) => match self.text(&m.claim) {
                Ok(uid) => Ok(uid.into()),
                Err(why) => Err(format!("oidc: parse uid claim {:?}: {why}", m.claim)),
            },
            Source::Expression(rule) => {
                let said = |why: &str| format!("oidc: error evaluating uid claim expression: {why}");
                let found = self.evaluate(rule).map_err(|why| said(&why))?;
                let uid = found.as_str().map(Str::from);
                uid.ok_or_else(|| said("uid claim expression must return a string"))
            }
        }
    }

    fn check(&self, trusted: &Trusted) -> Result<(), String> {
        for (claim, wanted) in &trusted.required {
            if !self.has(claim) {
                return Err(format!("oidc: required claim {claim} not present in ID token"));
            }
            let found = self
                .text(claim)
                .map_err(|why| format!("oidc: parse claim {claim}: {why}"))?;
            if found != *wanted {
                return Err(format!(
                    "oidc: required claim {claim} value does not match. Got = {found}, want = {wanted}"
                ));
            }
        }
        holds(&trusted.claim_rules, "claims", Val::JsonMap(&self.0, None))
            .map_err(|why| format!("oidc: error evaluating claim validation expression: {why}"))
    }

    fn evaluate<'a>(&'a self, rule: &'a Rule) -> Result<Val<'a>, String> {
        evaluate(rule, "claims", Val::JsonMap(&self.0, None))
    }
}

fn check_user(user: &UserInfo, trusted: &Trusted) -> Result<(), String> {
    if trusted.user_rules.is_empty() {
        return Ok(());
    }
    let list = |l: &[Str]| Value::Array(l.iter().cloned().map(Value::String).collect());
    let extra: Map = user.extra.iter().map(|(k, v)| (k.clone(), list(v))).collect();
    let shown = value!({
        "username": user.name.clone(), "uid": user.uid.clone(), "groups": list(&user.groups), "extra": Value::Object(extra),
    });
    holds(&trusted.user_rules, "user", Val::of_json(&shown, None))
        .map_err(|why| format!("oidc: error evaluating user info validation rule: {why}"))
}

/// All are evaluated before any decides.
fn holds<'a>(rules: &'a [Rule], name: &'a str, given: Val<'a>) -> Result<(), String> {
    let found: Vec<Val> = rules
        .iter()
        .map(|rule| evaluate(rule, name, given.clone()))
        .collect::<Result<_, _>>()?;
    for (rule, found) in rules.iter().zip(found) {
        match found {
            Val::Bool(true) => {}
            Val::Bool(false) => {
                return Err(format!(
                    "validation expression '{}' failed: {}",
                    rule.source, rule.message
                ));
            }
            _ => return Err("validation expression must return a boolean".into()),
        }
    }
    Ok(())
}

fn evaluate<'a>(rule: &'a Rule, name: &'a str, given: Val<'a>) -> Result<Val<'a>, String> {
    let activation = BTreeMap::from([(name, given)]);
    let (found, _) = rule.program.eval(&activation, PER_CALL_LIMIT);
    found.map_err(|e| format!("expression '{}' resulted in error: {e}", rule.source))
}

const NO_TEXTS: &str = "expression must return a string or a list of strings";

/// What an expression yielded, as texts; empty ones are left out.
fn texts(found: &Val) -> Option<Vec<Str>> {
    let list = match found {
        Val::Null => return Some(Vec::new()),
        Val::Str(_) => vec![found.clone()],
        other => other.items()?,
    };
    let each: Option<Vec<Str>> = list.iter().map(|v| v.as_str().map(Str::from)).collect();
    Some(each?.into_iter().filter(|text| !text.is_empty()).collect())
}

/// Go reads every number of a claim as a float.
fn only_floats(value: &mut Value) {
    match value {
        Value::Int(i) => *value = Value::Float(*i as f64),
        Value::Array(list) => list.iter_mut().for_each(only_floats),
        Value::Object(map) => map.iter_mut().for_each(|(_, v)| only_floats(v)),
        _ => {}
    }
}

fn wrong_kind(value: &Value, wanted: &str) -> String {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Int(_) | Value::Float(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    format!("json: cannot unmarshal {kind} into Go value of type {wanted}")
}

#[cfg(test)]
mod tests;
