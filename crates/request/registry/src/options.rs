//! The options of the verbs (`ListOptions`, `DeleteOptions`, …): read from queries, bodies, and checked as upstream does.

use keelson_api::{ApiError, ApiResult, Cause, Map, Object, Str, Value, value};

/// Decoded query parameters.
pub type Pairs<'a> = &'a [(Str, Str)];

fn first<'a>(q: Pairs<'a>, key: &str) -> Option<&'a str> {
    q.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
}
fn all(q: Pairs, key: &str) -> Vec<Str> {
    q.iter().filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect()
}
/// Upstream's reading of a boolean parameter: present and not `false` or `0`.
fn flag(q: Pairs, key: &str) -> Option<bool> {
    first(q, key).map(|v| !(v.eq_ignore_ascii_case("false") || v == "0"))
}
fn int(q: Pairs, key: &str) -> ApiResult<Option<i64>> {
    match first(q, key) {
        None => Ok(None),
        Some(v) => v.parse().map(Some).map_err(|e: std::num::ParseIntError| {
            let why = match e.kind() {
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "value out of range",
                _ => "invalid syntax",
            };
            ApiError::bad_request(format!("strconv.ParseInt: parsing {v:?}: {why}"))
        }),
    }
}
fn text(q: Pairs, key: &str) -> Str {
    first(q, key).unwrap_or_default().into()
}

fn invalid(kind: &str, causes: Vec<Cause>) -> ApiResult<()> {
    if causes.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid("meta.k8s.io", kind, "", causes))
    }
}

const EXACT: &str = "Exact";
const NOT_OLDER: &str = "NotOlderThan";

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListOptions {
    pub label_selector: Str,
    pub field_selector: Str,
    pub watch: bool,
    pub allow_watch_bookmarks: bool,
    pub resource_version: Str,
    pub resource_version_match: Str,
    pub timeout_seconds: Option<i64>,
    pub limit: i64,
    pub continue_token: String,
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// Reads the query, fills in defaults and checks the combination.
    pub fn from_query(q: Pairs) -> ApiResult<Self> {
        let mut o = ListOptions {
            label_selector: text(q, "labelSelector"),
            field_selector: text(q, "fieldSelector"),
            watch: flag(q, "watch").unwrap_or(false),
            allow_watch_bookmarks: flag(q, "allowWatchBookmarks").unwrap_or(false),
            resource_version: text(q, "resourceVersion"),
            resource_version_match: text(q, "resourceVersionMatch"),
            timeout_seconds: int(q, "timeoutSeconds")?,
            limit: int(q, "limit")?.unwrap_or(0),
            continue_token: first(q, "continue").unwrap_or_default().to_string(),
            send_initial_events: flag(q, "sendInitialEvents"),
        };
        let legacy = matches!(o.resource_version.as_str(), "" | "0");
        if o.watch && legacy && o.send_initial_events.is_none() && o.resource_version_match.is_empty() {
            o.send_initial_events = Some(true);
            o.resource_version_match = NOT_OLDER.into();
        }
        invalid("ListOptions", if o.watch { o.check_watch() } else { o.check_list() })?;
        Ok(o)
    }
    fn check_list(&self) -> Vec<Cause> {
        let mut errs = Vec::new();
        let field = "resourceVersionMatch";
        let m = self.resource_version_match.as_str();
        if !m.is_empty() {
            if self.resource_version.is_empty() {
                errs.push(Cause::forbidden(
                    field,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !self.continue_token.is_empty() {
                errs.push(Cause::forbidden(
                    field,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if m != EXACT && m != NOT_OLDER {
                errs.push(Cause::not_supported(field, &m.into(), &[EXACT, NOT_OLDER, ""]));
            }
            if m == EXACT && self.resource_version == "0" {
                errs.push(Cause::forbidden(
                    field,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if self.send_initial_events.is_some() {
            errs.push(Cause::forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            ));
        }
        errs
    }
    fn check_watch(&self) -> Vec<Cause> {
        let mut errs = Vec::new();
        let field = "resourceVersionMatch";
        let m = self.resource_version_match.as_str();
        if self.send_initial_events.is_some() && m != NOT_OLDER {
            errs.push(Cause::forbidden(
                field,
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if !m.is_empty() {
            if self.send_initial_events.is_none() {
                errs.push(Cause::forbidden(
                    field,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if m != NOT_OLDER {
                errs.push(Cause::not_supported(field, &m.into(), &[NOT_OLDER]));
            }
            if !self.continue_token.is_empty() {
                errs.push(Cause::forbidden(
                    field,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
        }
        errs
    }
    pub fn exact(&self) -> bool {
        self.resource_version_match == EXACT
    }
}

/// What create, update and patch have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WriteOptions {
    pub dry_run: Vec<Str>,
    pub field_manager: Str,
    pub field_validation: Str,
    /// Patch only.
    pub force: Option<bool>,
}

impl WriteOptions {
    /// `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    pub fn from_query(q: Pairs, kind: &str, apply: bool) -> ApiResult<Self> {
        let o = WriteOptions {
            dry_run: all(q, "dryRun"),
            field_manager: text(q, "fieldManager"),
            field_validation: text(q, "fieldValidation"),
            force: flag(q, "force"),
        };
        let mut errs = Vec::new();
        if kind == "PatchOptions" {
            if apply && o.field_manager.is_empty() {
                errs.push(Cause::required("fieldManager", "is required for apply patch"));
            }
            if !apply && o.force.is_some() {
                errs.push(Cause::forbidden("force", "may not be specified for non-apply patch"));
            }
        }
        check_field_manager(&o.field_manager, "fieldManager", &mut errs);
        check_dry_run(&o.dry_run, &mut errs);
        if !matches!(o.field_validation.as_str(), "" | "Ignore" | "Warn" | "Strict") {
            errs.push(Cause::not_supported(
                "fieldValidation",
                &o.field_validation.as_str().into(),
                &["", "Ignore", "Strict", "Warn"],
            ));
        }
        invalid(kind, errs)?;
        Ok(o)
    }
    pub fn is_dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }
    /// The options as webhooks see them.
    pub fn to_value(&self, kind: &str) -> Value {
        let mut m = Map::new();
        m.insert("apiVersion", "meta.k8s.io/v1");
        m.insert("kind", kind);
        if !self.dry_run.is_empty() {
            m.insert(
                "dryRun",
                self.dry_run.iter().cloned().map(Value::String).collect::<Vec<_>>(),
            );
        }
        if !self.field_manager.is_empty() {
            m.insert("fieldManager", self.field_manager.clone());
        }
        if !self.field_validation.is_empty() {
            m.insert("fieldValidation", self.field_validation.clone());
        }
        if let Some(f) = self.force {
            m.insert("force", f);
        }
        m.into()
    }
}

/// A manager's name: at most 128 bytes, printable.
pub fn check_field_manager(name: &str, field: &str, errs: &mut impl Extend<Cause>) {
    if name.len() > LONGEST_MANAGER {
        errs.extend([Cause::too_long(field, LONGEST_MANAGER)]);
    }
    // Each complaint shows the whole name: of one that is too long anyway a few are enough.
    let unprintable = name
        .char_indices()
        .filter(|(_, c)| c.is_control())
        .take(LONGEST_MANAGER);
    errs.extend(unprintable.map(|(at, c)| {
        let why = format!("invalid character U+{:04X} (at position {at})", c as u32);
        Cause::invalid(field, &name.into(), &why)
    }));
}

const LONGEST_MANAGER: usize = 128;

fn check_dry_run(values: &[Str], errs: &mut Vec<Cause>) {
    if values.iter().any(|v| v != "All") {
        let shown: Vec<Value> = values.iter().cloned().map(Value::String).collect();
        errs.push(Cause::not_supported("dryRun", &shown.into(), &["All"]));
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<Str>,
    pub resource_version: Option<Str>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<Str>,
    pub dry_run: Vec<Str>,
    /// `ignoreStoreReadErrorWithClusterBreakingPotential`: removes what can't be read, and only that.
    pub ignore_read_error: bool,
}

const IGNORE_READ_ERROR: &str = "ignoreStoreReadErrorWithClusterBreakingPotential";

impl DeleteOptions {
    pub fn grace(seconds: i64) -> Self {
        DeleteOptions {
            grace_period_seconds: Some(seconds),
            ..Self::default()
        }
    }
    pub fn from_query(q: Pairs) -> ApiResult<Self> {
        let o = DeleteOptions {
            grace_period_seconds: int(q, "gracePeriodSeconds")?,
            orphan_dependents: flag(q, "orphanDependents"),
            propagation_policy: first(q, "propagationPolicy").map(Str::from),
            dry_run: all(q, "dryRun"),
            ignore_read_error: flag(q, IGNORE_READ_ERROR) == Some(true),
            ..Self::default()
        };
        o.check()?;
        Ok(o)
    }
    /// Reads a decoded `DeleteOptions` body.
    pub fn from_object(o: &Object) -> ApiResult<Self> {
        let wrong = |field: &str| ApiError::bad_request(format!("DeleteOptions: cannot unmarshal field {field}"));
        let opt_str = |v: Option<&Value>, f: &str| match v {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.clone())),
            Some(_) => Err(wrong(f)),
        };
        let pre = o.obj("preconditions");
        let options = DeleteOptions {
            grace_period_seconds: match o.get("gracePeriodSeconds") {
                None | Some(Value::Null) => None,
                Some(v) => Some(v.as_i64().ok_or_else(|| wrong("gracePeriodSeconds"))?),
            },
            uid: opt_str(pre.and_then(|p| p.get("uid")), "preconditions.uid")?,
            resource_version: opt_str(
                pre.and_then(|p| p.get("resourceVersion")),
                "preconditions.resourceVersion",
            )?,
            orphan_dependents: match o.get("orphanDependents") {
                None | Some(Value::Null) => None,
                Some(v) => Some(v.as_bool().ok_or_else(|| wrong("orphanDependents"))?),
            },
            propagation_policy: opt_str(o.get("propagationPolicy"), "propagationPolicy")?,
            dry_run: o
                .arr("dryRun")
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(Str::from)
                .collect(),
            ignore_read_error: match o.get(IGNORE_READ_ERROR) {
                None | Some(Value::Null) => false,
                Some(v) => v.as_bool().ok_or_else(|| wrong(IGNORE_READ_ERROR))?,
            },
        };
        options.check()?;
        Ok(options)
    }
    pub fn check(&self) -> ApiResult<()> {
        const POLICIES: [&str; 4] = ["Foreground", "Background", "Orphan", "nil"];
        let mut errs = Vec::new();
        if let Some(p) = &self.propagation_policy {
            let shown = Value::from(p.as_str());
            if self.orphan_dependents.is_some() {
                errs.push(Cause::invalid(
                    "propagationPolicy",
                    &shown,
                    "orphanDependents and deletionPropagation cannot be both set",
                ));
            }
            if !POLICIES[..3].contains(&p.as_str()) {
                errs.push(Cause::not_supported("propagationPolicy", &shown, &POLICIES));
            }
        }
        check_dry_run(&self.dry_run, &mut errs);
        if self.ignore_read_error {
            let given = [
                (self.propagation_policy.is_some(), "propagationPolicy"),
                (self.orphan_dependents.is_some(), "orphanDependents"),
                (self.grace_period_seconds.is_some(), "gracePeriodSeconds"),
                (self.uid.is_some() || self.resource_version.is_some(), "preconditions"),
            ];
            for (_, other) in given.iter().filter(|(given, _)| *given) {
                let why = format!("cannot be set together with .{other}");
                errs.push(Cause::invalid(IGNORE_READ_ERROR, &true.into(), &why));
            }
        }
        invalid("DeleteOptions", errs)
    }
    /// A collection's objects can't be removed unread.
    pub fn check_collection(&self) -> ApiResult<()> {
        let mut errs = Vec::new();
        if self.ignore_read_error {
            let why = "is not allowed with DELETECOLLECTION, try again after removing the option";
            errs.push(Cause::invalid(IGNORE_READ_ERROR, &true.into(), why));
        }
        invalid("DeleteOptions", errs)
    }
    pub fn is_dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }
    pub fn to_value(&self) -> Value {
        let mut v = value!({"apiVersion": "meta.k8s.io/v1", "kind": "DeleteOptions"});
        if let Some(s) = self.grace_period_seconds {
            v.set_at(&["gracePeriodSeconds"], s);
        }
        if self.ignore_read_error {
            v.set_at(&[IGNORE_READ_ERROR], true);
        }
        if let Some(b) = self.orphan_dependents {
            v.set_at(&["orphanDependents"], b);
        }
        if let Some(p) = &self.propagation_policy {
            v.set_at(&["propagationPolicy"], p.clone());
        }
        if let Some(u) = &self.uid {
            v.set_at(&["preconditions", "uid"], u.clone());
        }
        if let Some(r) = &self.resource_version {
            v.set_at(&["preconditions", "resourceVersion"], r.clone());
        }
        if !self.dry_run.is_empty() {
            v.set_at(
                &["dryRun"],
                self.dry_run.iter().cloned().map(Value::String).collect::<Vec<_>>(),
            );
        }
        v
    }
}
