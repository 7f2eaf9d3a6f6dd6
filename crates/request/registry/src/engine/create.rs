//! Creation: managed fields, admission, system fields, strategy, validation, one write that expects nothing there.

use super::{Engine, storage, store_error};
use crate::admission::{Admission, Operation};
use crate::context::Cx;
use crate::strategy::Finish;
use crate::{managed, meta};
use keelson_api::{ApiError, ApiResult, Object, Reason};
use keelson_store::{Expect, Outcome, Revision};

/// How often a generated name that is taken is drawn again.
const NAME_ATTEMPTS: usize = 8;

impl Engine {
    /// Creates an object that has been decoded and defaulted. Answers with it as stored.
    pub async fn create(&self, cx: &Cx, admit: &dyn Admission, mut obj: Object) -> ApiResult<Object> {
        meta::wipe_system_fields(&mut obj);
        let namespace = if cx.def.namespaced { cx.namespace.as_str() } else { "" };
        meta::ensure_namespace(&mut obj, namespace)?;
        if !says_revision(&obj) {
            obj.set_meta("resourceVersion", "");
        }
        warn_owners(cx, &mut obj, false);
        managed::update(cx, None, &mut obj, self.now());
        let submitted = managed::snapshot(&obj);
        admit.mutate(cx, Operation::Create, Some(&mut obj), None).await?;
        managed::after_admission(cx, &submitted, &mut obj);
        warn_owners(cx, &mut obj, true);
        let generated = obj.name().is_empty() && !obj.generate_name().is_empty();
        if !generated {
            return self.create_once(cx, admit, obj).await;
        }
        let mut attempt = 1;
        loop {
            match self.create_once(cx, admit, obj.clone()).await {
                Err(e) if e.is(Reason::AlreadyExists) && attempt < NAME_ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    async fn create_once(&self, cx: &Cx, admit: &dyn Admission, mut obj: Object) -> ApiResult<Object> {
        meta::fill_system_fields(&mut obj, self.now());
        if obj.name().is_empty() && !obj.generate_name().is_empty() {
            let name = meta::generate_name(obj.generate_name());
            obj.set_meta("name", &name);
        }
        let finish = cx
            .def
            .strategy
            .begin(self, cx, Operation::Create, &mut obj, None)
            .await?;
        let result = async {
            self.before_create(cx, &mut obj)?;
            admit.validate(cx, Operation::Create, Some(&obj), None).await?;
            // The store's word upstream: whom admission refuses doesn't hear it, nor a dry run.
            if says_revision(&obj) && !cx.dry_run {
                let why = "resourceVersion should not be set on objects to be created";
                return Err(ApiError::new(Reason::Unknown, why));
            }
            let revision = self.insert(cx, &obj).await?;
            if let Some(revision) = revision {
                obj.set_meta("resourceVersion", &revision.to_string());
            }
            Ok(obj)
        }
        .await;
        self.finish(finish, result.is_ok() && !cx.dry_run).await;
        result
    }

    /// The kind's preparation and validation of a new object.
    pub(super) fn before_create(&self, cx: &Cx, obj: &mut Object) -> ApiResult<()> {
        let strategy = &cx.def.strategy;
        let namespace = if cx.def.namespaced { cx.namespace.as_str() } else { "" };
        meta::ensure_namespace(obj, namespace)?;
        strategy.prepare_create(cx, obj);
        let mut errs = strategy.validate(cx, obj);
        if errs.is_empty() {
            errs = meta::validate(obj, cx.def.namespaced);
        }
        if !errs.is_empty() {
            return Err(cx.invalid(obj.name(), errs));
        }
        for w in strategy.warnings(cx, obj, None) {
            cx.warn(w);
        }
        strategy.canonicalize(obj);
        Ok(())
    }

    /// Writes a new object; `None` for a dry run.
    pub(super) async fn insert(&self, cx: &Cx, obj: &Object) -> ApiResult<Option<Revision>> {
        let storage = storage(cx)?;
        let key = storage.key(obj.namespace(), obj.name());
        let value = self.encode(cx, storage, obj, None).await?;
        if cx.dry_run {
            let asked = self.store.get(key.as_bytes(), None);
            let there = self.asked(&storage.resource, "get", asked).await;
            let there = there.map_err(|e| store_error(cx, "create", &e))?;
            return if there.kv.is_none() {
                Ok(None)
            } else {
                Err(exists(cx, obj, false))
            };
        }
        let ttl = self.lifetime(cx);
        let asked = self.store.put(key.into(), value, Expect::Absent, ttl);
        let outcome = self.asked(&storage.resource, "create", asked).await;
        let outcome = outcome.map_err(|e| store_error(cx, "create", &e))?;
        match outcome {
            Outcome::Done { revision, .. } => Ok(Some(revision)),
            Outcome::Conflict { current, .. } => {
                let deleting = match current {
                    Some(kv) => self
                        .decode(&cx.def, &kv)
                        .await
                        .is_ok_and(|c| c.object.deletion_timestamp().is_some()),
                    None => false,
                };
                Err(exists(cx, obj, deleting))
            }
        }
    }

    /// Lets a hook keep or give back what it reserved.
    pub(super) async fn finish(&self, finish: Option<Box<dyn Finish>>, success: bool) {
        if let Some(f) = finish {
            f.finish(self, success).await;
        }
    }
}

/// Whether an object says at which revision it is. What is no number upstream doesn't look at.
fn says_revision(obj: &Object) -> bool {
    meta::parse_revision(obj.resource_version()).is_ok_and(|revision| revision != 0)
}

fn exists(cx: &Cx, obj: &Object, deleting: bool) -> ApiError {
    let mut e = ApiError::already_exists(&cx.def.gvr.group, &cx.def.gvr.resource, obj.name());
    if !obj.generate_name().is_empty() {
        e.message
            .push_str(", the server was not able to generate a unique name for the object");
        e = e.with_retry_after(1);
    }
    if deleting {
        e.message = format!("object is being deleted: {}", e.message);
    }
    e
}

/// Drops repeated owner references and says so.
pub fn warn_owners(cx: &Cx, obj: &mut Object, after_admission: bool) {
    let repeated = meta::dedup_owners(obj);
    if !repeated.is_empty() {
        let after = if after_admission {
            " after mutating admission happens"
        } else {
            ""
        };
        cx.warn(format!(
            ".metadata.ownerReferences contains duplicate entries{after}; API server dedups owner references in 1.20+, and may \
             reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            repeated.join(", ")
        ));
    }
}
