//! Role-based access control over the live Role, ClusterRole and binding objects.
//!
//! The tables hold what decisions need, in maps ordered by name so that the first match, and with it the reason given,
//! is always the same.

use super::rule::{self, Rule};
use super::{Attributes, Authorizer, Decision, Rules};
use crate::live::Sink;
use crate::request::UserInfo;
use crate::request::user::{SERVICE_ACCOUNT_PREFIX, SYSTEM_MASTERS};
use keelson_api::{Map, Object, Str, Value};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::sync::watch;

/// A RoleBinding or ClusterRoleBinding.
#[derive(Debug)]
struct Binding {
    subjects: Vec<Subject>,
    role_kind: Str,
    role_name: Str,
}

#[derive(Debug)]
struct Subject {
    kind: Str,
    name: Str,
    namespace: Str,
}

/// By namespace (empty for cluster-wide objects), then by name.
type ByName<T> = BTreeMap<Str, BTreeMap<Str, Arc<T>>>;

#[derive(Default)]
struct Tables {
    roles: ByName<Vec<Rule>>,
    bindings: ByName<Binding>,
}

/// The authoriser; its [`Sink`]s keep it current.
#[derive(Default)]
pub struct Rbac {
    tables: RwLock<Tables>,
    changes: watch::Sender<u64>,
}

impl Rbac {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Calls `visit` with each rule that applies to the user, or with why a role could not be found.
    fn visit<'t>(
        tables: &'t Tables,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(&dyn Fn() -> String, Result<&'t Rule, String>) -> ControlFlow<()>,
    ) {
        let scopes: &[&str] = if namespace.is_empty() { &[""] } else { &["", namespace] };
        for scope in scopes {
            for (name, binding) in tables.bindings.get(*scope).into_iter().flatten() {
                let Some(subject) = binding.subjects.iter().find(|s| s.is(user, scope)) else {
                    continue;
                };
                let source = || binding.describe(scope, name, subject);
                let flow = match binding.rules(tables, scope) {
                    Err(e) => visit(&source, Err(e)),
                    Ok(rules) => rules.iter().try_for_each(|r| visit(&source, Ok(r))),
                };
                if flow.is_break() {
                    return;
                }
            }
        }
    }

    /// The rules that apply to a user in a namespace, and what could not be resolved.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        Self::visit(&self.tables.read(), user, namespace, |_, rule| {
            match rule {
                Ok(r) => rules.push(r.clone()),
                Err(e) => errors.push(e),
            }
            ControlFlow::Continue(())
        });
        (rules, errors)
    }

    /// The rules of the role that a binding names.
    pub fn role_rules(&self, kind: &str, name: &str, namespace: &str) -> Result<Vec<Rule>, String> {
        find_role(&self.tables.read(), kind, name, namespace).map(|r| r.as_ref().clone())
    }

    /// Refuses to grant what the user doesn't hold; the error is upstream's text.
    pub fn confirm_no_escalation(&self, user: &UserInfo, namespace: &str, rules: &[Rule]) -> Result<(), String> {
        let (owned, errors) = self.rules_for(user, namespace);
        let lacking = rule::missing(&owned, rules);
        if lacking.is_empty() {
            return Ok(());
        }
        let mut lines: Vec<String> = rule::compact(lacking).iter().map(Rule::compact).collect();
        lines.sort();
        lines.dedup();
        let groups: Vec<String> = user.groups.iter().map(|g| format!("{:?}", g.as_str())).collect();
        let mut message = format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name.as_str(),
            groups.join(" "),
            lines.join("\n")
        );
        if !errors.is_empty() {
            message += &format!("; resolution errors: [{}]", errors.join(" "));
        }
        Err(message)
    }

    /// Resolves when the roles and bindings among `objects` have arrived here.
    pub async fn wait_for_bootstrap(&self, objects: &[Object]) {
        let mut changes = self.changes.subscribe();
        let here = |_: &u64| {
            let tables = self.tables.read();
            let has = |o: &Object| match o.kind() {
                "ClusterRole" | "Role" => tables
                    .roles
                    .get(o.namespace())
                    .is_some_and(|m| m.contains_key(o.name())),
                "ClusterRoleBinding" | "RoleBinding" => tables
                    .bindings
                    .get(o.namespace())
                    .is_some_and(|m| m.contains_key(o.name())),
                _ => true,
            };
            objects.iter().all(has)
        };
        // The sender is our own: waiting can't fail.
        let _ = changes.wait_for(here).await;
    }
    fn change(&self, f: impl FnOnce(&mut Tables)) {
        f(&mut self.tables.write());
        self.changes.send_modify(|n| *n += 1);
    }

    /// Keeps Roles and ClusterRoles.
    pub fn role_sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(RoleSink {
            rbac: self.clone(),
            cluster: false,
        })
    }
    pub fn cluster_role_sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(RoleSink {
            rbac: self.clone(),
            cluster: true,
        })
    }
    /// Keeps RoleBindings and ClusterRoleBindings.
    pub fn binding_sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(BindingSink {
            rbac: self.clone(),
            cluster: false,
        })
    }
    pub fn cluster_binding_sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(BindingSink {
            rbac: self.clone(),
            cluster: true,
        })
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, a: &Attributes) -> Decision {
        if a.user.in_group(SYSTEM_MASTERS) {
            return Decision::Allow(String::new());
        }
        let (mut allowed, mut errors) = (None, Vec::new());
        Self::visit(&self.tables.read(), &a.user, &a.namespace, |source, rule| {
            match rule {
                Ok(rule) if rule.allows(a) => {
                    allowed = Some(format!("RBAC: allowed by {}", source()));
                    return ControlFlow::Break(());
                }
                Ok(_) => {}
                Err(e) => errors.push(e),
            }
            ControlFlow::Continue(())
        });
        match (allowed, errors.as_slice()) {
            (Some(reason), _) => Decision::Allow(reason),
            (None, []) => Decision::NoOpinion(String::new()),
            (None, [one]) => Decision::NoOpinion(format!("RBAC: {one}")),
            (None, many) => {
                let mut many = many.to_vec();
                many.dedup();
                Decision::NoOpinion(format!("RBAC: [{}]", many.join(", ")))
            }
        }
    }

    fn rules(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut out = Rules::default();
        let (rules, errors) = self.rules_for(user, namespace);
        let list = |l: &[Str]| Value::Array(l.iter().cloned().map(Value::String).collect());
        for r in rules {
            if !r.resources.is_empty() {
                let mut m = Map::new();
                m.insert("verbs", list(&r.verbs));
                m.insert("apiGroups", list(&r.api_groups));
                m.insert("resources", list(&r.resources));
                if !r.resource_names.is_empty() {
                    m.insert("resourceNames", list(&r.resource_names));
                }
                out.resource_rules.push(m.into());
            }
            if !r.non_resource_urls.is_empty() {
                let m = Map::from_iter([
                    ("nonResourceURLs", list(&r.non_resource_urls)),
                    ("verbs", list(&r.verbs)),
                ]);
                out.non_resource_rules.push(m.into());
            }
        }
        out.evaluation_error = errors.join(", ");
        out
    }
}

fn find_role<'t>(tables: &'t Tables, kind: &str, name: &str, namespace: &str) -> Result<&'t Arc<Vec<Rule>>, String> {
    let scope = match kind {
        "ClusterRole" => "",
        "Role" => namespace,
        other => return Err(format!("unsupported role reference kind: {other:?}")),
    };
    tables.roles.get(scope).and_then(|m| m.get(name)).ok_or_else(|| {
        format!(
            "{}.rbac.authorization.k8s.io {name:?} not found",
            kind.to_ascii_lowercase()
        )
    })
}

impl Binding {
    fn rules<'t>(&self, tables: &'t Tables, scope: &str) -> Result<&'t [Rule], String> {
        find_role(tables, &self.role_kind, &self.role_name, scope).map(|r| r.as_slice())
    }
    fn describe(&self, scope: &str, name: &str, subject: &Subject) -> String {
        let (kind, name) = if scope.is_empty() {
            ("ClusterRoleBinding", name.to_string())
        } else {
            ("RoleBinding", format!("{name}/{scope}"))
        };
        let who = match subject.kind.as_str() {
            "ServiceAccount" if subject.namespace.is_empty() => format!("{}/{scope}", subject.name),
            "ServiceAccount" => format!("{}/{}", subject.name, subject.namespace),
            _ => subject.name.to_string(),
        };
        format!(
            "{kind} {name:?} of {} {:?} to {} {who:?}",
            self.role_kind,
            self.role_name.as_str(),
            subject.kind
        )
    }
    fn of(o: &Object) -> Self {
        let text = |m: &Map, k: &str| Str::from(m.str(k).unwrap_or_default());
        let role = o.obj("roleRef").cloned().unwrap_or_default();
        let subjects = o.arr("subjects").into_iter().flatten().filter_map(Value::as_object);
        Binding {
            subjects: subjects
                .map(|s| Subject {
                    kind: text(s, "kind"),
                    name: text(s, "name"),
                    namespace: text(s, "namespace"),
                })
                .collect(),
            role_kind: text(&role, "kind"),
            role_name: text(&role, "name"),
        }
    }
}

impl Subject {
    fn is(&self, user: &UserInfo, scope: &str) -> bool {
        match self.kind.as_str() {
            "User" => user.name == self.name,
            "Group" => user.groups.contains(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() {
                    scope
                } else {
                    &self.namespace
                };
                !namespace.is_empty()
                    && user
                        .name
                        .strip_prefix(SERVICE_ACCOUNT_PREFIX)
                        .and_then(|rest| rest.strip_prefix(namespace))
                        .and_then(|rest| rest.strip_prefix(':'))
                        .is_some_and(|name| name == self.name)
            }
            _ => false,
        }
    }
}

struct RoleSink {
    rbac: Arc<Rbac>,
    cluster: bool,
}
struct BindingSink {
    rbac: Arc<Rbac>,
    cluster: bool,
}

/// Replaces the cluster-wide or the namespaced part of a table.
fn replace<T>(table: &mut ByName<T>, cluster: bool, objects: Vec<Object>, read: impl Fn(&Object) -> T) {
    table.retain(|namespace, _| namespace.is_empty() != cluster);
    for o in objects {
        table
            .entry(o.namespace().into())
            .or_default()
            .insert(o.name().into(), Arc::new(read(&o)));
    }
}
fn remove<T>(table: &mut ByName<T>, o: &Object) {
    if let Some(names) = table.get_mut(o.namespace()) {
        names.remove(o.name());
        if names.is_empty() {
            table.remove(o.namespace());
        }
    }
}

impl Sink for RoleSink {
    fn replace(&self, objects: Vec<Object>) {
        self.rbac
            .change(|t| replace(&mut t.roles, self.cluster, objects, |o| Rule::list_of(o)));
    }
    fn set(&self, o: Object) {
        let rules = Arc::new(Rule::list_of(&o));
        self.rbac.change(|t| {
            t.roles
                .entry(o.namespace().into())
                .or_default()
                .insert(o.name().into(), rules);
        });
    }
    fn delete(&self, o: Object) {
        self.rbac.change(|t| remove(&mut t.roles, &o));
    }
}
impl Sink for BindingSink {
    fn replace(&self, objects: Vec<Object>) {
        self.rbac
            .change(|t| replace(&mut t.bindings, self.cluster, objects, Binding::of));
    }
    fn set(&self, o: Object) {
        let binding = Arc::new(Binding::of(&o));
        self.rbac.change(|t| {
            t.bindings
                .entry(o.namespace().into())
                .or_default()
                .insert(o.name().into(), binding);
        });
    }
    fn delete(&self, o: Object) {
        self.rbac.change(|t| remove(&mut t.bindings, &o));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn object(v: Value) -> Object {
        Object::try_from(v).unwrap()
    }
    fn ask(user: UserInfo, verb: &str, resource: &str, namespace: &str) -> Attributes {
        Attributes {
            user,
            verb: verb.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            is_resource_request: true,
            ..Attributes::default()
        }
    }

    #[test]
    fn bindings_grant_within_their_scope_and_reasons_are_upstreams() {
        let rbac = Rbac::new();
        rbac.cluster_role_sink().replace(vec![object(value!({
            "metadata": {"name": "reader"},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}],
        }))]);
        rbac.binding_sink().set(object(value!({
            "metadata": {"name": "b", "namespace": "ns"},
            "roleRef": {"kind": "ClusterRole", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "sa"}],
        })));
        let sa = UserInfo::service_account("ns", "sa", "");
        assert_eq!(
            rbac.authorize(&ask(sa.clone(), "get", "pods", "ns")),
            Decision::Allow(
                r#"RBAC: allowed by RoleBinding "b/ns" of ClusterRole "reader" to ServiceAccount "sa/ns""#.into()
            )
        );
        assert_eq!(
            rbac.authorize(&ask(sa.clone(), "get", "pods", "other")),
            Decision::NoOpinion(String::new())
        );
        assert_eq!(
            ask(sa.clone(), "list", "pods", "").forbidden("").message,
            r#"pods is forbidden: User "system:serviceaccount:ns:sa" cannot list resource "pods" in API group "" at the cluster scope"#
        );
        rbac.cluster_role_sink().replace(vec![]);
        assert_eq!(
            rbac.authorize(&ask(sa, "get", "pods", "ns")),
            Decision::NoOpinion(r#"RBAC: clusterrole.rbac.authorization.k8s.io "reader" not found"#.into())
        );
        let admin = UserInfo::new("a", &[SYSTEM_MASTERS]);
        assert!(rbac.authorize(&ask(admin, "delete", "nodes", "")).is_allowed());
    }
}
