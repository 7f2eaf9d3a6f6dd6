//! Those who decide, in a row: the first with an opinion does; what the others say is told together, each with its name.
//!
//! Most answer from memory; webhooks have to be asked unless they remember. Who can't wait (an expression that is being
//! evaluated) waits on its thread, from which the runtime takes everything else.

use super::abac::Policies;
use super::node::NodeAuthorizer;
use super::rbac::Rbac;
use super::structured::{Checked, Kind};
use super::webhook::{AtHand, Question, Webhook};
use super::{Attributes, Authorizer, Decision, Rules, Verdict};
use crate::config::file::together;
use crate::request::UserInfo;
use crate::request::user::SYSTEM_MASTERS;
use anyhow::{Result, ensure};
use keelson_api::value;
use parking_lot::RwLock;
use std::sync::Arc;

pub struct Authorizers {
    node: Arc<NodeAuthorizer>,
    rbac: Arc<Rbac>,
    policies: Option<Arc<Policies>>,
    current: RwLock<Arc<Vec<Named>>>,
    /// The kinds of the first configuration, without webhooks: later ones have to have them, and no others.
    kinds: Vec<&'static str>,
}

struct Named {
    name: String,
    member: Member,
}

enum Member {
    Memory(Arc<dyn Authorizer>),
    AlwaysAllow,
    AlwaysDeny,
    Webhook(Arc<Webhook>),
}

/// What has been said so far.
#[derive(Default)]
struct Said {
    reasons: Vec<String>,
    errors: Vec<String>,
}

impl Said {
    /// The verdict, if this one decides.
    fn take(&mut self, name: &str, verdict: Verdict) -> Option<Verdict> {
        match &verdict.decision {
            Decision::Allow(_) | Decision::Deny(_) => return Some(verdict),
            Decision::NoOpinion(reason) if reason.is_empty() => {}
            Decision::NoOpinion(reason) => self.reasons.push(format!("{name}: {reason}")),
        }
        self.errors.extend(verdict.error);
        None
    }
    fn no_opinion(self) -> Verdict {
        Verdict {
            decision: Decision::NoOpinion(self.reasons.join("\n")),
            error: (!self.errors.is_empty()).then(|| together(self.errors)),
        }
    }
}

enum Asked<'a> {
    Known(Verdict),
    Webhook(&'a Webhook, Box<Question>),
}

impl Named {
    fn at_hand(&self, a: &Attributes) -> Asked<'_> {
        let known = |decision: Decision| Asked::Known(decision.into());
        match &self.member {
            Member::Memory(authorizer) => known(authorizer.authorize(a)),
            Member::AlwaysAllow => known(Decision::Allow(String::new())),
            Member::AlwaysDeny => known(Decision::NoOpinion("Everything is forbidden.".into())),
            Member::Webhook(webhook) => match webhook.at_hand(a) {
                AtHand::Known(verdict) => Asked::Known(verdict),
                AtHand::Ask(question) => Asked::Webhook(webhook, question),
            },
        }
    }

    fn rules(&self, user: &UserInfo, namespace: &str) -> Rules {
        match &self.member {
            Member::Memory(authorizer) => authorizer.rules(user, namespace),
            Member::AlwaysAllow => Rules {
                resource_rules: vec![value!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})],
                non_resource_rules: vec![value!({"verbs": ["*"], "nonResourceURLs": ["*"]})],
                ..Rules::default()
            },
            Member::AlwaysDeny => Rules::default(),
            Member::Webhook(_) => Rules {
                incomplete: true,
                evaluation_error: "webhook authorizer does not support user rule resolution".into(),
                ..Rules::default()
            },
        }
    }
}

impl Authorizers {
    /// `policies`: of ABAC, where it is among those configured.
    pub fn new(
        configured: &[Checked],
        node: Arc<NodeAuthorizer>,
        rbac: Arc<Rbac>,
        policies: Option<Arc<Policies>>,
    ) -> Result<Authorizers> {
        let kinds = configured.iter().map(|m| m.kind.name()).filter(|k| *k != "Webhook");
        let made = Authorizers {
            node,
            rbac,
            policies,
            current: RwLock::default(),
            kinds: kinds.collect(),
        };
        made.replace(configured)?;
        Ok(made)
    }

    /// The kinds that every later configuration has to have.
    pub fn required(&self) -> &[&'static str] {
        &self.kinds
    }

    /// Puts other authorisers in force.
    pub fn replace(&self, configured: &[Checked]) -> Result<()> {
        let mut members = Vec::new();
        for one in configured {
            let kind = one.kind.name();
            ensure!(
                kind == "Webhook" || !matches!(kind, "Node" | "RBAC" | "ABAC") || self.kinds.contains(&kind),
                "authorizer type {kind} is not allowed if it was not enabled at initial server startup"
            );
            let member = match &one.kind {
                Kind::Node => Member::Memory(self.node.clone()),
                Kind::Rbac => Member::Memory(self.rbac.clone()),
                Kind::Abac => match &self.policies {
                    Some(policies) => Member::Memory(policies.clone()),
                    None => anyhow::bail!("authorizer type ABAC has no policies"),
                },
                Kind::AlwaysAllow => Member::AlwaysAllow,
                Kind::AlwaysDeny => Member::AlwaysDeny,
                Kind::Webhook(hook) => Member::Webhook(Arc::new(Webhook::open(&one.name, hook)?)),
            };
            members.push(Named {
                name: one.name.clone(),
                member,
            });
        }
        *self.current.write() = Arc::new(members);
        Ok(())
    }

    pub async fn authorize(&self, a: &Attributes) -> Verdict {
        if a.user.in_group(SYSTEM_MASTERS) {
            return Decision::Allow(String::new()).into();
        }
        let (members, mut said) = (self.current.read().clone(), Said::default());
        for named in members.iter() {
            let verdict = match named.at_hand(a) {
                Asked::Known(verdict) => verdict,
                Asked::Webhook(webhook, question) => webhook.ask(&question).await,
            };
            if let Some(decided) = said.take(&named.name, verdict) {
                return decided;
            }
        }
        said.no_opinion()
    }

    /// The same where nothing can be awaited. Only what a webhook has to be asked blocks the thread, for its timeout at most.
    pub fn authorize_blocking(&self, a: &Attributes) -> Verdict {
        use tokio::runtime::{Handle, RuntimeFlavor};
        let must_ask = {
            let members = self.current.read().clone();
            !a.user.in_group(SYSTEM_MASTERS) && members.iter().any(|m| matches!(m.member, Member::Webhook(_)))
        };
        let asked = self.authorize(a);
        if !must_ask {
            // Nothing in it waits: it is done when it is first polled.
            if let Some(verdict) = futures::FutureExt::now_or_never(asked) {
                return verdict;
            }
        } else if let Ok(runtime) = Handle::try_current()
            && runtime.runtime_flavor() == RuntimeFlavor::MultiThread
        {
            return tokio::task::block_in_place(|| runtime.block_on(asked));
        }
        Verdict {
            decision: Decision::NoOpinion(String::new()),
            error: Some("a webhook cannot be asked from here".into()),
        }
    }

    pub fn rules(&self, user: &UserInfo, namespace: &str) -> Rules {
        let (mut all, mut errors) = (Rules::default(), Vec::new());
        let members = self.current.read().clone();
        for mut rules in members.iter().map(|m| m.rules(user, namespace)) {
            all.resource_rules.append(&mut rules.resource_rules);
            all.non_resource_rules.append(&mut rules.non_resource_rules);
            all.incomplete |= rules.incomplete;
            if !rules.evaluation_error.is_empty() {
                errors.push(rules.evaluation_error);
            }
        }
        if !errors.is_empty() {
            all.evaluation_error = together(errors);
        }
        all
    }

    /// Adds the lines of the metrics' page.
    pub fn write(&self, page: &mut String) {
        for named in self.current.read().iter() {
            if let Member::Webhook(webhook) = &named.member {
                webhook.write(page);
            }
        }
    }
}
