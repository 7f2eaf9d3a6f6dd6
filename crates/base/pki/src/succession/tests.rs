use super::*;
use crate::authority::{self, CertSpec, San};
use crate::verify::{Purpose, Roots, verify};
use jiff::SignedDuration;

const NAME: &str = "ca";

fn begun() -> Files {
    let made = Authority::generate("kubernetes").unwrap();
    let file = |suffix: &str, text: String| (format!("{NAME}{suffix}"), text);
    [file(".crt", made.cert_pem().into()), file(".key", made.key_pem())].into()
}

/// As it is opened from these files.
fn opened(files: &Files) -> Authority {
    let dir = std::env::temp_dir().join(format!("keelson-succession-{}-{:p}", std::process::id(), files));
    for (name, text) in files {
        crate::files::write_secret(&dir.join(name), text.as_bytes()).unwrap();
    }
    let found = Authority::open(&dir, NAME, "kubernetes").unwrap();
    std::fs::remove_dir_all(dir).unwrap();
    found
}

fn after(files: &Files, steps: &[Step]) -> Files {
    let each = |files: Files, step: &Step| super::step(NAME, &files, *step, Timestamp::now()).unwrap();
    steps.iter().fold(files.clone(), each)
}

/// Whether somebody who trusts `bundle` takes a server's certificate as `ca` shows it.
fn takes(bundle: &str, ca: &Authority) -> bool {
    let issued = ca.issue(&CertSpec::server("h", vec![San::parse("h.example")])).unwrap();
    let chain: Vec<Certificate> = pem::certificates(ca.chain(&issued.cert_pem).as_bytes())
        .map(|der| Certificate::from_der(&der).unwrap())
        .collect();
    let roots = Roots::from_pem(bundle.as_bytes()).unwrap();
    let (leaf, others) = (&chain[0], Roots::of(chain[1..].to_vec()));
    verify(leaf, &others, &roots, Purpose::Server("h.example"), Timestamp::now()).is_ok()
}

/// Machines that are any step apart take each other's certificates, but for who knows only what has been withdrawn and has it shown no more.
#[test]
fn each_stage_is_trusted_by_those_before_and_after_it() {
    let rest = begun();
    let announced = after(&rest, &[Step::Announce]);
    let replaced = after(&announced, &[Step::Sign]);
    let withdrawn = after(&replaced, &[Step::Withdraw]);
    let stages = [&rest, &announced, &replaced, &withdrawn].map(opened);
    let [rest, announced, replaced, withdrawn] = &stages;
    for (truster, shower, takes_it) in [
        (rest, announced, true),
        (rest, replaced, true),
        (announced, rest, true),
        (announced, replaced, true),
        (replaced, rest, true),
        (replaced, announced, true),
        (withdrawn, replaced, true),
        (replaced, withdrawn, true),
        // What the old one signed is over, and only that.
        (withdrawn, announced, false),
        // Until the old one ends it leads to the new one, for clients that nobody could tell.
        (rest, withdrawn, true),
    ] {
        assert_eq!(takes(&truster.bundle_pem(), shower), takes_it);
    }
    assert_ne!(rest.key_pem(), replaced.key_pem());
    assert_eq!(replaced.cert_pem(), withdrawn.bundle_pem());
    assert_eq!(authority::fingerprints(&announced.bundle_pem()).len(), 2);
}

#[test]
fn steps_come_in_their_order_and_only_when_it_is_time() {
    let rest = begun();
    for wrong in [Step::Sign, Step::Withdraw] {
        assert!(step(NAME, &rest, wrong, Timestamp::now()).is_err());
    }
    let first = standing(NAME, &rest).unwrap();
    assert_eq!(
        (first.stage, first.number, first.next()),
        (Stage::AtRest, 0, Step::Announce)
    );
    let end = first.signs.ends;
    for (now, due) in [
        (0, None),
        (end - BEFORE_END - 1, None),
        (end - BEFORE_END, Some(Step::Announce)),
    ] {
        assert_eq!(first.due(now), due, "{now}");
    }
    let announced = after(&rest, &[Step::Announce]);
    let told = standing(NAME, &announced).unwrap();
    assert_eq!((told.stage, told.number), (Stage::Announced, 1));
    assert_eq!(
        (told.due(told.since + KNOWN - 1), told.due(told.since + KNOWN)),
        (None, Some(Step::Sign))
    );
    assert_eq!(told.signs, first.signs);
    assert!(step(NAME, &announced, Step::Announce, Timestamp::now()).is_err());
    let replaced = after(&announced, &[Step::Sign]);
    let new = standing(NAME, &replaced).unwrap();
    assert_eq!(
        (new.stage, new.number, new.beside.as_ref()),
        (Stage::Replaced, 2, Some(&first.signs))
    );
    assert_eq!(
        (new.due(new.since + OUTLIVED - 1), new.due(new.since + OUTLIVED)),
        (None, Some(Step::Withdraw))
    );
    assert_eq!(new.due(end), Some(Step::Withdraw), "it has ended");
    assert!(!replaced.contains_key("ca-next.key"));
    let over = standing(NAME, &after(&replaced, &[Step::Withdraw])).unwrap();
    assert_eq!((over.stage, over.number, over.beside), (Stage::AtRest, 3, None));
    // And once more, from there.
    let again = after(&replaced, &[Step::Withdraw, Step::Announce, Step::Sign, Step::Withdraw]);
    let again = standing(NAME, &again).unwrap();
    assert_eq!(again.number, 6);
    assert_ne!(again.signs, over.signs);
}

#[test]
fn who_is_vouched_for_by_somebody_else_is_left_alone() {
    let (root, own) = (
        Authority::generate("corporate").unwrap(),
        Authority::generate("kubernetes").unwrap(),
    );
    let mut files = begun();
    files.insert("ca.crt".into(), root.introduce(&own).unwrap());
    files.insert("ca.key".into(), own.key_pem());
    let found = standing(NAME, &files).unwrap();
    assert!(found.foreign && found.due(i64::MAX / 2).is_none());
    let refused = step(NAME, &files, Step::Announce, Timestamp::now()).unwrap_err();
    assert!(refused.to_string().contains("signed by somebody else"), "{refused}");
}

/// Nothing that is told is believed for its own sake.
#[test]
fn a_new_authority_is_believed_by_the_word_of_one_that_is_known() {
    let now = Timestamp::now();
    let rest = begun();
    let announced = after(&rest, &[Step::Announce]);
    let replaced = after(&announced, &[Step::Sign]);
    let over = after(&replaced, &[Step::Withdraw]);
    let told = |known: &Files, by: &Files| {
        let cross = by.get("ca-cross.crt").map_or("", String::as_str);
        believed(&known["ca.crt"], &by["ca.crt"], cross, now)
    };
    for by in [&rest, &announced, &replaced, &over] {
        assert_eq!(told(&rest, by).as_ref(), Some(&by["ca.crt"]));
    }
    // A stranger's, with his own word for it, with none, and with the word of who is known for another.
    let stranger = begun();
    let strangers = after(&stranger, &[Step::Announce]);
    assert_eq!(told(&rest, &stranger), None);
    assert_eq!(told(&rest, &strangers), None);
    assert_eq!(
        believed(&rest["ca.crt"], &stranger["ca.crt"], &announced["ca-cross.crt"], now),
        None
    );
    let both = format!("{}{}", stranger["ca.crt"], announced["ca.crt"]);
    let taken = believed(&rest["ca.crt"], &both, &announced["ca-cross.crt"], now);
    assert_eq!(taken.as_ref(), Some(&announced["ca.crt"]));
    // Somebody with a certificate of the cluster is no authority.
    let ca = opened(&rest);
    let leaf = ca.issue(&CertSpec::client("mallory", None)).unwrap();
    let mallory = Authority::from_pem(&leaf.cert_pem, &leaf.key_pem).unwrap();
    let introduced = mallory.introduce(&opened(&stranger)).unwrap();
    let known = format!("{}{}", rest["ca.crt"], leaf.cert_pem);
    assert_eq!(believed(&rest["ca.crt"], &stranger["ca.crt"], &introduced, now), None);
    assert_eq!(believed(&known, &stranger["ca.crt"], &introduced, now), None);
    // Nor does the word of one that has ended count.
    let late = now + SignedDuration::from_hours(24 * 365 * 11);
    assert_eq!(
        believed(&rest["ca.crt"], &over["ca.crt"], &over["ca-cross.crt"], late),
        None
    );
}
