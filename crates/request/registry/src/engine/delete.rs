//! Deletion: grace, finalizers, garbage-collection policy, preconditions; and, when nothing stands in its way, the end.

use super::{Current, Engine, storage, store_error};
use crate::admission::{Admission, Operation};
use crate::codec;
use crate::context::Cx;
use crate::meta::{self, FOREGROUND, ORPHAN};
use crate::options::DeleteOptions;
use crate::strategy::GcPolicy;
use jiff::SignedDuration;
use keelson_api::{ApiError, ApiResult, Object, Str};
use keelson_store::{Expect, Outcome};
use std::time::Instant;

/// How a deletion ended.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The object as last stored.
    pub object: Object,
    /// It is gone, rather than marked.
    pub gone: bool,
    /// The answer is the object; otherwise a Status that names it.
    pub show_object: bool,
}

/// What one look at the object decides.
enum Step {
    /// Deletion is already under way and this request doesn't hasten it.
    AlreadyPending,
    /// The object is updated to say that it is being deleted; `then_gone`: and removed at once after.
    Mark {
        object: Object,
        then_gone: bool,
    },
    Remove,
}

impl Engine {
    pub async fn delete(&self, cx: &Cx, admit: &dyn Admission, options: &DeleteOptions) -> ApiResult<Deleted> {
        if let Some(result) = cx.def.strategy.delete(self, cx, admit, options).await {
            return result;
        }
        self.delete_generic(cx, admit, options).await
    }

    /// Removes what can't be read, and nothing else: what would have to be known of it (finalizers, owners, preconditions) is
    /// not, so nothing of it is heeded.
    pub async fn delete_unreadable(&self, cx: &Cx) -> ApiResult<()> {
        let storage = storage(cx)?;
        let key = storage.key(&cx.namespace, &cx.name);
        let failed = |e| store_error(cx, "delete", &e);
        loop {
            let asked = self.store.get(key.as_bytes(), None);
            let got = self.asked(&storage.resource, "get", asked).await.map_err(failed)?;
            let kv = got.kv.ok_or_else(|| cx.not_found(&cx.name))?;
            if codec::read_stored(storage, &kv.value, kv.mod_revision).is_ok() {
                return Err(cx.conflict(
                    &cx.name,
                    format!(
                        "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: unsafe deletion is not allowed because the object is decodable from storage"
                    ),
                ));
            }
            if cx.dry_run {
                return Ok(());
            }
            let expected = Expect::ModRevision(kv.mod_revision);
            let asked = self.store.delete(kv.key, expected);
            let outcome = self.asked(&storage.resource, "delete", asked).await;
            if let Outcome::Done { .. } = outcome.map_err(failed)? {
                return Ok(());
            }
        }
    }

    /// The engine's own deletion, also for kinds that do something first.
    pub async fn delete_generic(&self, cx: &Cx, admit: &dyn Admission, options: &DeleteOptions) -> ApiResult<Deleted> {
        let mut current = self.current(cx).await?.ok_or_else(|| cx.not_found(&cx.name))?;
        loop {
            let mut options = options.clone();
            let step = self.plan(cx, &current.object, &mut options)?;
            if let Step::AlreadyPending = step {
                let show_object = cx.def.strategy.returns_deleted();
                return Ok(Deleted {
                    object: current.object,
                    gone: false,
                    show_object,
                });
            }
            admit.mutate(cx, Operation::Delete, None, Some(&current.object)).await?;
            admit
                .validate(cx, Operation::Delete, None, Some(&current.object))
                .await?;
            let lost = match step {
                Step::Mark {
                    object,
                    then_gone: true,
                } => match self.mark_and_remove(cx, &current, object).await? {
                    Ok(object) => return Ok(self.gone(cx, object).await),
                    Err(now) => now,
                },
                Step::Mark { object, .. } => match self.mark(cx, &current, object).await? {
                    Ok(marked) => {
                        return Ok(Deleted {
                            object: marked,
                            gone: false,
                            show_object: true,
                        });
                    }
                    Err(now) => now,
                },
                _ => match self.remove(cx, &current).await? {
                    None => return Ok(self.gone(cx, current.object).await),
                    Some(now) => now,
                },
            };
            current = lost.ok_or_else(|| cx.not_found(&cx.name))?;
        }
    }

    /// For kinds whose deletion somebody else completes: the first request writes what `mark` makes of the object. `Err`
    /// holds an object that is marked already. `failed` is how the kind's complaint of a precondition begins.
    pub async fn begin_deletion(
        &self,
        cx: &Cx,
        admit: &dyn Admission,
        options: &DeleteOptions,
        failed: &str,
        mark: impl Fn(&mut Object),
    ) -> ApiResult<Result<Deleted, Object>> {
        let mut uid = options.uid.clone();
        loop {
            let current = self.current(cx).await?.ok_or_else(|| cx.not_found(&cx.name))?;
            let old = &current.object;
            let version = options.resource_version.as_deref();
            for (what, wanted, has) in [
                ("UID", uid.as_deref(), old.uid()),
                ("ResourceVersion", version, old.resource_version()),
            ] {
                if let Some(wanted) = wanted.filter(|w| *w != has) {
                    let why = format!("{failed}: {what} in precondition: {wanted}, {what} in object meta: {has}");
                    return Err(cx.conflict(&cx.name, why));
                }
            }
            // Another object of the name, should one come meanwhile, is not the one that was to go.
            uid.get_or_insert_with(|| old.uid().into());
            if old.deletion_timestamp().is_some() {
                return Ok(Err(current.object));
            }
            admit.mutate(cx, Operation::Delete, None, Some(old)).await?;
            admit.validate(cx, Operation::Delete, None, Some(old)).await?;
            let mut new = old.clone();
            new.set_meta("deletionTimestamp", &meta::timestamp(self.now()));
            mark(&mut new);
            if let Some(object) = self.swap(cx, &current, new).await? {
                return Ok(Ok(Deleted {
                    object,
                    gone: false,
                    show_object: true,
                }));
            }
        }
    }

    async fn gone(&self, cx: &Cx, object: Object) -> Deleted {
        if !cx.dry_run {
            cx.def.strategy.after_delete(self, cx, &object).await;
        }
        Deleted {
            object,
            gone: true,
            show_object: cx.def.strategy.returns_deleted(),
        }
    }

    /// Writes the mark of deletion; `Err` holds what stands there when somebody was faster.
    async fn mark(&self, cx: &Cx, current: &Current, object: Object) -> ApiResult<Result<Object, Option<Current>>> {
        if cx.dry_run || object == current.object {
            return Ok(Ok(object));
        }
        let storage = storage(cx)?;
        let value = self.encode(cx, storage, &object, Some(current)).await?;
        let key = storage.key(&cx.namespace, &cx.name);
        let expect = Expect::ModRevision(current.revision);
        let asked = self.store.put(key.into(), value, expect, None);
        let outcome = self.asked(&storage.resource, "update", asked).await;
        let outcome = outcome.map_err(|e| store_error(cx, "delete", &e))?;
        self.marked(cx, object, outcome).await
    }

    async fn marked(
        &self,
        cx: &Cx,
        mut object: Object,
        outcome: Outcome,
    ) -> ApiResult<Result<Object, Option<Current>>> {
        match outcome {
            Outcome::Done { revision, .. } => {
                object.set_meta("resourceVersion", &revision.to_string());
                Ok(Ok(object))
            }
            Outcome::Conflict { current: Some(kv), .. } => Ok(Err(Some(self.decode(&cx.def, &kv).await?))),
            Outcome::Conflict { current: None, .. } => Ok(Err(None)),
        }
    }

    /// The mark of a deletion that nothing holds up, and the removal that follows it: two changes, for who watches. `Err` holds what stands
    /// there when somebody was faster.
    async fn mark_and_remove(
        &self,
        cx: &Cx,
        current: &Current,
        object: Object,
    ) -> ApiResult<Result<Object, Option<Current>>> {
        if cx.dry_run || object == current.object {
            let faster = self.remove(cx, current).await?.flatten();
            return Ok(faster.map_or(Ok(object), |now| Err(Some(now))));
        }
        let storage = storage(cx)?;
        let value = self.encode(cx, storage, &object, Some(current)).await?;
        let key = storage.key(&cx.namespace, &cx.name);
        let expect = Expect::ModRevision(current.revision);
        let (resource, began) = (&storage.resource, Instant::now());
        let asked = self.store.put_then_delete(key.into(), value, expect);
        let (put, removed) = self
            .asked(resource, "update", asked)
            .await
            .map_err(|e| store_error(cx, "delete", &e))?;
        if removed.is_some() {
            self.observer.asked(resource, "delete", began.elapsed(), true);
        }
        match (self.marked(cx, object, put).await?, removed) {
            (Ok(_), Some(Outcome::Conflict { current: Some(kv), .. })) => {
                Ok(Err(Some(self.decode(&cx.def, &kv).await?)))
            }
            // Perhaps somebody else completed it between the two.
            (marked, _) => Ok(marked),
        }
    }

    /// Removes the object. `Some` holds what stands there when somebody was faster.
    async fn remove(&self, cx: &Cx, current: &Current) -> ApiResult<Option<Option<Current>>> {
        if cx.dry_run {
            return Ok(None);
        }
        let storage = storage(cx)?;
        let key = storage.key(&cx.namespace, &cx.name);
        let asked = self.store.delete(key.into(), Expect::ModRevision(current.revision));
        let outcome = self.asked(&storage.resource, "delete", asked).await;
        match outcome.map_err(|e| store_error(cx, "delete", &e))? {
            Outcome::Done { .. } => Ok(None),
            Outcome::Conflict { current: Some(kv), .. } => Ok(Some(Some(self.decode(&cx.def, &kv).await?))),
            Outcome::Conflict { current: None, .. } => Ok(Some(None)),
        }
    }

    fn plan(&self, cx: &Cx, existing: &Object, options: &mut DeleteOptions) -> ApiResult<Step> {
        options.check()?;
        check_preconditions(cx, existing, options)?;
        if options.grace_period_seconds.is_some_and(|s| s < 0) {
            options.grace_period_seconds = Some(1);
        }
        let mut object = existing.clone();
        let graceful = match self.grace(cx, &mut object, options)? {
            Grace::Pending => return Ok(Step::AlreadyPending),
            Grace::Yes => true,
            Grace::No => false,
        };
        let finalizers = gc_finalizers(cx.def.strategy.gc_policy(), &object, options);
        let pending = !finalizers.is_empty();
        object.set_finalizers(finalizers);
        if graceful {
            let then_gone = !pending && options.grace_period_seconds.unwrap_or(0) == 0;
            return Ok(Step::Mark { object, then_gone });
        }
        if pending {
            self.mark_deleting(&mut object);
            return Ok(Step::Mark {
                object,
                then_gone: false,
            });
        }
        Ok(Step::Remove)
    }

    /// Upstream's rules of grace: set once, only ever shortened.
    fn grace(&self, cx: &Cx, object: &mut Object, options: &mut DeleteOptions) -> ApiResult<Grace> {
        let now = self.now();
        if let Some(deleted_at) = object.deletion_timestamp().and_then(meta::parse_time) {
            if cx.def.strategy.graceful(object, &mut options.clone()).is_none() {
                return Ok(Grace::No);
            }
            let left = object
                .deletion_grace_period_seconds()
                .map(|s| if s < 0 { 1 } else { s });
            let Some(had) = left.filter(|s| *s != 0) else {
                return Ok(Grace::No);
            };
            let Some(mut period) = options.grace_period_seconds else {
                options.grace_period_seconds = Some(had);
                return Ok(Grace::Pending);
            };
            if period >= had {
                return Ok(Grace::Pending);
            }
            let mut at = shifted(deleted_at, period - had);
            if at < now {
                at = now;
                if period != 0 {
                    period = 1;
                }
            }
            object.set_meta("deletionTimestamp", &meta::timestamp(at));
            object.meta_mut().insert("deletionGracePeriodSeconds", period);
            options.grace_period_seconds = Some(period);
            return Ok(Grace::Yes);
        }
        if cx.def.strategy.graceful(object, options) != Some(true) {
            return Ok(Grace::No);
        }
        let period = options
            .grace_period_seconds
            .ok_or_else(|| ApiError::internal("options.GracePeriodSeconds should not be nil"))?;
        object.set_meta("deletionTimestamp", &meta::timestamp(shifted(now, period)));
        object.meta_mut().insert("deletionGracePeriodSeconds", period);
        bump_generation(object);
        Ok(Grace::Yes)
    }

    /// For kinds without grace: finalizers hold the object, which says since when.
    fn mark_deleting(&self, object: &mut Object) {
        let now = self.now();
        if object.deletion_timestamp().is_none() {
            bump_generation(object);
        }
        let at = object.deletion_timestamp().and_then(meta::parse_time);
        if at.is_none_or(|t| t > now) {
            object.set_meta("deletionTimestamp", &meta::timestamp(now));
        }
        object.meta_mut().insert("deletionGracePeriodSeconds", 0i64);
    }
}

enum Grace {
    Yes,
    No,
    Pending,
}

fn shifted(t: jiff::Timestamp, seconds: i64) -> jiff::Timestamp {
    t.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(jiff::Timestamp::MAX)
}

fn bump_generation(object: &mut Object) {
    let g = object.generation();
    if g > 0 {
        object.meta_mut().insert("generation", g + 1);
    }
}

fn check_preconditions(cx: &Cx, existing: &Object, options: &DeleteOptions) -> ApiResult<()> {
    let conflict = |why: String| ApiError::conflict(cx.kind_group(), &cx.def.kind, existing.name(), why);
    if let Some(uid) = options.uid.as_ref().filter(|u| u.as_str() != existing.uid()) {
        return Err(conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            existing.uid()
        )));
    }
    if let Some(rv) = options
        .resource_version
        .as_ref()
        .filter(|r| r.as_str() != existing.resource_version())
    {
        return Err(conflict(format!(
            "the ResourceVersion in the precondition ({rv}) does not match the ResourceVersion in record ({}). The object might have been modified",
            existing.resource_version()
        )));
    }
    Ok(())
}

/// The finalizers that make the garbage collector see to the dependents first.
fn gc_finalizers(policy: GcPolicy, object: &Object, options: &DeleteOptions) -> Vec<Str> {
    let has = |f: &str| object.finalizers().any(|x| x == f);
    let mut list: Vec<Str> = object
        .finalizers()
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .map(Str::from)
        .collect();
    let (orphan, foreground) = if policy == GcPolicy::Unsupported {
        (false, false)
    } else if let Some(orphan) = options.orphan_dependents {
        (orphan, false)
    } else {
        match options.propagation_policy.as_deref() {
            Some("Orphan") => (true, false),
            Some("Foreground") => (false, true),
            Some(_) => (false, false),
            None if has(ORPHAN) => (true, false),
            None if has(FOREGROUND) => (false, true),
            None => (policy == GcPolicy::Orphan, false),
        }
    };
    if orphan {
        list.push(ORPHAN.into());
    }
    if foreground {
        list.push(FOREGROUND.into());
    }
    let mut before: Vec<&str> = object.finalizers().collect();
    let mut after: Vec<&str> = list.iter().map(Str::as_str).collect();
    before.sort_unstable();
    after.sort_unstable();
    // The same set keeps its order.
    if before == after {
        object.finalizers().map(Str::from).collect()
    } else {
        list
    }
}
