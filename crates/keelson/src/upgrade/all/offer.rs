//! A server's part: the order, in the datastore that all servers have, and programs, on each server's own disk.

use super::order::{Kept, Order};
use super::programs::Programs;
use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use keelson_apiserver::upgrades::{Asked, Refused, Told, Upgrades};
use keelson_store::{Expect, Outcome, Store};
use serde_json::json;
use std::sync::Arc;

/// Below the store's root, where no resource can be.
const PLACE: &str = "/keelson/upgrade/order";

#[derive(Clone)]
pub struct Offer {
    store: Arc<dyn Store>,
    key: String,
    programs: Programs,
}

impl Offer {
    pub fn new(store: Arc<dyn Store>, root: &str, programs: Programs) -> Offer {
        Offer {
            store,
            key: format!("{root}{PLACE}"),
            programs,
        }
    }

    async fn order(&self) -> anyhow::Result<Kept> {
        let got = self.store.get(self.key.as_bytes(), None).await;
        let Some(found) = got.context("the order of an upgrade")?.kv else {
            return Ok(Kept::default());
        };
        Ok(Kept {
            revision: found.mod_revision,
            order: serde_json::from_slice(&found.value).context("the order of an upgrade")?,
        })
    }

    async fn give(&self, revision: u64, order: Bytes) -> Result<Kept, Refused> {
        let order: Order =
            serde_json::from_slice(&order).map_err(|error| Refused::Wrong(format!("no order: {error}")))?;
        let value = serde_json::to_vec(&order).map_err(|error| Refused::Failed(error.into()))?;
        let expected = match revision {
            0 => Expect::Absent,
            revision => Expect::ModRevision(revision),
        };
        let put = self.store.put(self.key.clone().into(), value.into(), expected, None);
        match put.await.map_err(|error| Refused::Failed(anyhow!(error)))? {
            Outcome::Done { revision, .. } => Ok(Kept {
                revision,
                order: Some(order),
            }),
            Outcome::Conflict { .. } => Err(Refused::Met("somebody else has asked something meanwhile".into())),
        }
    }

    async fn answered(self, asked: Asked) -> Result<Told, Refused> {
        Ok(match asked {
            Asked::Order => Told::Json(json!(self.order().await?)),
            Asked::Give { revision, order } => Told::Json(json!(self.give(revision, order).await?)),
            // A disk may be slow.
            asked => match tokio::task::spawn_blocking(move || self.by_disk(asked)).await {
                Ok(told) => told?,
                Err(error) => return Err(Refused::Failed(error.into())),
            },
        })
    }

    fn by_disk(&self, asked: Asked) -> Result<Told, Refused> {
        let standing = match asked {
            Asked::Piece { program, at } => {
                let piece = self.programs.piece(&program, at)?;
                let missing = || Refused::Unknown(format!("this server has no program {program}"));
                return piece.map(Told::Bytes).ok_or_else(missing);
            }
            Asked::Standing { program } => self.programs.standing(&program)?,
            Asked::Take {
                program,
                at,
                size,
                piece,
            } => self
                .programs
                .take(&program, size, at, &piece)
                .map_err(|error| Refused::Wrong(format!("{error:#}")))?,
            Asked::Forget => {
                self.programs.forget()?;
                return Ok(Told::Json(json!({})));
            }
            Asked::Order | Asked::Give { .. } => return Err(Refused::Failed(anyhow!("it is no program"))),
        };
        Ok(Told::Json(json!({"bytes": standing.bytes, "whole": standing.whole})))
    }
}

impl Upgrades for Offer {
    fn answer(&self, asked: Asked) -> BoxFuture<'static, Result<Told, Refused>> {
        self.clone().answered(asked).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_store::Memory;

    /// Of two who ask at the same time one has asked.
    #[tokio::test]
    async fn an_order_follows_the_one_that_was_seen() {
        let dir = tempfile::tempdir().unwrap();
        let offer = Offer::new(Memory::new(), "/registry", Programs::new(dir.path()));
        assert_eq!(offer.order().await.unwrap().revision, 0);
        let text = |sum: &str| Bytes::from(format!(r#"{{"sha256":"{sum}","size":1,"timeoutSeconds":1}}"#));
        let first = offer.give(0, text("a")).await.unwrap();
        assert!(matches!(offer.give(0, text("b")).await, Err(Refused::Met(_))));
        let second = offer.give(first.revision, text("c")).await.unwrap();
        assert!(matches!(
            offer.give(first.revision, text("d")).await,
            Err(Refused::Met(_))
        ));
        let kept = offer.order().await.unwrap();
        assert_eq!(
            (kept.revision, kept.order.unwrap().sha256.as_str()),
            (second.revision, "c")
        );
        assert!(matches!(
            offer.give(second.revision, "{}".into()).await,
            Err(Refused::Wrong(_))
        ));
    }
}
