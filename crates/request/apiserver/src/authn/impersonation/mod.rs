//! Impersonation: a user acts as another, if it may. Who may is asked in several *modes* ([`modes`]): constrained ones, each for one sort of user
//! and only together with the right to do the very request in that mode, and the one of old, which allows everything that the other may do.
//! The mode that let somebody through last is tried first the next time.

mod modes;
mod wanted;

use crate::authz::{Attributes, Authorizers};
use crate::metrics::Impersonations;
use crate::request::{RequestContext, UserInfo};
use http::HeaderMap;
use keelson_api::{ApiError, ApiResult, Str};
use modes::{Asks, Mode};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

/// Stands in a request of somebody who acts as another.
#[derive(Clone, Copy)]
pub struct Acting;

/// Who somebody acts as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acts {
    pub user: UserInfo,
    /// The verb of the mode that allows it, if that is a constrained one.
    pub constraint: Option<&'static str>,
}

/// Of so many users it is known in which mode they acted last. One more, and all are forgotten: it costs them a question or two.
const REMEMBERED: usize = 10_000;

/// Decides, and remembers the mode of each user, by a hash of the name.
pub struct Impersonation {
    told: Impersonations,
    last: Mutex<HashMap<u64, Mode>>,
    hasher: RandomState,
}

impl Impersonation {
    pub fn new(told: Impersonations) -> Self {
        Impersonation {
            told,
            last: Mutex::default(),
            hasher: RandomState::new(),
        }
    }

    /// Who to act as; `None` when nobody is asked for. The headers are taken off.
    pub async fn of(
        &self,
        context: &RequestContext,
        headers: &mut HeaderMap,
        authorizer: &Authorizers,
    ) -> ApiResult<Option<Acts>> {
        let Some(wanted) = wanted::take(headers)? else {
            return Ok(None);
        };
        let request = Attributes::of(&context.user, &context.info);
        let began = Instant::now();
        let asks = Asks {
            authorizer,
            told: &self.told,
            request: &request,
        };
        let found = self.search(&asks, &wanted).await;
        let mode = found.as_ref().ok().map(|(mode, _)| *mode);
        self.told.attempted(mode.map(Mode::name), began.elapsed());
        let (mode, user) = found?;
        Ok(Some(Acts {
            user,
            constraint: mode.constraint(),
        }))
    }

    /// The first mode that allows it. If none does, what the first said of those that are for such users.
    async fn search(&self, asks: &Asks<'_>, wanted: &UserInfo) -> ApiResult<(Mode, UserInfo)> {
        let who = self.hasher.hash_one(&asks.request.user.name);
        let last = self.last.lock().get(&who).copied();
        let others = Mode::ALL.into_iter().filter(|mode| Some(*mode) != last);
        let mut refused: Option<ApiError> = None;
        for mode in last.into_iter().chain(others) {
            if !mode.is_for(wanted, &asks.request.user) {
                continue;
            }
            match mode.check(asks, wanted).await {
                Ok(user) => {
                    if last != Some(mode) {
                        self.remember(who, mode);
                    }
                    return Ok((mode, user));
                }
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        Err(refused.unwrap_or_else(|| ApiError::internal("all impersonation modes failed")))
    }

    fn remember(&self, who: u64, mode: Mode) {
        let mut last = self.last.lock();
        if last.len() >= REMEMBERED && !last.contains_key(&who) {
            last.clear();
        }
        last.insert(who, mode);
    }
}

/// Namespace and name of a service account, by the name of its user.
fn account(user: &UserInfo) -> Option<(Str, Str)> {
    use keelson_machinery::names;
    let (namespace, name) = user.service_account_name()?;
    let sound = names::dns1123_label(namespace).is_empty() && names::dns1123_subdomain(name).is_empty();
    sound.then(|| (namespace.into(), name.into()))
}

/// The name of a node, by the name of its user.
fn node(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(crate::request::user::NODE_PREFIX)?;
    keelson_machinery::names::dns1123_subdomain(name)
        .is_empty()
        .then_some(name)
}
