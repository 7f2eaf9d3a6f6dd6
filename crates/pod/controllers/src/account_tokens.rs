//! Fills Secrets of type `kubernetes.io/service-account-token` with a token, the cluster's CA and their namespace, and deletes them with
//! their service account. Who wants a token that never ends makes such a Secret by hand.
//!
//! A Secret whose account isn't there, as the API server says and not only an informer, is deleted. What is there already stays,
//! but for another cluster's CA. A deleted Secret is taken off its account's list.

mod cleaner;
mod plan;

pub use cleaner::start as start_cleaning;

use crate::context::Context;
use crate::wire;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use keelson_client::{
    ApiObject, Controller, Informer, InformerOptions, Kind, ObjectKey, Objects, Outcome, Reconcile, Rest,
    delete_options, is_conflict, is_not_found,
};
use keelson_pki::ServiceAccountKeys;
use parking_lot::Mutex;
use plan::Account;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Of `spec.type`.
const TYPE: &str = "kubernetes.io/service-account-token";
/// The first pause before a key is tried again doubles up to this: the account, or a name, may be on its way.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// The Secrets of the type, for those who need no others.
fn secrets(rest: &Rest, context: &Context) -> Informer<Secret> {
    let options = InformerOptions {
        fields: format!("type={TYPE}"),
        ..InformerOptions::default()
    };
    Informer::start(rest, options, &context.stop)
}

/// Accounts of Secrets that have gone, until these are off the accounts' lists.
type Gone = Arc<Mutex<HashMap<ObjectKey, Account>>>;

pub fn start(context: &Context) {
    let Some(keys) = context.config.account_keys.clone() else {
        tracing::info!("no key for service accounts is configured: secrets for their tokens aren't filled");
        return;
    };
    let accounts = context.informer::<ServiceAccount>();
    let rest = context.reader();
    let secrets = secrets(&rest, context);
    let controller = Controller::new("serviceaccount-token")
        .input(&accounts)
        .input(&secrets)
        .output(Secret::RESOURCE)
        .output(ServiceAccount::RESOURCE)
        .longest_delay(LONGEST_DELAY);
    let queue = controller.queue();
    let gone = Gone::default();
    let notes = gone.clone();
    secrets.on_change(move |change| {
        let secret = change.object();
        match (change.is_deleted(), plan::account(secret)) {
            (true, Some(account)) => notes.lock().insert(secret.key(), account),
            _ => notes.lock().remove(&secret.key()),
        };
    });
    // After the note: whoever gets the key finds it.
    wire::own(&secrets, &queue);
    let of_account = secrets.clone();
    accounts.on_change(move |change| {
        if change.is_deleted() {
            let account = change.object();
            for secret in of_account.store().list_namespace(account.namespace()) {
                if plan::account(&secret).is_some_and(|a| a.name == account.name()) {
                    queue.add(secret.key());
                }
            }
        }
    });
    context.run(
        controller,
        Filler {
            accounts,
            secrets,
            gone,
            keys,
            ca: context.config.root_ca_pem.clone(),
            live_accounts: Objects::new(&rest),
            live_secrets: Objects::new(&rest),
        },
    );
}

struct Filler {
    accounts: Informer<ServiceAccount>,
    secrets: Informer<Secret>,
    gone: Gone,
    keys: Arc<ServiceAccountKeys>,
    ca: String,
    live_accounts: Objects<ServiceAccount>,
    live_secrets: Objects<Secret>,
}

#[async_trait]
impl Reconcile for Filler {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(secret) = self.secrets.store().get_key(key) else {
            let account = self.gone.lock().get(key).cloned();
            if let Some(account) = account {
                self.take_off(key, &account).await?;
                self.gone.lock().remove(key);
            }
            return Ok(Outcome::Done);
        };
        let Some(wanted) = plan::account(&secret) else {
            return Ok(Outcome::Done);
        };
        match self.account(&key.namespace, &wanted).await? {
            Some(account) => self.fill(&secret, &account).await?,
            None => self.delete(&secret).await?,
        }
        Ok(Outcome::Done)
    }
}

impl Filler {
    async fn account(&self, namespace: &str, wanted: &Account) -> anyhow::Result<Option<Arc<ServiceAccount>>> {
        let is_it = |found: &ServiceAccount| wanted.is(found);
        if let Some(known) = self.accounts.store().get(namespace, &wanted.name).filter(|a| is_it(a)) {
            return Ok(Some(known));
        }
        let live = self.live_accounts.find(namespace, &wanted.name).await?;
        Ok(live.filter(is_it).map(Arc::new))
    }

    async fn fill(&self, known: &Secret, account: &ServiceAccount) -> anyhow::Result<()> {
        if !plan::lacks(known, &self.ca).any() {
            return Ok(());
        }
        let Some(mut live) = self.live_secrets.find(known.namespace(), known.name()).await? else {
            return Ok(());
        };
        // What has changed meanwhile comes here again.
        if live.meta().resource_version != known.meta().resource_version {
            return Ok(());
        }
        plan::fill(&mut live, account, &self.ca, &self.keys)?;
        match self.live_secrets.update(&live).await {
            Err(e) if !is_conflict(&e) && !is_not_found(&e) => Err(e.into()),
            _ => Ok(()),
        }
    }

    async fn delete(&self, secret: &Secret) -> anyhow::Result<()> {
        let options = delete_options(None, Some(secret.uid()), None);
        let deleted = self.live_secrets.delete(secret.namespace(), secret.name(), &options);
        match deleted.await {
            Err(e) if !is_conflict(&e) && !is_not_found(&e) => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Takes a Secret that has gone off its account's list, if that is still there.
    async fn take_off(&self, secret: &ObjectKey, of: &Account) -> anyhow::Result<()> {
        let Some(known) = self
            .accounts
            .store()
            .get(&secret.namespace, &of.name)
            .filter(|a| of.is(a))
        else {
            return Ok(());
        };
        if !plan::lists(&known, &secret.name) {
            return Ok(());
        }
        let Some(mut live) = self.live_accounts.find(&secret.namespace, &of.name).await? else {
            return Ok(());
        };
        if !of.is(&live) || !plan::lists(&live, &secret.name) {
            return Ok(());
        }
        live.secrets
            .iter_mut()
            .for_each(|l| l.retain(|s| s.name.as_deref() != Some(&secret.name)));
        match self.live_accounts.update(&live).await {
            Err(e) if is_not_found(&e) => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }
}
