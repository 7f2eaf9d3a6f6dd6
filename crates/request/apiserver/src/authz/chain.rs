//! Several authorisers in a row: the first with an opinion decides; the reasons of the others are told together.

use super::{Attributes, Authorizer, Decision, Rules};
use crate::request::UserInfo;
use std::sync::Arc;

pub struct AuthorizerChain(pub Vec<Arc<dyn Authorizer>>);

impl Authorizer for AuthorizerChain {
    fn authorize(&self, a: &Attributes) -> Decision {
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            match authorizer.authorize(a) {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }
    fn rules(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut all = Rules::default();
        for mut rules in self.0.iter().map(|a| a.rules(user, namespace)) {
            all.resource_rules.append(&mut rules.resource_rules);
            all.non_resource_rules.append(&mut rules.non_resource_rules);
            all.incomplete |= rules.incomplete;
            if !rules.evaluation_error.is_empty() {
                let sep = if all.evaluation_error.is_empty() { "" } else { ", " };
                all.evaluation_error = format!("{}{sep}{}", all.evaluation_error, rules.evaluation_error);
            }
        }
        all
    }
}
