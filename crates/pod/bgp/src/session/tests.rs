use super::*;
use crate::{Attributes, Distance};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::net::Ipv4Addr;

const HERE: &str = "192.0.2.1";

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn peer() -> Peer {
    Peer {
        address: "192.0.2.254".parse().unwrap(),
        port: 179,
        source: None,
        local_asn: 64512,
        peer_asn: 64500,
        router_id: Ipv4Addr::new(192, 0, 2, 1),
        hold: secs(90),
        keepalive: Duration::ZERO,
        retry: secs(10),
        distance: Distance::Usual,
        password: None,
        graceful: Some(secs(120)),
        next_hop_v4: None,
        next_hop_v6: Some("2001:db8::1".parse().unwrap()),
    }
}

/// What the other side says of itself.
fn theirs() -> Open {
    Open {
        asn: 64500,
        hold: 9,
        id: Ipv4Addr::new(192, 0, 2, 254),
        families: Family::ALL.to_vec(),
        four_octets: true,
        refresh: true,
        graceful: Some(Graceful {
            restarted: false,
            seconds: 60,
            families: BTreeMap::new(),
        }),
    }
}

fn routes(nets: &[&str]) -> Arc<Routes> {
    let routes = nets.iter().map(|net| (net.parse().unwrap(), Attributes::default()));
    Arc::new(routes.collect())
}

/// All messages that go out now.
fn sent(session: &mut Session, wanted: &Arc<Routes>, now: Instant) -> Vec<Message> {
    let mut bytes = Vec::new();
    while let Some(more) = session.send(wanted, now) {
        bytes.extend(more);
    }
    let mut messages = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let length = wire::length(rest.first_chunk().unwrap()).unwrap();
        let (message, after) = rest.split_at(length);
        messages.push(wire::read(message).unwrap());
        rest = after;
    }
    messages
}

fn established(peer: Peer, resumes: bool, now: Instant) -> Session {
    let mut session = Session::new(peer, resumes, 1.0, now);
    session.connecting();
    session.connected(HERE.parse().unwrap(), now);
    assert_eq!(session.state(), State::OpenSent);
    assert!(matches!(
        sent(&mut session, &Arc::default(), now)[..],
        [Message::Open(_)]
    ));
    // However it is cut.
    for byte in wire::open(&theirs()) {
        session.received(&[byte], now);
    }
    assert_eq!(session.state(), State::OpenConfirm);
    assert_eq!(sent(&mut session, &Arc::default(), now), [Message::Keepalive]);
    session.received(&wire::keepalive(), now);
    assert_eq!(session.state(), State::Established);
    session
}

#[test]
fn a_session_begins_tells_and_keeps_on() {
    let mut now = Instant::now();
    let mut session = established(peer(), false, now);
    let wanted = routes(&["203.0.113.1/32", "203.0.113.2/32", "2001:db8:1::1/128"]);
    // Two families, and that each is whole.
    assert_eq!(sent(&mut session, &wanted, now), vec![Message::Update; 4]);
    assert_eq!(session.told(), 3);
    assert!(sent(&mut session, &wanted, now).is_empty());
    // One goes, one comes.
    let wanted = routes(&["203.0.113.1/32", "203.0.113.3/32", "2001:db8:1::1/128"]);
    assert_eq!(sent(&mut session, &wanted, now), vec![Message::Update; 2]);
    // The smaller hold time counts: a third of it is when this side says that it is there.
    for _ in 0..10 {
        let next = session.next().unwrap();
        assert_eq!(next - now, secs(3));
        now = next;
        session.tick(now);
        assert_eq!(sent(&mut session, &wanted, now), [Message::Keepalive]);
        session.received(&wire::keepalive(), now);
    }
    // Asked for all of one family, and of one that is none of ours.
    session.received(&[&[0xff; 16][..], &[0, 23, 5, 0, 1, 0, 1]].concat(), now);
    assert_eq!(sent(&mut session, &wanted, now), [Message::Update]);
    session.received(&[&[0xff; 16][..], &[0, 23, 5, 0, 9, 0, 9]].concat(), now);
    assert!(sent(&mut session, &wanted, now).is_empty());
    // As often as it likes it may not.
    for _ in 0..100 {
        session.received(&[&[0xff; 16][..], &[0, 23, 5, 0, 2, 0, 1]].concat(), now);
        assert!(sent(&mut session, &wanted, now).is_empty());
    }
    assert_eq!(session.next().unwrap() - now, REPEAT);
    now += REPEAT;
    session.tick(now);
    assert_eq!(sent(&mut session, &wanted, now), [Message::Update]);
    assert_eq!(session.error(), None);
}

#[test]
fn a_silent_peer_is_given_up_after_the_hold_time() {
    let start = Instant::now();
    let mut session = established(peer(), false, start);
    let mut now = start;
    while !session.ends() {
        sent(&mut session, &Arc::default(), now);
        now = session.next().unwrap();
        session.tick(now);
    }
    assert_eq!(now - start, secs(9));
    assert_eq!(
        sent(&mut session, &Arc::default(), now),
        [Message::Notification(Fault::hold_timer())]
    );
    session.closed("", now);
    assert_eq!(session.state(), State::Idle);
    assert_eq!(
        session.error(),
        Some("nothing was heard from the peer for the hold time")
    );
    // It had lasted less than it takes to count as a good one.
    assert_eq!(session.retry_at() - now, secs(1));
}

#[test]
fn a_peer_that_reads_nothing_is_given_up_too() {
    let mut now = Instant::now();
    let start = now;
    let mut session = established(peer(), false, now);
    let wanted = routes(&["203.0.113.1/32"]);
    assert!(session.send(&wanted, now).is_some());
    // Nothing of it is sent: nobody asks for more.
    while !session.ends() {
        now = session.next().unwrap();
        session.received(&wire::keepalive(), now);
        session.tick(now);
        assert!(now - start <= SEND_HOLD);
    }
    assert_eq!(session.error(), Some("the peer reads nothing"));
}

#[test]
fn attempts_become_rarer_and_then_no_more() {
    let now = Instant::now();
    let mut session = Session::new(peer(), false, 1.0, now);
    let mut pauses = Vec::new();
    let mut at = now;
    for _ in 0..7 {
        session.connecting();
        session.closed("refused", at);
        pauses.push((session.retry_at() - at).as_secs());
        at = session.retry_at();
    }
    assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10]);
    assert_eq!(session.error(), Some("refused"));
}

#[test]
fn who_is_not_the_one_that_is_expected_is_told_so() {
    let now = Instant::now();
    let refused = |theirs: Open, peer: Peer| {
        let mut session = Session::new(peer, false, 1.0, now);
        session.connecting();
        session.connected(HERE.parse().unwrap(), now);
        sent(&mut session, &Arc::default(), now);
        session.received(&wire::open(&theirs), now);
        assert!(session.ends());
        let [Message::Notification(fault)] = &sent(&mut session, &Arc::default(), now)[..] else {
            panic!()
        };
        let code = (fault.code, fault.subcode);
        session.closed("", now);
        (code, session.error().unwrap().to_string())
    };
    let other = Open { asn: 64999, ..theirs() };
    assert_eq!(
        refused(other, peer()),
        ((2, 2), "the peer is of AS 64999, and AS 64500 is expected".into())
    );
    let same = Open {
        id: peer().router_id,
        ..theirs()
    };
    assert_eq!(refused(same, peer()).0, (2, 3));
    let other_family = Open {
        families: vec![Family::V6],
        ..theirs()
    };
    let no_v6 = Peer {
        next_hop_v6: None,
        ..peer()
    };
    assert_eq!(refused(other_family, no_v6).0, (2, 7));
}

#[test]
fn what_comes_at_the_wrong_time_ends_the_session() {
    let now = Instant::now();
    let mut session = Session::new(peer(), false, 1.0, now);
    session.connecting();
    session.connected(HERE.parse().unwrap(), now);
    sent(&mut session, &Arc::default(), now);
    session.received(&wire::keepalive(), now);
    assert_eq!(
        sent(&mut session, &Arc::default(), now),
        [Message::Notification(Fault::new(5, 1, &[]))]
    );
    let mut session = established(peer(), false, now);
    session.received(&wire::open(&theirs()), now);
    assert_eq!(
        sent(&mut session, &routes(&["203.0.113.1/32"]), now),
        [Message::Notification(Fault::new(5, 3, &[]))]
    );
    // A notification is not answered.
    let mut session = established(peer(), false, now);
    session.received(&wire::notification(&Fault::new(6, 3, &[])), now);
    assert!(session.ends() && sent(&mut session, &Arc::default(), now).is_empty());
    session.closed("closed", now);
    assert_eq!(session.error(), Some("the peer says: peer de-configured (6/3)"));
}

#[test]
fn routes_outlive_a_restart_of_this_side() {
    let now = Instant::now();
    let said = |session: &mut Session| {
        session.connecting();
        session.connected(HERE.parse().unwrap(), now);
        let [Message::Open(open)] = &sent(session, &Arc::default(), now)[..] else {
            panic!()
        };
        open.graceful.clone().unwrap()
    };
    let fresh = said(&mut Session::new(peer(), false, 1.0, now));
    assert!(!fresh.restarted && fresh.families.values().all(|kept| !kept));
    assert_eq!((fresh.seconds, fresh.families.len()), (120, 2));
    let resumed = said(&mut Session::new(peer(), true, 1.0, now));
    assert!(resumed.restarted && resumed.families.values().all(|kept| *kept));
    // Once all has been told, this side hasn't just been started; but it still leads packets on.
    let mut session = established(peer(), true, now);
    assert!(session.is_graceful());
    sent(&mut session, &routes(&["203.0.113.1/32"]), now);
    session.closed("", now);
    let later = said(&mut session);
    assert!(!later.restarted && later.families.values().all(|kept| *kept));
    // Who doesn't take part in it is told when this side ends.
    let mut plain = peer();
    plain.graceful = None;
    assert!(!established(plain, false, now).is_graceful());
}

#[test]
fn a_hold_time_of_nothing_means_none() {
    let now = Instant::now();
    let mut forever = peer();
    forever.hold = Duration::ZERO;
    let session = established(forever, false, now);
    assert_eq!(session.next(), None);
}

/// Whatever a peer sends, in whatever pieces: the session goes on or ends, and keeps nothing of it.
#[test]
fn a_hostile_peer_costs_nothing() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(4724);
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let now = Instant::now();
    let wanted = routes(&["203.0.113.1/32"]);
    let (mut ended, mut lived) = (0, 0);
    for _ in 0..2000 {
        let mut session = established(peer(), random.random(), now);
        for _ in 0..50 {
            let mut bytes = match random.random_range(0..5) {
                0 => wire::keepalive(),
                1 => wire::end_of_rib(Family::V4),
                2 => wire::withdrawal(Family::V6, &["2001:db8::/64".parse().unwrap()]),
                3 => [&[0xff; 16][..], &[0, 23, 5, 0, 1, 0, 1]].concat(),
                _ => vec![0xff; random.random_range(1..40)],
            };
            if random.random_range(0..20) == 0 {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            let cut = random.random_range(0..=bytes.len());
            session.received(&bytes[..cut], now);
            session.received(&bytes[cut..], now);
            while session.send(&wanted, now).is_some() {}
            assert!(session.input.capacity() == LONGEST && session.urgent.len() <= 2 * LONGEST);
        }
        match session.ends() {
            true => ended += 1,
            false => lived += 1,
        }
    }
    assert!(ended > 100 && lived + ended == 2000, "{ended} {lived}");
}

#[test]
fn a_peer_that_asks_for_no_hold_time_and_never_confirms_is_given_up() {
    let now = Instant::now();
    let mut session = Session::new(peer(), false, 1.0, now);
    session.connecting();
    session.connected(HERE.parse().unwrap(), now);
    sent(&mut session, &Arc::default(), now);
    let never = Open { hold: 0, ..theirs() };
    session.received(&wire::open(&never), now);
    assert_eq!(session.state(), State::OpenConfirm);
    assert_eq!(sent(&mut session, &Arc::default(), now), [Message::Keepalive]);
    let at = session.next().unwrap();
    session.tick(at);
    assert!(session.ends());
    assert_eq!(
        sent(&mut session, &Arc::default(), at),
        [Message::Notification(Fault::hold_timer())]
    );
    // One that confirms stays for ever.
    session.closed("", at);
    session.connected(HERE.parse().unwrap(), at);
    sent(&mut session, &Arc::default(), at);
    session.received(&[wire::open(&never), wire::keepalive()].concat(), at);
    assert_eq!(session.state(), State::Established);
    sent(&mut session, &Arc::default(), at);
    assert_eq!(session.send(&Arc::default(), at), None);
    assert_eq!(session.next(), None);
}
