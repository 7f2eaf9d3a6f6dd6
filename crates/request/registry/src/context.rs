//! What a strategy, an admission plug-in or the engine may know of the request it works for. No HTTP.

use crate::def::ResourceDef;
use crate::user::UserInfo;
use keelson_api::{ApiError, Cause, Str, Value};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// `fieldValidation`: what becomes of unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    pub fn parse(s: &str) -> Self {
        match s {
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            _ => FieldValidation::Warn,
        }
    }
}

/// One request to the registry. Collects warnings and audit annotations on its way.
#[derive(Debug)]
pub struct Cx {
    pub def: Arc<ResourceDef>,
    /// Empty for the resource itself.
    pub subresource: Str,
    /// As rights are asked for it; empty if it is the server's own.
    pub verb: Str,
    /// The namespace of the request (empty: none or all).
    pub namespace: Str,
    /// The name of the request (empty for collections).
    pub name: Str,
    pub user: Arc<UserInfo>,
    pub dry_run: bool,
    pub field_validation: FieldValidation,
    /// The manager named in the request or drawn from the user agent.
    pub field_manager: Str,
    /// `CreateOptions`, `UpdateOptions`, …: what webhooks are shown.
    pub options: Value,
    warnings: Mutex<Vec<String>>,
    audit: Mutex<Vec<(Str, String)>>,
    /// Nanoseconds that servers outside took.
    waited: AtomicU64,
}

impl Cx {
    pub fn new(def: Arc<ResourceDef>, user: Arc<UserInfo>, namespace: &str, name: &str) -> Self {
        Cx {
            def,
            subresource: Str::default(),
            verb: Str::default(),
            namespace: namespace.into(),
            name: name.into(),
            user,
            dry_run: false,
            field_validation: FieldValidation::Warn,
            field_manager: Str::default(),
            options: Value::Null,
            warnings: Mutex::default(),
            audit: Mutex::default(),
            waited: AtomicU64::default(),
        }
    }
    pub fn with_subresource(mut self, subresource: &str) -> Self {
        self.subresource = subresource.into();
        self
    }
    pub fn with_verb(mut self, verb: &str) -> Self {
        self.verb = verb.into();
        self
    }
    /// The same request for another object or resource: subresources that change their parent, collections.
    pub fn derive(&self, def: Arc<ResourceDef>, namespace: &str, name: &str) -> Self {
        Cx {
            dry_run: self.dry_run,
            field_validation: self.field_validation,
            field_manager: self.field_manager.clone(),
            options: self.options.clone(),
            verb: self.verb.clone(),
            ..Cx::new(def, self.user.clone(), namespace, name)
        }
    }
    /// Takes over what a derived request gathered.
    pub fn absorb(&self, other: &Cx) {
        self.warnings.lock().append(&mut other.warnings.lock());
        self.audit.lock().append(&mut other.audit.lock());
        self.waited(other.take_waited());
    }
    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.lock().push(text.into());
    }
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock())
    }
    pub fn annotate(&self, key: &str, value: impl Into<String>) {
        self.audit.lock().push((key.into(), value.into()));
    }
    pub fn take_annotations(&self) -> Vec<(Str, String)> {
        std::mem::take(&mut *self.audit.lock())
    }
    /// The request has waited for somebody outside.
    pub fn waited(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(nanos, Ordering::Relaxed);
    }
    pub fn take_waited(&self) -> Duration {
        Duration::from_nanos(self.waited.swap(0, Ordering::Relaxed))
    }
    /// What is wrong with an object of this name.
    pub fn invalid(&self, name: &str, causes: Vec<Cause>) -> ApiError {
        ApiError::invalid(self.kind_group(), &self.def.kind, name, causes)
    }
    /// The group of the kind that is stored, whichever was asked for: events of both groups are one kind.
    pub fn kind_group(&self) -> &str {
        match self.def.kind.as_str() {
            "Event" => "",
            _ => &self.def.gvr.group,
        }
    }
    pub fn not_found(&self, name: &str) -> ApiError {
        ApiError::not_found(&self.def.gvr.group, &self.def.gvr.resource, name)
    }
    pub fn conflict(&self, name: &str, why: impl std::fmt::Display) -> ApiError {
        ApiError::conflict(&self.def.gvr.group, &self.def.gvr.resource, name, why)
    }
    pub fn forbidden(&self, name: &str, why: impl std::fmt::Display) -> ApiError {
        ApiError::forbidden(&self.def.gvr.group, &self.def.gvr.resource, name, why)
    }
}
