//! The modes. A constrained one asks two things: may this user do this request *in that mode* (`impersonate-on:MODE:VERB`), and may it
//! be, in that mode, whoever is wanted (`impersonate:MODE` on each of the user's parts, in `authentication.k8s.io`).

use super::{account, node};
use crate::authz::{Attributes, Authorizers};
use crate::metrics::Impersonations;
use crate::request::UserInfo;
use crate::request::user::{ANONYMOUS, AUTHENTICATED, NODES, SERVICE_ACCOUNTS, SYSTEM_MASTERS, UNAUTHENTICATED};
use keelson_api::{ApiResult, Str};
use keelson_machinery::names;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A pod's service account acts as the node that the pod is on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Anybody else, with groups, UID and extra fields.
    UserInfo,
    /// Without constraints.
    Legacy,
}

const AUTHENTICATION: (&str, &str) = ("authentication.k8s.io", "v1");
/// From so many groups or extra fields on, the right to all of them is asked for first.
const MANY: usize = 4;
/// The extra field of a pod's token that names its node.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// What stands for the extra fields of who acts as its node, so that what is decided holds for all its pods.
const NODE_KEYS: &str = "authentication.kubernetes.io/associated-node-keys";

/// Who is asked about a request.
pub struct Asks<'a> {
    pub authorizer: &'a Authorizers,
    pub told: &'a Impersonations,
    pub request: &'a Attributes,
}

impl Asks<'_> {
    /// Refused with what the authorisers say of these very attributes.
    async fn may(&self, mode: Mode, asked: &Attributes) -> ApiResult<()> {
        let began = Instant::now();
        let verdict = self.authorizer.authorize(asked).await;
        self.told.authorized(mode.name(), verdict.is_allowed(), began.elapsed());
        if verdict.is_allowed() {
            return Ok(());
        }
        let said = match (&verdict.error, verdict.reason()) {
            (Some(error), "") => error.clone(),
            (Some(error), reason) => format!("{error}: {reason}"),
            (None, reason) => reason.to_string(),
        };
        Err(asked.forbidden(&said))
    }
}

impl Mode {
    /// In the order in which they are tried: the narrowest first.
    pub const ALL: [Mode; 5] = [
        Mode::AssociatedNode,
        Mode::ArbitraryNode,
        Mode::ServiceAccount,
        Mode::UserInfo,
        Mode::Legacy,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "legacy",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "impersonate:associated-node",
            Mode::ArbitraryNode => "impersonate:arbitrary-node",
            Mode::ServiceAccount => "impersonate:serviceaccount",
            Mode::UserInfo => "impersonate:user-info",
            Mode::Legacy => "impersonate",
        }
    }

    pub fn constraint(self) -> Option<&'static str> {
        self.is_constrained().then(|| self.verb())
    }

    fn is_constrained(self) -> bool {
        self != Mode::Legacy
    }

    /// Whether the mode is about such users. A node and a service account have no parts that can be chosen but their names.
    pub fn is_for(self, wanted: &UserInfo, requestor: &UserInfo) -> bool {
        let name_only = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        match self {
            Mode::AssociatedNode => name_only && node(wanted).is_some_and(|node| is_on(requestor, node)),
            Mode::ArbitraryNode => name_only && node(wanted).is_some(),
            Mode::ServiceAccount => name_only && account(wanted).is_some(),
            Mode::UserInfo => node(wanted).is_none() && account(wanted).is_none(),
            Mode::Legacy => true,
        }
    }

    /// The user to act as, completed.
    pub async fn check(self, asks: &Asks<'_>, wanted: &UserInfo) -> ApiResult<UserInfo> {
        let requestor = self.requestor(&asks.request.user);
        if self.is_constrained() {
            let on = Attributes {
                user: requestor.clone(),
                verb: format!("impersonate-on:{}:{}", self.name(), asks.request.verb).into(),
                ..asks.request.clone()
            };
            asks.may(self, &on).await?;
        }
        let users = match self.is_constrained() {
            true => AUTHENTICATION,
            false => ("", "v1"),
        };
        let part = |(group, version): (&str, &str), resource: &str| Attributes {
            user: requestor.clone(),
            verb: self.verb().into(),
            is_resource_request: true,
            api_group: group.into(),
            api_version: version.into(),
            resource: resource.into(),
            ..Attributes::default()
        };
        let mut user = wanted.clone();
        let mut asked = part(users, "users");
        asked.name = wanted.name.clone();
        if let Some(node) = node(wanted).filter(|_| self.is_constrained()) {
            asked.resource = "nodes".into();
            asked.name = match self {
                // Whichever node it is on.
                Mode::AssociatedNode => "*".into(),
                _ => node.into(),
            };
            user.groups = vec![NODES.into()];
        }
        if let Some((namespace, name)) = account(wanted) {
            if wanted.groups.is_empty() {
                let own = format!("{SERVICE_ACCOUNTS}:{namespace}");
                user.groups = vec![SERVICE_ACCOUNTS.into(), own.into()];
            }
            asked.resource = "serviceaccounts".into();
            (asked.namespace, asked.name) = (namespace, name);
        }
        asks.may(self, &asked).await?;
        if !wanted.uid.is_empty() {
            let mut asked = part(AUTHENTICATION, "uids");
            asked.name = wanted.uid.clone();
            asks.may(self, &asked).await?;
        }
        self.groups(asks, &wanted.groups, part(users, "groups")).await?;
        self.extra(asks, wanted, part(AUTHENTICATION, "userextras")).await?;
        let more = match user.name == ANONYMOUS {
            true => Some(UNAUTHENTICATED),
            false => (!user.in_group(UNAUTHENTICATED)).then_some(AUTHENTICATED),
        };
        user.groups
            .extend(more.filter(|group| !user.in_group(group)).map(Str::from));
        Ok(user)
    }

    /// Who asks, as authorisers are told.
    fn requestor(self, user: &UserInfo) -> UserInfo {
        let mut told = user.clone();
        if self == Mode::AssociatedNode {
            let keys = user.extra.keys().cloned().collect();
            told.extra = [(NODE_KEYS.into(), keys)].into();
        }
        told
    }

    async fn groups(self, asks: &Asks<'_>, groups: &[Str], mut asked: Attributes) -> ApiResult<()> {
        if self.is_constrained() {
            if groups.iter().any(|group| group.is_empty()) {
                return Err(asked.forbidden("impersonating the empty string group is not allowed"));
            }
            if groups.iter().any(|group| group == SYSTEM_MASTERS) {
                asked.name = SYSTEM_MASTERS.into();
                return Err(asked.forbidden("impersonating the system:masters group is not allowed"));
            }
            if groups.len() >= MANY {
                asked.name = "*".into();
                if asks.may(self, &asked).await.is_ok() {
                    return Ok(());
                }
            }
        }
        for group in groups {
            asked.name = group.clone();
            asks.may(self, &asked).await?;
        }
        Ok(())
    }

    async fn extra(self, asks: &Asks<'_>, wanted: &UserInfo, mut asked: Attributes) -> ApiResult<()> {
        if self.is_constrained() {
            if let Some(why) = wanted.extra.iter().find_map(|(key, values)| wrong(key, values)) {
                return Err(asked.forbidden(&why));
            }
            let values: usize = wanted.extra.values().map(Vec::len).sum();
            if wanted.extra.len().max(values) >= MANY {
                (asked.subresource, asked.name) = ("*".into(), "*".into());
                if asks.may(self, &asked).await.is_ok() {
                    return Ok(());
                }
            }
        }
        for (key, values) in &wanted.extra {
            asked.subresource = key.clone();
            for value in values {
                asked.name = value.clone();
                asks.may(self, &asked).await?;
            }
        }
        Ok(())
    }
}

/// Whether this is the service account of a pod on that node, as its token says.
fn is_on(requestor: &UserInfo, node: &str) -> bool {
    let named = requestor.extra.get(NODE_NAME).map(Vec::as_slice);
    account(requestor).is_some() && matches!(named, Some([name]) if name == node)
}

/// Why an extra field can't be had.
fn wrong(key: &str, values: &[Str]) -> Option<String> {
    if key.is_empty() {
        return Some("impersonating the empty string key in extra is not allowed".into());
    }
    let invalid: Vec<String> = names::domain_prefixed_path(key)
        .into_iter()
        .map(|(value, why)| format!("extra.key: Invalid value: {value:?}: {why}"))
        .collect();
    match invalid.as_slice() {
        [] => {}
        [one] => return Some(format!("impersonating an invalid key in extra is not allowed: {one}")),
        all => {
            let all = all.join(", ");
            return Some(format!("impersonating an invalid key in extra is not allowed: [{all}]"));
        }
    }
    if key.to_lowercase() != key {
        return Some(format!(
            "impersonating a non-lowercase key in extra is not allowed: {key:?}"
        ));
    }
    if values.is_empty() {
        return Some("impersonating empty values in extra is not allowed".into());
    }
    let empty = values.iter().any(|value| value.is_empty());
    empty.then(|| "impersonating the empty string value in extra is not allowed".into())
}
