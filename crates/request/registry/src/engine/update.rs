//! Updates: read, change, admit, prepare, validate, compare-and-set; again with what is there now if that fails.

use super::create::warn_owners;
use super::{Current, Engine, storage, store_error};
use crate::admission::{Admission, Operation};
use crate::context::Cx;
use crate::{managed, meta};
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Cause, Object, Reason};
use keelson_store::{Expect, Outcome};

const MODIFIED: &str = "the object has been modified; please apply your changes to the latest version and try again";
/// Writers that lose so often in a row are told so: the request's deadline is near in any case.
const MAX_ATTEMPTS: usize = 500;

/// What an update changes an object to. Asked anew at every attempt, since what is there may have changed.
#[async_trait]
pub trait UpdateSource: Send + Sync {
    /// The UID that the object must have.
    fn uid(&self) -> Option<&str> {
        None
    }
    /// Whether it is the object of the request, as far as that is known without the one that is there.
    fn check(&self, _cx: &Cx) -> ApiResult<()> {
        Ok(())
    }
    /// The new object, managed fields included.
    async fn updated(&self, engine: &Engine, cx: &Cx, existing: Option<&Object>) -> ApiResult<Object>;
}

/// PUT: the object as sent.
pub struct Replace(pub Object);

#[async_trait]
impl UpdateSource for Replace {
    fn uid(&self) -> Option<&str> {
        Some(self.0.uid()).filter(|u| !u.is_empty())
    }
    fn check(&self, cx: &Cx) -> ApiResult<()> {
        check_name(cx, &mut self.0.clone())
    }
    async fn updated(&self, engine: &Engine, cx: &Cx, existing: Option<&Object>) -> ApiResult<Object> {
        let mut new = self.0.clone();
        managed::update(cx, existing, &mut new, engine.now());
        Ok(new)
    }
}

/// How one attempt ended.
enum Attempt {
    Done(Object, bool),
    /// There was nothing to write.
    Same(Object),
    /// Somebody else was faster; what stands there now.
    Lost(Option<Current>),
    /// The store failed. What was asked of it may have happened all the same, so it isn't asked again.
    Failed(ApiError),
}

impl Engine {
    /// Updates the object of the request, or creates it where the kind or `force_create` (apply) allows. Says whether it did.
    pub async fn update(
        &self,
        cx: &Cx,
        admit: &dyn Admission,
        source: &dyn UpdateSource,
        force_create: bool,
    ) -> ApiResult<(Object, bool)> {
        let may_create = force_create || (cx.subresource.is_empty() && cx.def.strategy.allow_create_on_update());
        // What the cache has is nearly always the newest, and costs no read of the store. Whatever comes of it but a write,
        // which is compared, counts only if it was.
        let mut existing = if cx.dry_run { None } else { self.cached(cx).await? };
        let mut is_certain = existing.is_none();
        if is_certain {
            existing = self.current(cx).await?;
        }
        for _ in 0..MAX_ATTEMPTS {
            let attempt = self.attempt(cx, admit, source, may_create, existing.as_ref()).await;
            let attempt = match attempt {
                Ok(Attempt::Done(object, created)) => return Ok((object, created)),
                Ok(Attempt::Lost(now)) => {
                    (existing, is_certain) = (now, true);
                    continue;
                }
                Ok(Attempt::Failed(e)) => return Err(e),
                Ok(Attempt::Same(object)) => Ok((object, false)),
                Err(e) => Err(e),
            };
            if is_certain {
                return attempt;
            }
            let now = self.current(cx).await?;
            let known = |current: &Option<Current>| current.as_ref().map(|c| (c.revision, c.is_stale));
            if known(&now) == known(&existing) {
                return attempt;
            }
            (existing, is_certain) = (now, true);
        }
        Err(cx.conflict(&cx.name, MODIFIED))
    }

    async fn attempt(
        &self,
        cx: &Cx,
        admit: &dyn Admission,
        source: &dyn UpdateSource,
        may_create: bool,
        existing: Option<&Current>,
    ) -> ApiResult<Attempt> {
        if existing.is_none() && !may_create {
            source.check(cx)?;
            return Err(cx.not_found(&cx.name));
        }
        self.check_uid(cx, source.uid(), existing)?;
        match existing {
            Some(current) => self.update_once(cx, admit, source, current).await,
            None => self.create_by_update(cx, admit, source).await,
        }
    }

    fn check_uid(&self, cx: &Cx, wanted: Option<&str>, existing: Option<&Current>) -> ApiResult<()> {
        let Some(wanted) = wanted else { return Ok(()) };
        let has = existing.map_or("", |c| c.object.uid());
        if wanted == has {
            return Ok(());
        }
        let key = storage(cx)?.key(&cx.namespace, &cx.name);
        // Who only tries isn't told where objects are kept.
        let key = match key.strip_prefix("/registry") {
            Some(key) if cx.dry_run => key,
            _ => &key,
        };
        Err(cx.conflict(
            &cx.name,
            format!(
                "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {has}"
            ),
        ))
    }

    async fn create_by_update(&self, cx: &Cx, admit: &dyn Admission, source: &dyn UpdateSource) -> ApiResult<Attempt> {
        let mut new = source.updated(self, cx, None).await?;
        check_name(cx, &mut new)?;
        let submitted = managed::snapshot(&new);
        admit.mutate(cx, Operation::Create, Some(&mut new), None).await?;
        managed::after_admission(cx, &submitted, &mut new);
        warn_owners(cx, &mut new, true);
        meta::wipe_system_fields(&mut new);
        meta::fill_system_fields(&mut new, self.now());
        if !matches!(new.resource_version(), "" | "0") {
            // Only an existing object can have a revision to compare with.
            return Err(cx.conflict(&cx.name, MODIFIED));
        }
        new.set_meta("resourceVersion", "");
        let finish = cx
            .def
            .strategy
            .begin(self, cx, Operation::Create, &mut new, None)
            .await?;
        let result = async {
            self.before_create(cx, &mut new)?;
            admit.authorize_create(cx).await?;
            admit.validate(cx, Operation::Create, Some(&new), None).await?;
            self.insert(cx, &new).await
        }
        .await;
        self.finish(finish, result.is_ok() && !cx.dry_run).await;
        match result {
            Ok(revision) => {
                new.set_meta("resourceVersion", &revision.map(|r| r.to_string()).unwrap_or_default());
                Ok(Attempt::Done(new, true))
            }
            Err(e) if e.is(Reason::AlreadyExists) => match self.current(cx).await? {
                Some(now) => Ok(Attempt::Lost(Some(now))),
                None => Err(e),
            },
            Err(e) => Err(e),
        }
    }

    async fn update_once(
        &self,
        cx: &Cx,
        admit: &dyn Admission,
        source: &dyn UpdateSource,
        current: &Current,
    ) -> ApiResult<Attempt> {
        let old = &current.object;
        let mut new = source.updated(self, cx, Some(old)).await?;
        check_name(cx, &mut new)?;
        let submitted = managed::snapshot(&new);
        admit.mutate(cx, Operation::Update, Some(&mut new), Some(old)).await?;
        managed::after_admission(cx, &submitted, &mut new);
        warn_owners(cx, &mut new, true);
        self.check_revision(cx, &mut new, current)?;
        let finish = cx
            .def
            .strategy
            .begin(self, cx, Operation::Update, &mut new, Some(old))
            .await?;
        let result = self.commit_update(cx, admit, new, current).await;
        let kept = matches!(result, Ok(Attempt::Done(..) | Attempt::Same(_))) && !cx.dry_run;
        self.finish(finish, kept).await;
        result
    }

    /// Without a revision an update is unconditional, where the kind allows it; with another one than the object's it fails.
    fn check_revision(&self, cx: &Cx, new: &mut Object, current: &Current) -> ApiResult<()> {
        let asked = match new.resource_version() {
            "" | "0" => 0,
            // Upstream lets Go's own error through.
            text => meta::parse_revision(text).map_err(|why| ApiError::new(Reason::Unknown, why))?,
        };
        if asked == 0 && !cx.def.strategy.allow_unconditional_update() {
            let cause = Cause::invalid(
                "metadata.resourceVersion",
                &0i64.into(),
                "must be specified for an update",
            );
            return Err(ApiError::invalid(
                &cx.def.gvr.group,
                &cx.def.gvr.resource,
                &cx.name,
                vec![cause],
            ));
        }
        if asked != 0 && asked != current.revision {
            return Err(cx.conflict(&cx.name, MODIFIED));
        }
        new.set_meta("resourceVersion", &current.revision.to_string());
        Ok(())
    }

    async fn commit_update(
        &self,
        cx: &Cx,
        admit: &dyn Admission,
        mut new: Object,
        current: &Current,
    ) -> ApiResult<Attempt> {
        let old = &current.object;
        self.before_update(cx, &mut new, old)?;
        managed::ignore_timestamps(&mut new, old);
        admit.validate(cx, Operation::Update, Some(&new), Some(old)).await?;
        if deletes(&new, old) && cx.def.strategy.delete_during_update(&new, old) {
            return self.delete_emptied(cx, new, current).await;
        }
        if new == *old && !current.is_stale {
            // Nothing changed: nothing is written, and the revision stays.
            return Ok(Attempt::Same(new));
        }
        let storage = storage(cx)?;
        let value = self.encode(cx, storage, &new, Some(current)).await?;
        if cx.dry_run {
            return Ok(Attempt::Done(new, false));
        }
        let key = storage.key(&cx.namespace, &cx.name);
        let ttl = self.lifetime(cx);
        let expect = Expect::ModRevision(current.revision);
        let asked = self.store.put(key.into(), value, expect, ttl);
        let outcome = match self.asked(&storage.resource, "update", asked).await {
            Ok(outcome) => outcome,
            Err(e) => return Ok(Attempt::Failed(store_error(cx, "update", &e))),
        };
        match outcome {
            Outcome::Done { revision, .. } => {
                new.set_meta("resourceVersion", &revision.to_string());
                Ok(Attempt::Done(new, false))
            }
            Outcome::Conflict { current: Some(kv), .. } => Ok(Attempt::Lost(Some(self.decode(&cx.def, &kv).await?))),
            Outcome::Conflict { current: None, .. } => Ok(Attempt::Lost(None)),
        }
    }

    /// The kind's preparation and validation of a changed object.
    fn before_update(&self, cx: &Cx, new: &mut Object, old: &Object) -> ApiResult<()> {
        let strategy = &cx.def.strategy;
        let namespace = if cx.def.namespaced { cx.namespace.as_str() } else { "" };
        meta::ensure_namespace(new, namespace)?;
        keep(new, old, "generation");
        strategy.prepare_update(cx, new, old);
        if new.uid().is_empty() {
            keep(new, old, "uid");
        }
        if !old.creation_timestamp().is_empty() {
            keep(new, old, "creationTimestamp");
        }
        if old.deletion_timestamp().is_some() {
            keep(new, old, "deletionTimestamp");
        }
        if old.deletion_grace_period_seconds().is_some() && new.deletion_grace_period_seconds().is_none() {
            keep(new, old, "deletionGracePeriodSeconds");
        }
        let mut errs = meta::validate(new, cx.def.namespaced);
        errs.extend(meta::validate_update(new, old));
        errs.extend(strategy.validate_update(cx, new, old));
        errs.dedup();
        if !errs.is_empty() {
            return Err(cx.invalid(new.name(), errs));
        }
        for w in strategy.warnings(cx, new, Some(old)) {
            cx.warn(w);
        }
        strategy.canonicalize(new);
        Ok(())
    }

    /// Writes `new` in place of `current` as it is; `None` when somebody was faster.
    pub async fn swap(&self, cx: &Cx, current: &Current, mut new: Object) -> ApiResult<Option<Object>> {
        if cx.dry_run || new == current.object {
            return Ok(Some(new));
        }
        let storage = storage(cx)?;
        let value = self.encode(cx, storage, &new, Some(current)).await?;
        let key = storage.key(&cx.namespace, &cx.name);
        let expect = Expect::ModRevision(current.revision);
        let asked = self.store.put(key.into(), value, expect, None);
        let outcome = self.asked(&storage.resource, "update", asked).await;
        let outcome = outcome.map_err(|e| store_error(cx, "update", &e))?;
        Ok(outcome.done().map(|revision| {
            new.set_meta("resourceVersion", &revision.to_string());
            new
        }))
    }

    /// The last finalizer is gone and the object was deleted before: now it goes.
    async fn delete_emptied(&self, cx: &Cx, new: Object, current: &Current) -> ApiResult<Attempt> {
        if !cx.dry_run {
            let storage = storage(cx)?;
            let key = storage.key(&cx.namespace, &cx.name);
            let asked = self.store.delete(key.into(), Expect::ModRevision(current.revision));
            let outcome = match self.asked(&storage.resource, "delete", asked).await {
                Ok(outcome) => outcome,
                Err(e) => return Ok(Attempt::Failed(store_error(cx, "delete", &e))),
            };
            match outcome {
                Outcome::Done { .. } => cx.def.strategy.after_delete(self, cx, &current.object).await,
                Outcome::Conflict { current: Some(kv), .. } => {
                    return Ok(Attempt::Lost(Some(self.decode(&cx.def, &kv).await?)));
                }
                // Somebody else has deleted it, and seen to what follows.
                Outcome::Conflict { current: None, .. } => {}
            }
        }
        Ok(Attempt::Done(new, false))
    }
}

fn keep(new: &mut Object, old: &Object, key: &str) {
    crate::strategy::restore(new.meta_mut(), old.meta(), key);
}

/// An update that leaves no finalizers on an object whose deletion waited for them.
fn deletes(new: &Object, old: &Object) -> bool {
    new.finalizers().next().is_none()
        && old.deletion_timestamp().is_some()
        && old.deletion_grace_period_seconds().unwrap_or(0) == 0
}

/// The object's name must be the path's.
fn check_name(cx: &Cx, new: &mut Object) -> ApiResult<()> {
    let namespace = if cx.def.namespaced { cx.namespace.as_str() } else { "" };
    meta::ensure_namespace(new, namespace)?;
    if new.name() != cx.name {
        let name = new.name();
        return Err(ApiError::bad_request(if name.is_empty() {
            format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                cx.name
            )
        } else {
            format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                cx.name
            )
        }));
    }
    Ok(())
}
