//! What a Gateway shows of itself to backends that speak TLS (`spec.tls.backend.clientCertificateRef`).
//!
//! Which ones do, BackendTLSPolicies say. Where what is to be shown can't be had, nothing is sent to them.

use super::World;
use super::listeners::{GATEWAY, Problem, secret};
use crate::kinds::Gateway;
use crate::table::{Action, Rule, Trust, Upstream};
use keelson_client::{ApiObject, ObjectKey};
use std::borrow::Cow;
use std::sync::Arc;

pub type Identity = Result<Option<ObjectKey>, Problem>;

const INVALID: &str = "InvalidClientCertificateRef";

pub fn read(world: &World, gateway: &Gateway) -> Identity {
    let backend = gateway.spec.tls.as_ref().and_then(|tls| tls.backend.as_ref());
    let Some(reference) = backend.and_then(|b| b.client_certificate_ref.as_ref()) else {
        return Ok(None);
    };
    secret(world, (GATEWAY, gateway.namespace()), reference, INVALID).map(Some)
}

/// A route's rules as this Gateway goes by them.
pub fn rules<'a>(rules: &'a [Rule], identity: &Identity) -> Cow<'a, [Rule]> {
    if matches!(identity, Ok(None)) {
        return Cow::Borrowed(rules);
    }
    let one = |rule: &Rule| Rule {
        then: action(&rule.then, identity),
        ..rule.clone()
    };
    Cow::Owned(rules.iter().map(one).collect())
}

fn action(action: &Arc<Action>, identity: &Identity) -> Arc<Action> {
    let secured = |to: &Upstream| trust(to).is_some();
    let filters = action.backends.iter().map(|b| &b.filters).chain([&action.filters]);
    let mut mirrors = filters.flat_map(|f| &f.mirrors);
    if !action.backends.iter().any(|b| secured(&b.to)) && !mirrors.any(|m| secured(&m.to)) {
        return action.clone();
    }
    let mut changed = Action::clone(action);
    for backend in &mut changed.backends {
        backend.to = upstream(&backend.to, identity);
    }
    for mirror in &mut changed.filters.mirrors {
        mirror.to = upstream(&mirror.to, identity);
    }
    Arc::new(changed)
}

fn trust(to: &Upstream) -> Option<&Arc<Trust>> {
    match to {
        Upstream::Endpoints { trust, .. } | Upstream::External { trust, .. } => trust.as_ref(),
        Upstream::Nowhere(_) => None,
    }
}

fn upstream(to: &Arc<Upstream>, identity: &Identity) -> Arc<Upstream> {
    let Some(known) = trust(to) else { return to.clone() };
    let Ok(shown) = identity else {
        return Arc::new(Upstream::Nowhere(500));
    };
    let mut changed = Upstream::clone(to);
    if let (Upstream::Endpoints { trust, .. } | Upstream::External { trust, .. }, Some(secret)) = (&mut changed, shown)
    {
        *trust = Some(Arc::new(known.showing(secret)));
    }
    Arc::new(changed)
}
