use super::write::message;
use super::*;
use crate::Attributes;
use ipnet::IpNet;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::collections::BTreeSet;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn body(message: &[u8]) -> &[u8] {
    let header = message.first_chunk().unwrap();
    assert_eq!(length(header), Ok(message.len()));
    &message[HEADER..]
}

const EXTERNAL: Origin = Origin {
    asn: 64512,
    external: true,
    four_octets: true,
};

fn example() -> Open {
    Open {
        asn: 4_200_000_001,
        hold: 90,
        id: Ipv4Addr::new(192, 0, 2, 1),
        families: Family::ALL.to_vec(),
        four_octets: true,
        refresh: true,
        graceful: Some(Graceful {
            restarted: true,
            seconds: 120,
            families: [(Family::V4, true), (Family::V6, false)].into(),
        }),
    }
}

#[test]
fn an_open_is_what_was_said() {
    let written = open(&example());
    // Version, AS_TRANS, hold time, identifier, and one parameter with all capabilities.
    let golden = "04 5ba0 005a c0000201 22 02 20 \
        010400010001 010400020001 0200 4104fa56ea01 400a8078 00010180 00020100";
    let hex: String = body(&written).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden.replace(' ', ""));
    assert_eq!(read(&written), Ok(Message::Open(example())));
}

#[test]
fn an_open_without_capabilities_speaks_ipv4() {
    let old = message(OPEN, &[4, 0xfc, 0x00, 0, 90, 192, 0, 2, 1, 0]);
    let Ok(Message::Open(open)) = read(&old) else { panic!() };
    assert_eq!((open.asn, &open.families[..]), (64512, &[Family::V4][..]));
    assert!(!open.four_octets && !open.refresh && open.graceful.is_none());
}

#[test]
fn what_is_not_known_in_an_open_does_not_disturb_what_is() {
    // An unknown family, an unknown capability, one of a wrong length, and then four octets.
    let capabilities = [
        &[1, 4, 0, 25, 0, 70][..],
        &[250, 3, 1, 2, 3],
        &[65, 2, 0, 0],
        &[65, 4, 0, 1, 0, 0],
    ]
    .concat();
    let parameters = [&[2, capabilities.len() as u8][..], &capabilities].concat();
    let fixed = [4, 0x5b, 0xa0, 0, 0, 192, 0, 2, 1];
    let short = message(OPEN, &[&fixed[..], &[parameters.len() as u8], &parameters].concat());
    let Ok(Message::Open(open)) = read(&short) else {
        panic!()
    };
    assert_eq!((open.asn, open.hold, open.families.len()), (65536, 0, 0));
    // The same with lengths of two octets.
    let parameters = [&[2, 0, capabilities.len() as u8][..], &capabilities].concat();
    let extended = [&fixed[..], &[255, 255, 0, parameters.len() as u8], &parameters].concat();
    assert_eq!(read(&message(OPEN, &extended)), Ok(Message::Open(open)));
}

#[test]
fn what_is_wrong_is_told_by_its_number() {
    let mut marker = keepalive();
    marker[3] = 0;
    let header = |message: &[u8]| length(message.first_chunk().unwrap());
    let code = |fault: Fault| (fault.code, fault.subcode, fault.data);
    assert_eq!(code(header(&marker).unwrap_err()), (1, 1, vec![]));
    for (kind, count) in [
        (OPEN, 28_u16),
        (KEEPALIVE, 20),
        (UPDATE, 22),
        (NOTIFICATION, 20),
        (UPDATE, 4097),
        (REFRESH, 18),
    ] {
        let mut message = message(kind, &[]);
        message[16..18].copy_from_slice(&count.to_be_bytes());
        assert_eq!(
            code(header(&message).unwrap_err()),
            (1, 2, count.to_be_bytes().to_vec())
        );
    }
    assert_eq!(code(header(&message(6, &[])).unwrap_err()), (1, 3, vec![6]));
    let opened = |body: &[u8]| code(read(&message(OPEN, body)).unwrap_err());
    assert_eq!(opened(&[3, 0, 1, 0, 90, 192, 0, 2, 1, 0]), (2, 1, vec![0, 4]));
    assert_eq!(opened(&[4, 0, 1, 0, 2, 192, 0, 2, 1, 0]), (2, 6, vec![0, 2]));
    assert_eq!(opened(&[4, 0, 0, 0, 90, 192, 0, 2, 1, 0]), (2, 2, vec![]));
    assert_eq!(opened(&[4, 0, 1, 0, 90, 0, 0, 0, 0, 0]), (2, 3, vec![0; 4]));
    assert_eq!(opened(&[4, 0, 1, 0, 90, 192, 0, 2, 1, 2, 9, 0]), (2, 4, vec![9]));
    assert_eq!(opened(&[4, 0, 1, 0, 90, 192, 0, 2, 1, 9, 2, 0]), (2, 0, vec![]));
    assert_eq!(opened(&[4, 0, 1, 0, 90, 192, 0, 2, 1, 4, 2, 2, 1, 4]), (2, 0, vec![]));
    let updated = |body: &[u8]| code(read(&message(UPDATE, body)).unwrap_err());
    assert_eq!(updated(&[0, 9, 0, 0]), (3, 1, vec![]));
    assert_eq!(updated(&[0, 0, 0, 3, 0x40, 1, 1]), (3, 1, vec![]));
    assert_eq!(updated(&[0, 0, 0, 0, 33, 1, 1, 1, 1, 1]), (3, 10, vec![]));
    assert_eq!(updated(&[0, 2, 24, 1, 0, 0]), (3, 10, vec![]));
    assert_eq!(read(&message(REFRESH, &[0, 1, 0])).unwrap_err().code, 7);
    assert_eq!(
        read(&message(REFRESH, &[0, 2, 0, 1])),
        Ok(Message::Refresh(Some(Family::V6)))
    );
    assert_eq!(read(&message(REFRESH, &[0, 2, 1, 1])), Ok(Message::Refresh(None)));
    assert_eq!(Fault::bad_peer().describe(), "bad peer AS (2/2)");
}

#[test]
fn routes_are_told_as_the_standards_have_them() {
    let attributes = Attributes {
        local_preference: 200,
        communities: [0xfc00_0064, 0xffff_ff01].into(),
        large_communities: [[64512, 1, 2]].into(),
    };
    let hop = "192.0.2.1".parse().unwrap();
    let hex = |message: Vec<u8>| -> String { body(&message).iter().map(|byte| format!("{byte:02x}")).collect() };
    let nets = [net("203.0.113.7/32"), net("198.51.100.0/26")];
    assert_eq!(
        hex(announcement(EXTERNAL, hop, &attributes, &nets)),
        "0000\
         002e\
         40010100\
         400206 0201 0000fc00\
         400304 c0000201\
         c00808 fc000064 ffffff01\
         c0200c 0000fc00 00000001 00000002\
         20cb007107 1ac6336400"
            .replace(' ', "")
    );
    let internal = Origin {
        external: false,
        ..EXTERNAL
    };
    let plain = Attributes {
        local_preference: 200,
        ..Attributes::default()
    };
    let hop6 = "2001:db8::1".parse().unwrap();
    assert_eq!(
        hex(announcement(internal, hop6, &plain, &[net("2001:db8:1::5/128")])),
        "0000\
         0037\
         40010100\
         400200\
         400504 000000c8\
         800e26 0002 01 10 20010db8000000000000000000000001 00 8020010db8000100000000000000000005"
            .replace(' ', "")
    );
    let old = Origin {
        asn: 4_200_000_001,
        four_octets: false,
        ..EXTERNAL
    };
    assert_eq!(
        hex(announcement(old, hop, &plain, &nets[..1])),
        "0000 001b 40010100 400204 0201 5ba0 400304 c0000201 c01106 0201 fa56ea01 20cb007107".replace(' ', "")
    );
    assert_eq!(hex(withdrawal(Family::V4, &nets)), "000a20cb0071071ac63364000000");
    assert_eq!(
        hex(withdrawal(Family::V6, &[net("2001:db8::/64")])),
        "0000000f800f0c0002014020010db800000000"
    );
    assert_eq!(hex(end_of_rib(Family::V4)), "00000000");
    assert_eq!(hex(end_of_rib(Family::V6)), "00000006800f03000201");
}

#[test]
fn the_most_routes_with_the_most_attributes_fit() {
    let attributes = Attributes {
        local_preference: 1,
        communities: (0..16).collect(),
        large_communities: (0..16).map(|n| [n, n, n]).collect::<BTreeSet<_>>(),
    };
    for (family, hop, one) in [
        (Family::V4, "192.0.2.1", net("203.0.113.7/32")),
        (Family::V6, "2001:db8::1", net("2001:db8::7/128")),
    ] {
        let nets = vec![one; most(family)];
        let told = announcement(EXTERNAL, hop.parse().unwrap(), &attributes, &nets);
        assert_eq!(length(told.first_chunk().unwrap()), Ok(told.len()));
        assert_eq!(read(&told), Ok(Message::Update));
        assert!(withdrawal(family, &nets).len() <= LONGEST);
    }
}

/// What a stranger sends is read or refused, and never more than is there.
#[test]
fn anything_is_read_or_refused() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(4271);
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let whole = [
        open(&example()),
        keepalive(),
        notification(&Fault::hold_timer()),
        end_of_rib(Family::V6),
        announcement(
            EXTERNAL,
            "192.0.2.1".parse().unwrap(),
            &Attributes::default(),
            &[net("203.0.113.7/32")],
        ),
        message(REFRESH, &[0, 1, 0, 1]),
    ];
    let mut refused = 0;
    for _ in 0..200_000 {
        let mut message = whole[random.random_range(0..whole.len())].clone();
        for _ in 0..random.random_range(0..6) {
            let at = random.random_range(HEADER - 1..message.len());
            message[at] = random.random();
        }
        message.truncate(random.random_range(HEADER..=message.len()).max(message.len() / 2));
        refused += u32::from(read(&message).is_err());
        let header: [u8; HEADER] = std::array::from_fn(|n| if n < 16 { 0xff } else { random.random() });
        if let Ok(length) = length(&header) {
            assert!((HEADER..=LONGEST).contains(&length));
        }
    }
    assert!(refused > 1000, "{refused}");
}
