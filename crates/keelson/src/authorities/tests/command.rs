//! By command: what is asked waits for whoever isn't ready, and what is withdrawn lets nobody in.

use super::world::{Calendar, Machine, World, eventually, own, scratch, value};
use crate::authorities::Authorities;
use crate::authorities::journal::{self, Journal};
use jiff::SignedDuration;
use keelson_apiserver::authorities::{Asked, Refused};
use keelson_pki::succession::{Stage, Step};
use keelson_pki::{Kubeconfig, Pki, authority};

fn asked(step: Step, force: bool) -> Asked {
    Asked {
        authority: "ca".into(),
        step,
        force,
    }
}

#[tokio::test]
async fn an_old_kubeconfig_counts_until_the_old_authority_goes_and_who_is_shut_out_is_named_before() {
    let mut calendar = Calendar::at("2027-01-01T00:00:00Z");
    let world = World::start("command").await;
    let machine = Machine::join(&world).await;
    let engine = &world.authorities;
    let old = world.dir.join("old.kubeconfig");
    std::fs::copy(world.admin(), &old).unwrap();
    let wrong = engine.asked(asked(Step::Sign, false)).await;
    assert!(matches!(wrong, Err(Refused::Waits(_))), "{wrong:?}");
    let unknown = Asked {
        authority: "etcd-ca".into(),
        ..asked(Step::Announce, false)
    };
    assert!(matches!(engine.asked(unknown).await, Err(Refused::Unknown(_))));

    value(engine.asked(asked(Step::Announce, false)).await).unwrap();
    // Waits for the machine.
    eventually("the next one signs", async || {
        value(engine.asked(asked(Step::Sign, false)).await)
    })
    .await;
    assert_eq!(engine.standing().unwrap()["ca"].stage, Stage::Replaced);
    let now = engine.current().get();
    let admin = Kubeconfig::read(&world.admin()).unwrap();
    assert!(
        authority::signed_by(admin.certificate().unwrap().0, now.ca.cert_pem()),
        "renewed at once"
    );
    assert_eq!(world.code(&old, "/api/v1/nodes").await, Ok(200));
    calendar.pass(SignedDuration::from_secs(5));
    // Whoever has come by the old one is named.
    let refused = engine.asked(asked(Step::Withdraw, false)).await;
    let Err(Refused::Waits(lines)) = refused else {
        panic!("{refused:?}")
    };
    assert!(
        lines.iter().any(|line| line.starts_with("kubernetes-admin ")),
        "{lines:?}"
    );
    let told = engine.told().await.unwrap();
    assert!(
        told["ca"]["depending"]
            .as_array()
            .is_some_and(|lines| !lines.is_empty()),
        "{told}"
    );
    // By the new one he has another.
    assert_eq!(world.code(&world.admin(), "/api/v1/nodes").await, Ok(200));
    machine.knows(&engine.current().get().ca.bundle_pem()).await;
    machine.renew().await;
    machine.beat().await;
    eventually("nobody depends on it", async || {
        value(engine.asked(asked(Step::Withdraw, false)).await)
    })
    .await;
    eventually("the old one is refused", async || {
        match world.code(&old, "/api/v1/nodes").await {
            Ok(401) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(world.code(&world.admin(), "/api/v1/nodes").await, Ok(200));
    machine.beat().await;
    assert_eq!(engine.standing().unwrap()["ca"].stage, Stage::AtRest);
    assert_eq!(
        engine.standing().unwrap()["front-proxy-ca"].number,
        0,
        "the other stays as it was"
    );
}

/// Something fails after a step is written down: it is none to the others, and comes in force when this server looks again.
#[tokio::test]
async fn what_is_written_down_comes_in_force_whatever_failed() {
    let dir = scratch("failed");
    let engine = Authorities::new(own(&dir, 6443), Pki::open(&dir).unwrap(), None).unwrap();
    let before = engine.standing().unwrap()["ca"].clone();
    let journal = Journal::new(&dir.join("pki"), None, false);
    let item = journal::item("ca").unwrap();
    let written = journal.step(item, Step::Announce, &before, jiff::Timestamp::now());
    written.await.unwrap();
    assert_eq!(engine.report().unwrap().standing["ca"].number, 0);
    engine.look().await.unwrap();
    assert_eq!(engine.report().unwrap().standing["ca"].number, 1);
    let trusted = authority::fingerprints(&engine.current().get().ca.bundle_pem());
    assert_eq!(trusted.len(), 2);
    std::fs::remove_dir_all(dir).unwrap();
}

/// `kill -9` after a step is written down and before anything has followed it: the next start has it all.
#[test]
fn a_program_that_ends_after_any_step_goes_on_from_there() {
    let dir = scratch("ends");
    let open = || Authorities::new(own(&dir, 6443), Pki::open(&dir).unwrap(), None).unwrap();
    let good = || {
        let engine = open();
        engine.keep().unwrap();
        let (now, admin) = (
            engine.current().get(),
            Kubeconfig::read(&dir.join("admin.kubeconfig")).unwrap(),
        );
        assert!(authority::signed_by(admin.certificate().unwrap().0, now.ca.cert_pem()));
        assert_eq!(admin.ca_pem, now.ca.bundle_pem());
        assert_eq!(
            engine.clients().now().iter().count(),
            authority::fingerprints(&admin.ca_pem).len()
        );
        engine.standing().unwrap()["ca"].clone()
    };
    let rest = good();
    assert_eq!((rest.stage, rest.number), (Stage::AtRest, 0));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let journal = Journal::new(&dir.join("pki"), None, false);
    let mut before = rest;
    for step in [Step::Announce, Step::Sign, Step::Withdraw] {
        let item = journal::item("ca").unwrap();
        let made = journal.step(item, step, &before, jiff::Timestamp::now());
        runtime.block_on(made).unwrap();
        let after = good();
        assert_eq!(after.number, before.number + 1);
        before = after;
    }
    assert_eq!(before.stage, Stage::AtRest);
    std::fs::remove_dir_all(dir).unwrap();
}
