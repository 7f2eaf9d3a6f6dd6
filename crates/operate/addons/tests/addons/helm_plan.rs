//! What comes next for a chart.

use keelson_addons::helm::job::Act;
use keelson_addons::helm::plan::{Facts, Next, Phase, Seen, Why, next};
use keelson_addons::helm::release::Release;

const HASH: &str = "SHA256=AB";

fn seen(hash: &str, phase: Phase) -> Option<Seen> {
    Some(Seen {
        hash: hash.into(),
        phase,
    })
}

fn release(revision: i64, status: &str, hash: &str, well: Option<i64>) -> Release {
    Release {
        revision,
        status: status.into(),
        hash: hash.into(),
        well,
    }
}

fn facts() -> Facts<'static> {
    Facts {
        hash: HASH,
        policy: "reinstall",
        tries: 1,
        ..Facts::default()
    }
}

#[test]
fn a_chart_is_installed_and_upgraded_by_one_job_at_a_time() {
    use Phase::*;
    let of = |install: Option<Seen>, release: Release, tries: u32| {
        next(&Facts {
            install,
            release,
            tries,
            ..facts()
        })
    };
    assert_eq!(of(None, Release::default(), 0), Next::Make(Act::Install));
    assert_eq!(
        of(None, release(3, "deployed", "AB", Some(3)), 0),
        Next::Installed,
        "it is there already"
    );
    assert_eq!(
        of(None, release(3, "deployed", "CD", Some(3)), 0),
        Next::Make(Act::Install)
    );
    assert_eq!(
        of(seen(HASH, Running), Release::default(), 1),
        Next::Running(Act::Install)
    );
    assert_eq!(
        of(seen("SHA256=CD", Running), Release::default(), 1),
        Next::Remove(Act::Install)
    );
    assert_eq!(
        of(seen("SHA256=CD", Ending), Release::default(), 1),
        Next::Wait(Act::Install)
    );
    assert_eq!(
        of(seen(HASH, Complete), release(1, "deployed", "AB", Some(1)), 1),
        Next::Installed
    );
    assert_eq!(
        of(seen(HASH, Complete), release(1, "deployed", "", Some(1)), 1),
        Next::Installed,
        "an old image"
    );
    assert_eq!(
        of(seen(HASH, Complete), release(2, "deployed", "CD", Some(2)), 1),
        Next::Remove(Act::Install),
        "somebody rolled it back"
    );
    assert_eq!(
        of(seen(HASH, Complete), release(2, "deployed", "CD", Some(2)), 4),
        Next::Failed(Why::Release)
    );
    assert_eq!(
        of(seen(HASH, Complete), release(2, "pending-upgrade", "AB", Some(1)), 1),
        Next::Remove(Act::Install)
    );
    assert_eq!(
        of(seen(HASH, Failed), release(1, "failed", "AB", None), 1),
        Next::Failed(Why::Job)
    );
    let left = Facts {
        delete: seen("", Complete),
        ..facts()
    };
    assert_eq!(next(&left), Next::Remove(Act::Delete), "of a chart of this name before");
}

#[test]
fn what_failed_goes_back_where_that_is_asked_for() {
    use Phase::*;
    let of = |rollback: Option<Seen>, release: Release| {
        next(&Facts {
            policy: "rollback",
            install: seen(HASH, Failed),
            rollback,
            release,
            ..facts()
        })
    };
    let ill = || release(2, "pending-upgrade", "AB", Some(1));
    assert_eq!(of(None, ill()), Next::Make(Act::Rollback));
    assert_eq!(of(seen(HASH, Running), ill()), Next::Running(Act::Rollback));
    assert_eq!(
        of(seen(HASH, Complete), release(3, "deployed", "CD", Some(3))),
        Next::Failed(Why::RolledBack)
    );
    assert_eq!(of(seen(HASH, Failed), ill()), Next::Failed(Why::Rollback));
    assert_eq!(of(seen("SHA256=CD", Complete), ill()), Next::Remove(Act::Rollback));
    assert_eq!(
        of(None, release(1, "failed", "AB", None)),
        Next::Failed(Why::Job),
        "there is nothing to go back to"
    );
    let changed = Facts {
        policy: "rollback",
        rollback: seen(HASH, Complete),
        ..facts()
    };
    assert_eq!(
        next(&changed),
        Next::Remove(Act::Rollback),
        "it changed, and is installed anew after that"
    );
}

#[test]
fn a_chart_goes_when_its_release_is_gone_or_was_never_there() {
    use Phase::*;
    let base = || Facts {
        deleting: true,
        ..facts()
    };
    let there = || release(1, "deployed", "AB", Some(1));
    assert_eq!(next(&base()), Next::LetGo { left: false }, "no job for nothing");
    assert_eq!(
        next(&Facts {
            install: seen(HASH, Running),
            ..base()
        }),
        Next::Remove(Act::Install)
    );
    assert_eq!(
        next(&Facts {
            rollback: seen(HASH, Running),
            ..base()
        }),
        Next::Remove(Act::Rollback)
    );
    assert_eq!(
        next(&Facts {
            release: there(),
            ..base()
        }),
        Next::Make(Act::Delete)
    );
    let of = |phase: Phase, release: Release, tries: u32| {
        next(&Facts {
            delete: seen("", phase),
            release,
            tries,
            ..base()
        })
    };
    assert_eq!(of(Running, there(), 1), Next::Running(Act::Delete));
    assert_eq!(of(Complete, Release::default(), 1), Next::LetGo { left: false });
    assert_eq!(of(Complete, there(), 1), Next::Remove(Act::Delete));
    assert_eq!(of(Complete, there(), 4), Next::LetGo { left: true }, "not for ever");
    assert_eq!(of(Failed, there(), 1), Next::Failed(Why::Uninstall));
    let abandoned = Facts {
        abandoned: true,
        delete: seen("", Running),
        release: there(),
        ..base()
    };
    assert_eq!(next(&abandoned), Next::Remove(Act::Delete));
    assert_eq!(
        next(&Facts {
            abandoned: true,
            release: there(),
            ..base()
        }),
        Next::LetGo { left: true }
    );
}
