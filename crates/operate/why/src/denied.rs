//! Why a user may not do something: RBAC's objects as they stand, what narrowly misses, and what would refuse the request
//! after RBAC: quotas, webhooks that don't answer, namespaces that are going.

use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::{Lookup, Need, Picture};
use serde_json::Value;

/// What is asked for, by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub user: String,
    pub groups: Vec<String>,
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

impl Asked {
    /// `pods/log`, `deployments.apps`
    fn what(&self) -> String {
        let group = if self.group.is_empty() {
            String::new()
        } else {
            format!(".{}", self.group)
        };
        format!("{}{group}", self.resource_text())
    }
    /// As rules write it.
    fn resource_text(&self) -> String {
        match self.subresource.is_empty() {
            true => self.resource.clone(),
            false => format!("{}/{}", self.resource, self.subresource),
        }
    }
    fn place(&self) -> String {
        match self.namespace.as_str() {
            "" => "cluster-wide".into(),
            namespace => format!("in namespace {namespace}"),
        }
    }
}

/// How a rule stands to what is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Match {
    Yes,
    OtherVerb,
    OtherGroup,
    OtherSubresource,
    OtherName,
    No,
}

fn matches(rule: &Value, asked: &Asked) -> Match {
    let has = |path: &str, value: &str| {
        let mut all = rule.list(path).iter().filter_map(Value::as_str);
        all.any(|v| v == "*" || v == value)
    };
    let own = asked.resource_text();
    let any_subresource = format!("*/{}", asked.subresource);
    let resource = has("/resources", &own) || (!asked.subresource.is_empty() && has("/resources", &any_subresource));
    let group = has("/apiGroups", &asked.group);
    let verb = has("/verbs", &asked.verb);
    let names = rule.list("/resourceNames");
    let name = names.is_empty() || (!asked.name.is_empty() && names.iter().any(|n| n.as_str() == Some(&asked.name)));
    match (verb, group, resource, name) {
        (true, true, true, true) => Match::Yes,
        (true, true, true, false) => Match::OtherName,
        (false, true, true, _) => Match::OtherVerb,
        (true, false, true, _) => Match::OtherGroup,
        (true, true, false, _) if has("/resources", &asked.resource) => Match::OtherSubresource,
        _ => Match::No,
    }
}

/// A binding that has the user.
struct Bound<'a> {
    binding: &'a Value,
    role: Lookup<'a>,
}

fn is_subject(subject: &Value, asked: &Asked) -> bool {
    match subject.text("/kind") {
        "User" => subject.text("/name") == asked.user,
        "Group" => asked.groups.iter().any(|g| g == subject.text("/name")),
        "ServiceAccount" => {
            asked.user
                == format!(
                    "system:serviceaccount:{}:{}",
                    subject.text("/namespace"),
                    subject.text("/name")
                )
        }
        _ => false,
    }
}

/// The kinds that say who may do what.
const RULES: [&str; 4] = ["ClusterRoleBinding", "RoleBinding", "ClusterRole", "Role"];

fn bindings<'a>(asked: &Asked, picture: &'a Picture) -> Vec<Bound<'a>> {
    let all = picture
        .all("ClusterRoleBinding", "")
        .chain(picture.all("RoleBinding", ""));
    let mine = all.filter(|b| b.list("/subjects").iter().any(|s| is_subject(s, asked)));
    let role = |b: &'a Value| {
        let name = b.text("/roleRef/name");
        match b.text("/roleRef/kind") {
            "ClusterRole" => picture.find("ClusterRole", "", name),
            _ => picture.find("Role", b.namespace(), name),
        }
    };
    mine.map(|binding| Bound {
        binding,
        role: role(binding),
    })
    .collect()
}

pub fn diagnose(asked: &Asked, picture: &Picture, report: &mut Report) {
    if asked.groups.iter().any(|g| g == "system:masters") {
        return after(asked, picture, report);
    }
    let bound = bindings(asked, picture);
    let here = |b: &&Bound| {
        b.binding.namespace().is_empty() || (!asked.namespace.is_empty() && b.binding.namespace() == asked.namespace)
    };
    let allows = |b: &&Bound| {
        let rules = b.role.found().map(|r| r.list("/rules")).unwrap_or_default();
        rules.iter().any(|r| matches(r, asked) == Match::Yes)
    };
    if let Some(found) = bound.iter().filter(here).find(allows) {
        report
            .notes
            .push(format!("RBAC allows it, by {}", found.binding.shown()));
        return after(asked, picture, report);
    }
    // The server knows what rules can't: webhooks, other authorizers.
    let review = picture.find("SubjectAccessReview", "", "").found();
    if review.is_some_and(|r| r.flag("/status/allowed")) {
        let reason = review.map_or("", |r| r.text("/status/reason"));
        report.notes.push(format!("the API server allows it: {reason}"));
        return after(asked, picture, report);
    }
    report.add(refusal(asked, &bound, here, allows, picture));
}

fn refusal(
    asked: &Asked,
    bound: &[Bound],
    here: impl Fn(&&Bound) -> bool + Copy,
    allows: impl Fn(&&Bound) -> bool + Copy,
    picture: &Picture,
) -> Finding {
    let shown = format!("user/{}", asked.user);
    let what = format!("{} {} {}", asked.verb, asked.what(), asked.place());
    // Of rules that could not be read nobody knows what they allow.
    let is_whole = RULES.iter().all(|kind| picture.knows(kind, ""));
    let sure = |cause: &str, says: String| {
        let finding = match is_whole {
            true => Finding::certain(cause, shown.clone(), says),
            false => Finding::likely(cause, shown.clone(), says),
        };
        finding.mended_by(remedy(asked, picture))
    };
    if let Some(other) = bound.iter().filter(|b| !here(b)).find(allows) {
        return sure(
            "other-namespace",
            format!(
                "it may do so in namespace {}, but not {}",
                other.binding.namespace(),
                asked.place()
            ),
        )
        .shown_by(format!(
            "{} is of namespace {}",
            other.binding.shown(),
            other.binding.namespace()
        ));
    }
    if let Some(dead) = bound.iter().filter(here).find(|b| b.role.is_missing()) {
        let role = format!(
            "{} {}",
            dead.binding.text("/roleRef/kind"),
            dead.binding.text("/roleRef/name")
        );
        return sure(
            "role-missing",
            format!("{} gives it the {role}, which doesn't exist", dead.binding.shown()),
        );
    }
    let near = bound.iter().filter(here).find_map(|b| {
        let rules = b.role.found()?.list("/rules");
        let near = |m: Match| rules.iter().find(|r| matches(r, asked) == m).map(|r| (m, r, b));
        [
            Match::OtherName,
            Match::OtherSubresource,
            Match::OtherGroup,
            Match::OtherVerb,
        ]
        .into_iter()
        .find_map(near)
    });
    let list = |rule: &Value, path: &str| {
        let words: Vec<&str> = rule.list(path).iter().filter_map(Value::as_str).collect();
        words.join(", ")
    };
    let by = |b: &Bound| {
        format!(
            "{} gives it {} {}",
            b.binding.shown(),
            b.binding.text("/roleRef/kind"),
            b.binding.text("/roleRef/name")
        )
    };
    match near {
        Some((Match::OtherName, rule, b)) => sure(
            "other-name",
            format!(
                "its role allows {} of {} only for certain names",
                asked.verb,
                asked.what()
            ),
        )
        .shown_by(by(b))
        .shown_by(format!("resourceNames: {}", list(rule, "/resourceNames"))),
        Some((Match::OtherSubresource, rule, b)) => sure(
            "subresource-not-allowed",
            format!(
                "its role allows {} of {}, but not of the subresource {}",
                asked.verb,
                asked.resource,
                asked.resource_text()
            ),
        )
        .shown_by(by(b))
        .shown_by(format!("resources: {}", list(rule, "/resources"))),
        Some((Match::OtherGroup, rule, b)) => {
            let wanted = if asked.group.is_empty() {
                "\"\" (the core group)"
            } else {
                &asked.group
            };
            sure(
                "other-api-group",
                format!(
                    "its role names {} in the wrong API group: it has to be {wanted}",
                    asked.resource
                ),
            )
            .shown_by(by(b))
            .shown_by(format!("apiGroups: {:?}", list(rule, "/apiGroups")))
        }
        Some((_, rule, b)) => sure(
            "verb-not-allowed",
            format!(
                "its role allows other verbs of {}, but not {}",
                asked.what(),
                asked.verb
            ),
        )
        .shown_by(by(b))
        .shown_by(format!("verbs: {}", list(rule, "/verbs"))),
        None if bound.is_empty() => sure("no-binding", format!("no binding names it, so it may not {what}"))
            .shown_by(format!("groups it was asked with: {}", asked.groups.join(", "))),
        None => sure("not-allowed", format!("none of its roles allows it to {what}"))
            .shown_by_all(bound.iter().filter(here).take(10).map(by)),
    }
}

/// The smallest of the usual roles that would allow it, as a command.
fn remedy(asked: &Asked, picture: &Picture) -> String {
    let usual = ["view", "edit", "admin", "cluster-admin"].into_iter().find(|name| {
        let role = picture.find("ClusterRole", "", name).found();
        let mut rules = role.map(|r| r.list("/rules")).unwrap_or_default().iter();
        rules.any(|r| matches(r, asked) == Match::Yes)
    });
    let subject = match asked.user.strip_prefix("system:serviceaccount:") {
        Some(account) => format!("--serviceaccount={account}"),
        None => format!("--user={}", asked.user),
    };
    let (kind, place) = match asked.namespace.as_str() {
        "" => ("clusterrolebinding", String::new()),
        namespace => ("rolebinding", format!(" -n {namespace}")),
    };
    match usual {
        Some("cluster-admin") | None => {
            let role = if asked.namespace.is_empty() {
                "clusterrole"
            } else {
                "role"
            };
            let of_role = if role == "role" { place.clone() } else { String::new() };
            format!(
                "kubectl create {role} NAME --verb={} --resource={}{of_role}; kubectl create {kind} NAME --{role}=NAME {subject}{place}",
                asked.verb,
                asked.what()
            )
        }
        Some(role) => format!("kubectl create {kind} NAME --clusterrole={role} {subject}{place}"),
    }
}

/// What refuses a request that is authorised.
fn after(asked: &Asked, picture: &Picture, report: &mut Report) {
    let namespace = picture.find("Namespace", "", &asked.namespace);
    if asked.verb == "create" {
        match namespace {
            Lookup::Found(object) if object.is_deleting() => report.add(
                Finding::certain(
                    "namespace-terminating",
                    object.shown(),
                    "it is being deleted: nothing new is made in it",
                )
                .mended_by(format!("keelson why namespace/{}", object.name())),
            ),
            Lookup::Missing if !asked.namespace.is_empty() => report.add(
                Finding::certain(
                    "namespace-missing",
                    format!("namespace/{}", asked.namespace),
                    "it doesn't exist",
                )
                .mended_by(format!("kubectl create namespace {}", asked.namespace)),
            ),
            _ => {}
        }
        for quota in picture.all("ResourceQuota", &asked.namespace) {
            report.add_all(full(quota, asked));
        }
    }
    if !["get", "list", "watch"].contains(&asked.verb.as_str()) {
        for kind in ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"] {
            for configuration in picture.all(kind, "") {
                report.add_all(webhook(configuration, asked, picture));
            }
        }
    }
}

/// A quota that has no room for one more.
fn full(quota: &Value, asked: &Asked) -> Option<Finding> {
    let group = if asked.group.is_empty() {
        String::new()
    } else {
        format!(".{}", asked.group)
    };
    let keys = [asked.resource.clone(), format!("count/{}{group}", asked.resource)];
    let amounts = keys.iter().find_map(|key| {
        let at = |part: &str| {
            quota
                .text(&format!("/status/{part}/{}", key.replace('/', "~1")))
                .to_string()
        };
        let (used, hard) = (at("used"), at("hard"));
        (!hard.is_empty() && crate::pod::quantity(&used) >= crate::pod::quantity(&hard)).then_some((key, used, hard))
    })?;
    let (key, used, hard) = amounts;
    Some(
        Finding::certain(
            "quota-exceeded",
            quota.shown(),
            format!("it has no room for one more of {key}"),
        )
        .shown_by(format!("used {used} of {hard}"))
        .mended_by("Raise the quota, or remove some."),
    )
}

/// A webhook that has to be asked and whose service isn't there.
fn webhook(configuration: &Value, asked: &Asked, picture: &Picture) -> Option<Finding> {
    let operation = match asked.verb.as_str() {
        "create" => "CREATE",
        "update" | "patch" => "UPDATE",
        _ => "DELETE",
    };
    configuration.list("/webhooks").iter().find_map(|webhook| {
        let has = |rule: &Value, path: &str, value: &str| {
            let mut all = rule.list(path).iter().filter_map(Value::as_str);
            all.any(|v| v == "*" || v == value)
        };
        let is_for = webhook.list("/rules").iter().any(|r| {
            has(r, "/operations", operation)
                && has(r, "/apiGroups", &asked.group)
                && has(r, "/resources", &asked.resource_text())
        });
        let service = webhook.pointer("/clientConfig/service")?;
        let found = picture.find("Service", service.text("/namespace"), service.text("/name"));
        (is_for && webhook.text("/failurePolicy") != "Ignore" && found.is_missing()).then(|| {
            Finding::likely(
                "webhook-down",
                configuration.shown(),
                format!(
                    "its webhook {} has to be asked, and its service {}/{} doesn't exist",
                    webhook.text("/name"),
                    service.text("/namespace"),
                    service.text("/name")
                ),
            )
            .mended_by("Install again what served it, or delete this configuration.")
        })
    })
}

pub fn needs(asked: &Asked) -> Vec<Need> {
    let all = |kind| Need::All(kind, String::new());
    let mut needs: Vec<Need> = ["ClusterRoleBinding", "RoleBinding", "ClusterRole", "Role"]
        .map(all)
        .into();
    if !asked.namespace.is_empty() {
        needs.push(Need::One("Namespace", String::new(), asked.namespace.clone()));
        needs.push(Need::All("ResourceQuota", asked.namespace.clone()));
    }
    needs.extend(["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"].map(all));
    needs
}

/// The services of the webhooks that were read.
pub fn needs_of_webhooks(picture: &Picture) -> Vec<Need> {
    let kinds = ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"];
    let all = kinds.into_iter().flat_map(|k| picture.all(k, "").collect::<Vec<_>>());
    let services = all
        .flat_map(|c| c.list("/webhooks"))
        .filter_map(|w| w.pointer("/clientConfig/service"));
    services
        .map(|s| Need::One("Service", s.text("/namespace").into(), s.text("/name").into()))
        .collect()
}
