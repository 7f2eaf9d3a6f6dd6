//! Which requests webhooks and policies are for: rules, selectors, and the other versions of a resource.

use super::Review;
use keelson_api::{ApiError, ApiResult, GroupVersionKind, GroupVersionResource, Map, Object, Reason, Str, Value};
use keelson_machinery::selector::LabelSelector;
use keelson_registry::convert::convert_one;
use keelson_registry::{Operation, ResourceDef};
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

const GROUP: &str = "admissionregistration.k8s.io";

/// What admission's own configuration is written as: never subject to webhooks and policies, so that nobody locks
/// themselves out.
pub fn is_configuration(def: &ResourceDef) -> bool {
    def.gvr.group == GROUP
        && matches!(
            def.kind.as_str(),
            "ValidatingWebhookConfiguration"
                | "MutatingWebhookConfiguration"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "MutatingAdmissionPolicy"
                | "MutatingAdmissionPolicyBinding"
        )
}

/// Reviews that authentication and authorisation depend on.
pub fn is_review(def: &ResourceDef) -> bool {
    match def.gvr.group.as_str() {
        "authentication.k8s.io" => matches!(def.gvr.resource.as_str(), "selfsubjectreviews" | "tokenreviews"),
        "authorization.k8s.io" => matches!(
            def.gvr.resource.as_str(),
            "localsubjectaccessreviews"
                | "selfsubjectaccessreviews"
                | "selfsubjectrulesreviews"
                | "subjectaccessreviews"
        ),
        _ => false,
    }
}

/// What of a request is matched, and shown to webhooks and expressions.
pub struct Subject {
    pub name: Str,
    /// Of a namespace: its own name.
    pub namespace: Str,
    pub is_namespace: bool,
    /// What the request carries, in its own version.
    pub kind: GroupVersionKind,
    equivalents: OnceLock<Vec<Arc<ResourceDef>>>,
}

impl Subject {
    pub fn of(review: &Review<'_>, new: Option<&Object>) -> Subject {
        let cx = review.cx;
        let name: Str = match (cx.name.as_str(), new) {
            ("", Some(o)) if review.op == Operation::Create => o.name().into(),
            (name, _) => name.into(),
        };
        let is_namespace = cx.def.is("", "namespaces");
        let namespace = if is_namespace && cx.namespace.is_empty() {
            name.clone()
        } else {
            cx.namespace.clone()
        };
        // What is connected with has options of a kind of their own.
        let kind = match new.filter(|_| review.op == Operation::Connect) {
            Some(o) => {
                let (group, version) = o.api_version().split_once('/').unwrap_or(("", o.api_version()));
                GroupVersionKind::new(group, version, o.kind())
            }
            None => cx.def.kind_of(&cx.subresource),
        };
        Subject {
            name,
            namespace,
            is_namespace,
            kind,
            equivalents: OnceLock::new(),
        }
    }

    fn target(&self, review: &Review<'_>, def: &Arc<ResourceDef>) -> Target {
        let kind = if def.gvr == review.cx.def.gvr {
            self.kind.clone()
        } else {
            def.kind_of(&review.cx.subresource)
        };
        Target {
            def: def.clone(),
            own: kind == self.kind,
            kind,
        }
    }

    /// The resource under its other versions (and groups).
    fn equivalents(&self, review: &Review<'_>) -> &[Arc<ResourceDef>] {
        self.equivalents.get_or_init(|| {
            let def = &review.cx.def;
            let Some(storage) = &def.storage else { return Vec::new() };
            let sub = &review.cx.subresource;
            let snapshot = review.lookup.engine().table.snapshot();
            let same = snapshot
                .iter()
                .filter(|d| d.storage.as_ref().is_some_and(|s| s.prefix == storage.prefix));
            same.filter(|d| d.gvr != def.gvr && (sub.is_empty() || d.subresource(sub).is_some()))
                .cloned()
                .collect()
        })
    }
}

/// The resource and kind by which a request matched.
#[derive(Clone, Debug)]
pub struct Target {
    pub def: Arc<ResourceDef>,
    pub kind: GroupVersionKind,
    /// The request's own version.
    own: bool,
}

impl Target {
    /// An object of the request in the target's version.
    pub async fn view<'a>(&self, review: &Review<'_>, object: &'a Object) -> ApiResult<Cow<'a, Object>> {
        if self.own {
            return Ok(Cow::Borrowed(object));
        }
        let converted = convert(&review.cx.def, object.clone(), &self.def.api_version()).await?;
        Ok(Cow::Owned(converted))
    }
    /// Both objects of a request in the target's version.
    pub async fn views<'a>(
        &self,
        review: &Review<'_>,
        new: Option<&'a Object>,
        old: Option<&'a Object>,
    ) -> ApiResult<(Option<Cow<'a, Object>>, Option<Cow<'a, Object>>)> {
        let mut views = (None, None);
        for (object, view) in [(new, &mut views.0), (old, &mut views.1)] {
            if let Some(o) = object {
                *view = Some(self.view(review, o).await?);
            }
        }
        Ok(views)
    }
    /// An object in the target's version, back in the request's.
    pub async fn back(&self, review: &Review<'_>, object: Object) -> ApiResult<Object> {
        if self.own {
            return Ok(object);
        }
        convert(&review.cx.def, object, &review.cx.def.api_version()).await
    }
}

async fn convert(def: &ResourceDef, object: Object, api_version: &str) -> ApiResult<Object> {
    match &def.converter {
        Some(c) => convert_one(c.as_ref(), object, api_version).await,
        None => Err(ApiError::internal(format!(
            "unable to convert to {api_version}: unknown kind"
        ))),
    }
}

/// `RuleWithOperations`, and the names it may be limited to.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    operations: Vec<Str>,
    groups: Vec<Str>,
    versions: Vec<Str>,
    resources: Vec<Str>,
    scope: Option<Str>,
    names: Vec<Str>,
}

impl Rule {
    pub fn parse(m: &Map) -> Rule {
        let list = |key: &str| -> Vec<Str> {
            m.arr(key)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(Str::from)
                .collect()
        };
        Rule {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources"),
            scope: m.str("scope").map(Str::from),
            names: list("resourceNames"),
        }
    }

    fn matches(&self, op: Operation, gvr: &GroupVersionResource, subresource: &str, subject: &Subject) -> bool {
        let one_of = |list: &[Str], wanted: &str| list.iter().any(|i| i == "*" || i == wanted);
        let clustered = subject.is_namespace || subject.namespace.is_empty();
        let scope = match self.scope.as_deref() {
            None | Some("*") => true,
            Some("Namespaced") => !clustered,
            Some("Cluster") => clustered,
            Some(_) => false,
        };
        let resource = self.resources.iter().any(|r| {
            let (resource, sub) = r.split_once('/').unwrap_or((r, ""));
            (resource == "*" || gvr.resource == resource) && (sub == "*" || sub == subresource)
        });
        scope
            && resource
            && one_of(&self.operations, op.as_str())
            && one_of(&self.groups, &gvr.group)
            && one_of(&self.versions, &gvr.version)
            && (self.names.is_empty() || self.names.contains(&subject.name))
    }
}

/// A selector as configured; a broken one fails the requests that it would have to select.
type Selector = Result<LabelSelector, String>;

/// `matchConstraints`, `matchResources`, or the same of a webhook.
#[derive(Clone, Debug)]
pub struct Criteria {
    /// None: everything matches.
    rules: Option<Vec<Rule>>,
    excluded: Vec<Rule>,
    exact: bool,
    namespaces: Selector,
    objects: Selector,
}

impl Criteria {
    /// Of a webhook, which has its rules under `rules`.
    pub fn of_webhook(m: &Map) -> Criteria {
        let rules = rules(m, "rules");
        Criteria {
            rules: Some(rules),
            ..Self::with_selectors(m)
        }
    }
    /// Of a policy or a binding.
    pub fn of_resources(m: &Map) -> Criteria {
        let listed = rules(m, "resourceRules");
        Criteria {
            rules: (!listed.is_empty()).then_some(listed),
            excluded: rules(m, "excludeResourceRules"),
            ..Self::with_selectors(m)
        }
    }
    fn with_selectors(m: &Map) -> Criteria {
        let selector = |key: &str| match m.get(key) {
            None | Some(Value::Null) => Ok(LabelSelector::everything()),
            given => LabelSelector::from_object(given),
        };
        Criteria {
            rules: None,
            excluded: Vec::new(),
            exact: m.str("matchPolicy") == Some("Exact"),
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
        }
    }

    /// By what the request matches; `None`: it doesn't.
    pub async fn matches(
        &self,
        review: &Review<'_>,
        subject: &Subject,
        new: Option<&Object>,
        old: Option<&Object>,
    ) -> ApiResult<Option<Target>> {
        if self.first(&self.excluded, review, subject).is_some() {
            return Ok(None);
        }
        let target = match &self.rules {
            None => Some(subject.target(review, &review.cx.def)),
            Some(rules) => self.first(rules, review, subject),
        };
        let Some(target) = target else { return Ok(None) };
        let objects = self.objects.as_ref().map_err(ApiError::internal);
        if let Ok(selector) = &objects
            && !selector.is_empty()
            && ![new, old].into_iter().flatten().any(|o| selects(selector, o))
        {
            return Ok(None);
        }
        if !self.in_namespace(review, subject, new).await? {
            return Ok(None);
        }
        objects.map(|_| Some(target))
    }

    fn first(&self, rules: &[Rule], review: &Review<'_>, subject: &Subject) -> Option<Target> {
        let sub = review.cx.subresource.as_str();
        let find = |def: &Arc<ResourceDef>| {
            let hit = rules.iter().any(|r| r.matches(review.op, &def.gvr, sub, subject));
            hit.then(|| subject.target(review, def))
        };
        find(&review.cx.def).or_else(|| {
            if self.exact || rules.is_empty() {
                return None;
            }
            // Earlier rules count first.
            let by_rule = |rule: &Rule| {
                let equal = subject.equivalents(review).iter();
                equal
                    .filter(|d| rule.matches(review.op, &d.gvr, sub, subject))
                    .map(|d| subject.target(review, d))
                    .next()
            };
            rules.iter().find_map(by_rule)
        })
    }

    async fn in_namespace(&self, review: &Review<'_>, subject: &Subject, new: Option<&Object>) -> ApiResult<bool> {
        if subject.namespace.is_empty() && !subject.is_namespace {
            return Ok(true);
        }
        let selector = self.namespaces.as_ref().map_err(ApiError::internal)?;
        if selector.is_empty() {
            return Ok(true);
        }
        let own = subject.is_namespace
            && review.cx.subresource.is_empty()
            && matches!(review.op, Operation::Create | Operation::Update);
        if let (true, Some(new)) = (own, new) {
            return Ok(selects(selector, new));
        }
        let namespace = namespace(review, &subject.namespace).await?;
        Ok(selects(selector, &namespace))
    }
}

fn rules(m: &Map, key: &str) -> Vec<Rule> {
    m.arr(key)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .map(Rule::parse)
        .collect()
}

fn selects(selector: &LabelSelector, object: &Object) -> bool {
    object.meta().is_some() && selector.matches(object.labels())
}

/// The namespace of that name, which has to be there.
pub async fn namespace(review: &Review<'_>, name: &str) -> ApiResult<Object> {
    let found = review.lookup.cached("", "namespaces", "", name).await;
    match found {
        Ok(Some(n)) => Ok(n),
        Ok(None) => Err(ApiError::not_found("", "namespaces", name)),
        Err(e) if e.is(Reason::NotFound) => Err(e),
        Err(e) => Err(ApiError::internal(e.message)),
    }
}

/// The request as webhooks and expressions see it: all of `AdmissionRequest` but the objects and the UID.
pub fn request_value(review: &Review<'_>, subject: &Subject, target: &Target) -> Map {
    let cx = review.cx;
    let mut m = Map::new();
    let mut set = |key: &str, text: &str| {
        if !text.is_empty() {
            m.insert(key, text);
        }
    };
    set("name", &subject.name);
    set("namespace", &subject.namespace);
    set("subResource", &cx.subresource);
    set("requestSubResource", &cx.subresource);
    m.insert("operation", review.op.as_str());
    m.insert("kind", kind_value(&target.kind));
    m.insert("resource", resource_value(&target.def.gvr));
    m.insert("requestKind", kind_value(&subject.kind));
    m.insert("requestResource", resource_value(&cx.def.gvr));
    m.insert("userInfo", cx.user.to_value());
    m.insert("dryRun", cx.dry_run);
    m.insert("options", cx.options.clone());
    m
}

fn kind_value(k: &GroupVersionKind) -> Value {
    keelson_api::value!({"group": k.group.as_str(), "version": k.version.as_str(), "kind": k.kind.as_str()})
}

fn resource_value(r: &GroupVersionResource) -> Value {
    keelson_api::value!({"group": r.group.as_str(), "version": r.version.as_str(), "resource": r.resource.as_str()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn subject(name: &str, namespace: &str) -> Subject {
        Subject {
            name: name.into(),
            namespace: namespace.into(),
            is_namespace: false,
            kind: GroupVersionKind::default(),
            equivalents: OnceLock::new(),
        }
    }

    fn matches(rule: Value, gvr: (&str, &str, &str), sub: &str, s: &Subject) -> bool {
        let rule = Rule::parse(rule.as_object().unwrap());
        let gvr = GroupVersionResource {
            group: gvr.0.into(),
            version: gvr.1.into(),
            resource: gvr.2.into(),
        };
        rule.matches(Operation::Create, &gvr, sub, s)
    }

    #[test]
    fn rules_match_resources_and_their_subresources() {
        let rule = |resources: Value| value!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": resources});
        let s = subject("a", "n");
        let pods = ("", "v1", "pods");
        for (resources, sub, hit) in [
            (value!(["pods"]), "", true),
            (value!(["pods"]), "status", false),
            (value!(["pods/*"]), "status", true),
            (value!(["pods/*"]), "", true),
            (value!(["*"]), "", true),
            (value!(["*"]), "status", false),
            (value!(["*/*"]), "status", true),
            (value!(["*/status"]), "status", true),
            (value!(["services"]), "", false),
        ] {
            assert_eq!(
                matches(rule(resources.clone()), pods, sub, &s),
                hit,
                "{resources:?} {sub}"
            );
        }
        assert!(!matches(rule(value!(["*"])), ("apps", "v1", "deployments"), "", &s));
    }

    #[test]
    fn rules_look_at_scope_and_names() {
        let rule = |extra: (&str, Value)| {
            let mut m = value!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]});
            m.as_object_mut().unwrap().insert(extra.0, extra.1);
            m
        };
        let (inside, outside) = (subject("a", "n"), subject("a", ""));
        let namespace = Subject {
            is_namespace: true,
            ..subject("n", "n")
        };
        let any = ("", "v1", "things");
        for (scope, hits) in [
            ("*", [true, true, true]),
            ("Namespaced", [true, false, false]),
            ("Cluster", [false, true, true]),
        ] {
            for (s, hit) in [&inside, &outside, &namespace].into_iter().zip(hits) {
                assert_eq!(matches(rule(("scope", scope.into())), any, "", s), hit, "{scope}");
            }
        }
        assert!(matches(rule(("resourceNames", value!(["a"]))), any, "", &inside));
        assert!(!matches(rule(("resourceNames", value!(["b"]))), any, "", &inside));
    }
}
