//! Operations as nfnetlink messages. Numbers are those of `linux/netfilter/nf_tables.h`.

use super::*;

pub(super) mod get;
mod observe;

const NLA_F_NESTED: u16 = 0x8000;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_ECHO: u16 = 0x8;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

mod msg {
    pub const NEW_TABLE: u16 = 0;
    pub const DEL_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const DEL_CHAIN: u16 = 5;
    pub const NEW_RULE: u16 = 6;
    pub const DEL_RULE: u16 = 8;
    pub const NEW_SET: u16 = 9;
    pub const DEL_SET: u16 = 11;
    pub const NEW_ELEMENT: u16 = 12;
    pub const DEL_ELEMENT: u16 = 14;
    pub const NEW_OBJECT: u16 = 18;
    pub const DEL_OBJECT: u16 = 20;
}

/// Bytes of a share: its owner, and a number.
const SHARE: u32 = 12;
/// Bytes of an interface's name, with the zeros after it.
const INTERFACE_NAME: usize = 16;
/// A comment in a rule's user data, as the `nft` program writes it.
const UDATA_COMMENT: u8 = 0;

/// A set's user data by which the `nft` program knows that keys are in network order: kind, length, number in host order.
const NETWORK_ORDER: [u8; 6] = {
    let order = 2u32.to_ne_bytes();
    [0, 4, order[0], order[1], order[2], order[3]]
};

/// Elements of one set that are sent as one message: a nest's length has 16 bits, and an element at most some 200 bytes.
const ELEMENTS: usize = 128;

/// Register of the verdict, and the first of the data registers.
const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
/// 4-byte registers; `REG32_00` overlaps `REG_1`.
const REG32_00: u32 = 8;

/// A growing netlink message or nested attribute.
#[derive(Default)]
pub(super) struct Buf(pub Vec<u8>);

impl Buf {
    fn pad(&mut self) {
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
    }
    fn attr(&mut self, kind: u16, data: &[u8]) {
        self.0.extend_from_slice(&(data.len() as u16 + 4).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(data);
        self.pad();
    }
    fn be32(&mut self, kind: u16, v: u32) {
        self.attr(kind, &v.to_be_bytes());
    }
    fn be64(&mut self, kind: u16, v: u64) {
        self.attr(kind, &v.to_be_bytes());
    }
    fn text(&mut self, kind: u16, s: &str) {
        let mut bytes = s.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }
    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Buf)) {
        let at = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(self);
        let len = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.0[at + 2..at + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
    }
    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, seq: u32, fill: impl FnOnce(&mut Buf)) {
        let at = self.0.len();
        self.0.extend_from_slice(&[0; 16]);
        self.0.extend_from_slice(&[family, 0]);
        self.0.extend_from_slice(&resource.to_be_bytes());
        fill(self);
        let len = (self.0.len() - at) as u32;
        self.0[at..at + 4].copy_from_slice(&len.to_ne_bytes());
        self.0[at + 4..at + 6].copy_from_slice(&kind.to_ne_bytes());
        self.0[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
        self.0[at + 8..at + 12].copy_from_slice(&seq.to_ne_bytes());
    }
}

/// The whole batch; operation `i` has sequence number `i + 1`, elements of one set in a row have their last one's, and the
/// last of all asks for an acknowledgement. The first asks for an echo: its own notice, and that of the generation which the
/// batch made, if it made one.
pub(super) fn batch(family: Family, table: &str, ops: &[Op]) -> Vec<u8> {
    let mut buf = Buf::default();
    buf.message(BATCH_BEGIN, NLM_F_REQUEST, 0, SUBSYS_NFTABLES, 0, |_| {});
    let mut done = 0;
    for run in ops.chunk_by(goes_with) {
        for part in run.chunks(ELEMENTS) {
            let echo = if done == 0 { NLM_F_ECHO } else { 0 };
            done += part.len();
            let ack = if done == ops.len() { NLM_F_ACK } else { 0 };
            encode(&mut buf, family, table, part, done as u32, ack | echo);
        }
    }
    buf.message(
        BATCH_END,
        NLM_F_REQUEST,
        0,
        SUBSYS_NFTABLES,
        ops.len() as u32 + 1,
        |_| {},
    );
    buf.0
}

/// Whether two operations can be one message.
fn goes_with(a: &Op, b: &Op) -> bool {
    match (a, b) {
        (Op::AddElement { set: a, .. }, Op::AddElement { set: b, .. }) => a == b,
        (Op::DeleteElement { set: a, .. }, Op::DeleteElement { set: b, .. }) => a == b,
        _ => false,
    }
}

/// One message, of one operation or of several elements.
fn encode(buf: &mut Buf, family: Family, table: &str, ops: &[Op], seq: u32, ack: u16) {
    let Some(op) = ops.first() else { return };
    let (kind, flags) = match op {
        Op::AddTable => (msg::NEW_TABLE, NLM_F_CREATE),
        Op::DeleteTable => (msg::DEL_TABLE, 0),
        Op::AddChain { .. } => (msg::NEW_CHAIN, NLM_F_CREATE),
        Op::FlushRules | Op::FlushChain { .. } => (msg::DEL_RULE, 0),
        Op::DeleteChain { .. } => (msg::DEL_CHAIN, 0),
        Op::AddRule { .. } => (msg::NEW_RULE, NLM_F_CREATE | NLM_F_APPEND),
        Op::InsertRule { .. } => (msg::NEW_RULE, NLM_F_CREATE),
        Op::DeleteRule { .. } => (msg::DEL_RULE, 0),
        Op::AddSet(_) => (msg::NEW_SET, NLM_F_CREATE),
        Op::DeleteSet { .. } => (msg::DEL_SET, 0),
        Op::AddElement { .. } => (msg::NEW_ELEMENT, NLM_F_CREATE),
        Op::FlushSet { .. } | Op::DeleteElement { .. } => (msg::DEL_ELEMENT, 0),
        Op::AddCounter { .. } => (msg::NEW_OBJECT, NLM_F_CREATE),
        Op::DeleteCounter { .. } => (msg::DEL_OBJECT, 0),
    };
    let kind = SUBSYS_NFTABLES << 8 | kind;
    buf.message(kind, NLM_F_REQUEST | flags | ack, family as u8, 0, seq, |b| {
        b.text(1, table);
        match op {
            Op::AddTable => b.be32(2, 0),
            Op::DeleteTable | Op::FlushRules => {}
            Op::AddChain { name, base } => chain(b, name, base.as_ref()),
            Op::DeleteChain { name } => b.text(3, name),
            Op::FlushChain { name } => b.text(2, name),
            Op::AddRule { chain, exprs } => {
                b.text(2, chain);
                b.nest(4, |b| exprs.iter().for_each(|e| expression(b, family, e)));
            }
            Op::InsertRule { chain, exprs, comment } => {
                b.text(2, chain);
                b.nest(4, |b| exprs.iter().for_each(|e| expression(b, family, e)));
                b.attr(7, &comment_data(comment));
            }
            Op::DeleteRule { chain, handle } => {
                b.text(2, chain);
                b.be64(3, *handle);
            }
            Op::AddSet(set) => define_set(b, set, seq),
            Op::FlushSet { name } | Op::DeleteSet { name } => b.text(2, name),
            Op::AddCounter { name } => observe::counter_object(b, name, true),
            Op::DeleteCounter { name } => observe::counter_object(b, name, false),
            Op::AddElement { set, .. } | Op::DeleteElement { set, .. } => {
                b.text(2, set);
                b.nest(3, |b| {
                    for op in ops {
                        if let Op::AddElement { element, .. } | Op::DeleteElement { element, .. } = op {
                            elements(b, element);
                        }
                    }
                });
            }
        }
    });
}

fn chain(b: &mut Buf, name: &str, base: Option<&Base>) {
    b.text(3, name);
    if let Some(base) = base {
        b.nest(4, |b| {
            b.be32(1, base.hook as u32);
            b.be32(2, base.priority as u32);
        });
        b.be32(5, 1); // policy accept
        b.text(
            7,
            match base.kind {
                ChainKind::Filter => "filter",
                ChainKind::Nat => "nat",
            },
        );
    }
}

impl KeyType {
    /// The number by which the `nft` program knows the type, and its width in bytes.
    fn facts(self) -> (u32, u32) {
        match self {
            KeyType::Integer => (4, 4),
            // An integer of so many bytes.
            KeyType::Share => (4, SHARE),
            KeyType::Ipv4 => (7, 4),
            KeyType::Ipv6 => (8, 16),
            KeyType::Proto => (12, 1),
            KeyType::Port => (13, 2),
            KeyType::Interface => (41, INTERFACE_NAME as u32),
        }
    }
}

/// Concatenations pad each part to four bytes; a single part has its own width.
fn key_facts(types: &[KeyType]) -> (u32, u32) {
    match types {
        [one] => one.facts(),
        many => many.iter().fold((0, 0), |(kind, len), t| {
            let (k, l) = t.facts();
            (kind << 6 | k, len + l.div_ceil(4) * 4)
        }),
    }
}

fn define_set(b: &mut Buf, set: &Set, id: u32) {
    let (key_type, key_len) = key_facts(&set.key);
    let mut flags = 0;
    if set.data.is_some() {
        flags |= 0x8;
    }
    if set.dynamic_timeout_ms.is_some() {
        flags |= 0x10 | 0x20;
    }
    let ranges_of_parts = set.intervals && set.key.len() > 1;
    if set.intervals {
        flags |= 0x4;
    }
    if ranges_of_parts {
        flags |= 0x80;
    }
    b.text(2, &set.name);
    b.be32(3, flags);
    b.be32(4, key_type);
    b.be32(5, key_len);
    match &set.data {
        None => {}
        Some(DataType::Verdict) => {
            b.be32(6, 0xffff_ff00);
            b.be32(7, 4);
        }
        Some(DataType::Concat(types)) => {
            let (kind, len) = key_facts(types);
            b.be32(6, kind);
            b.be32(7, len);
        }
    }
    if ranges_of_parts {
        // The kernel searches each part on its own, and has to be told how wide they are.
        b.nest(9, |b| {
            b.nest(2, |b| {
                for part in &set.key {
                    b.nest(1, |b| b.be32(1, part.facts().1));
                }
            });
        });
    }
    b.be32(10, id);
    if set.key.first() == Some(&KeyType::Share) {
        b.attr(13, &NETWORK_ORDER);
    }
    if let Some(ms) = set.dynamic_timeout_ms {
        b.be64(11, ms);
    }
}

fn datum(d: &Datum) -> Vec<u8> {
    match d {
        Datum::Addr(IpAddr::V4(a)) => a.octets().to_vec(),
        Datum::Addr(IpAddr::V6(a)) => a.octets().to_vec(),
        Datum::Proto(p) => vec![*p],
        Datum::Port(p) => p.to_be_bytes().to_vec(),
        // numgen writes host order.
        Datum::Integer(i) => i.to_ne_bytes().to_vec(),
        // In network order: ranges are compared byte by byte.
        Datum::Share(owner, i) => [&owner.to_be_bytes()[..], &i.to_be_bytes()].concat(),
        Datum::Interface(name) => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(INTERFACE_NAME, 0);
            bytes
        }
    }
}

fn concat(data: &[Datum]) -> Vec<u8> {
    match data {
        [one] => datum(one),
        many => many
            .iter()
            .flat_map(|d| {
                let mut bytes = datum(d);
                bytes.resize(bytes.len().div_ceil(4) * 4, 0);
                bytes
            })
            .collect(),
    }
}

/// A range of one part is two elements, where it begins and where what is no longer in it begins; a range of several parts is
/// one element with two keys.
fn elements(b: &mut Buf, e: &Element) {
    match &e.last {
        Some(last) if e.key.len() == 1 => {
            b.nest(1, |b| {
                element(
                    b,
                    &Element {
                        last: None,
                        ..e.clone()
                    },
                )
            });
            if let Some(after) = successor(concat(last)) {
                b.nest(1, |b| {
                    b.nest(1, |b| b.attr(1, &after));
                    b.be32(3, 1); // the end of an interval
                });
            }
        }
        _ => b.nest(1, |b| element(b, e)),
    }
}

/// The next larger number of as many bytes.
fn successor(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    for byte in bytes.iter_mut().rev() {
        let (next, over) = byte.overflowing_add(1);
        *byte = next;
        if !over {
            return Some(bytes);
        }
    }
    None
}

fn comment_data(comment: &str) -> Vec<u8> {
    let mut data = vec![UDATA_COMMENT, comment.len() as u8 + 1];
    data.extend_from_slice(comment.as_bytes());
    data.push(0);
    data
}

fn element(b: &mut Buf, e: &Element) {
    let key = concat(&e.key);
    b.nest(1, |b| b.attr(1, &key));
    if let Some(last) = &e.last {
        let last = concat(last);
        b.nest(10, |b| b.attr(1, &last));
    }
    match &e.data {
        None => {}
        Some(ElementData::Verdict(v)) => b.nest(2, |b| verdict(b, v)),
        Some(ElementData::Concat(d)) => {
            let data = concat(d);
            b.nest(2, |b| b.attr(1, &data));
        }
    }
}

fn verdict(b: &mut Buf, v: &Verdict) {
    let (code, chain): (i32, Option<&str>) = match v {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(c) => (-3, Some(c)),
        Verdict::Goto(c) => (-4, Some(c)),
        Verdict::Return => (-5, None),
    };
    b.nest(2, |b| {
        b.be32(1, code as u32);
        if let Some(c) = chain {
            b.text(2, c);
        }
    });
}

fn expr(b: &mut Buf, name: &str, fill: impl FnOnce(&mut Buf)) {
    b.nest(1, |b| {
        b.text(1, name);
        b.nest(2, fill);
    });
}

fn load(b: &mut Buf, l: Load, reg: u32) {
    let payload = |b: &mut Buf, base: u32, offset: u32, len: u32| {
        expr(b, "payload", |b| {
            b.be32(1, reg);
            b.be32(2, base);
            b.be32(3, offset);
            b.be32(4, len);
        });
    };
    match l {
        Load::SourceAddr(Family::Ip6) => payload(b, 1, 8, 16),
        Load::SourceAddr(_) => payload(b, 1, 12, 4),
        Load::DestinationAddr(Family::Ip6) => payload(b, 1, 24, 16),
        Load::DestinationAddr(_) => payload(b, 1, 16, 4),
        Load::SourcePort => payload(b, 2, 0, 2),
        Load::DestinationPort => payload(b, 2, 2, 2),
        Load::IcmpType => payload(b, 2, 0, 1),
        Load::L4Proto => meta(b, 16, reg),
        Load::InputInterface => meta(b, 6, reg),
        Load::Random(modulus) => random(b, modulus, reg),
        Load::Share(owner, modulus) => {
            immediate(b, reg, &owner.to_be_bytes());
            random(b, modulus, reg + 2);
            expr(b, "byteorder", |b| {
                b.be32(1, reg + 2);
                b.be32(2, reg + 2);
                b.be32(3, 1); // to network order
                b.be32(4, 4);
                b.be32(5, 4);
            });
        }
    }
}

fn random(b: &mut Buf, modulus: u32, reg: u32) {
    expr(b, "numgen", |b| {
        b.be32(1, reg);
        b.be32(2, modulus);
        b.be32(3, 1);
        b.be32(4, 0);
    });
}

/// Loads a concatenation into consecutive 4-byte registers; returns the register to look up by.
fn loads(b: &mut Buf, list: &[Load]) -> u32 {
    let mut reg = REG32_00;
    for l in list {
        load(b, *l, reg);
        reg += match l {
            Load::SourceAddr(Family::Ip6) | Load::DestinationAddr(Family::Ip6) | Load::InputInterface => 4,
            Load::Share(..) => 3,
            _ => 1,
        };
    }
    REG32_00
}

fn meta(b: &mut Buf, key: u32, reg: u32) {
    expr(b, "meta", |b| {
        b.be32(2, key);
        b.be32(1, reg);
    });
}

fn compare(b: &mut Buf, reg: u32, cmp: Cmp, data: &[u8]) {
    expr(b, "cmp", |b| {
        b.be32(1, reg);
        b.be32(2, if cmp == Cmp::Eq { 0 } else { 1 });
        b.nest(3, |b| b.attr(1, data));
    });
}

fn bitwise(b: &mut Buf, reg: u32, mask: &[u8], xor: &[u8]) {
    expr(b, "bitwise", |b| {
        b.be32(1, reg);
        b.be32(2, reg);
        b.be32(3, mask.len() as u32);
        b.nest(4, |b| b.attr(1, mask));
        b.nest(5, |b| b.attr(1, xor));
    });
}

fn immediate(b: &mut Buf, reg: u32, data: &[u8]) {
    expr(b, "immediate", |b| {
        b.be32(1, reg);
        b.nest(2, |b| b.attr(1, data));
    });
}

fn conntrack(b: &mut Buf, key: u32, bits: u32) {
    expr(b, "ct", |b| {
        b.be32(2, key);
        b.be32(1, REG_1);
    });
    bitwise(b, REG_1, &bits.to_ne_bytes(), &[0; 4]);
    compare(b, REG_1, Cmp::Neq, &[0; 4]);
}

fn local(b: &mut Buf, flag: u32, cmp: Cmp) {
    expr(b, "fib", |b| {
        b.be32(3, flag);
        b.be32(2, 3); // address type
        b.be32(1, REG_1);
    });
    compare(b, REG_1, cmp, &2u32.to_ne_bytes()); // RTN_LOCAL
}

fn mark(b: &mut Buf, mask: u32, xor: u32) {
    meta(b, 3, REG_1);
    bitwise(b, REG_1, &mask.to_ne_bytes(), &xor.to_ne_bytes());
    expr(b, "meta", |b| {
        b.be32(2, 3);
        b.be32(3, REG_1);
    });
}

fn dnat(b: &mut Buf, family: Family, addr_reg: u32, port_reg: u32) {
    expr(b, "nat", |b| {
        b.be32(1, 1);
        b.be32(2, family as u32);
        b.be32(3, addr_reg);
        b.be32(4, addr_reg);
        b.be32(5, port_reg);
        b.be32(6, port_reg);
        b.be32(7, 3); // addresses and ports are given
    });
}

fn expression(b: &mut Buf, family: Family, e: &Expr) {
    match e {
        Expr::Match { load: l, cmp, value } => {
            load(b, *l, REG_1);
            compare(b, REG_1, *cmp, &datum(value));
        }
        Expr::MatchPrefix {
            load: l,
            cmp,
            addr,
            prefix,
        } => {
            load(b, *l, REG_1);
            let bytes = datum(&Datum::Addr(*addr));
            let mask: Vec<u8> = (0..bytes.len()).map(|i| prefix_byte(*prefix, i)).collect();
            bitwise(b, REG_1, &mask, &vec![0; bytes.len()]);
            let masked: Vec<u8> = bytes.iter().zip(&mask).map(|(a, m)| a & m).collect();
            compare(b, REG_1, *cmp, &masked);
        }
        Expr::DestinationLocal(cmp) => local(b, 2, *cmp),
        Expr::SourceLocal(cmp) => local(b, 1, *cmp),
        Expr::OutputName { cmp, prefix } => {
            meta(b, 7, REG_1);
            compare(b, REG_1, *cmp, prefix.as_bytes());
        }
        Expr::InputName { cmp, prefix } => {
            meta(b, 6, REG_1);
            compare(b, REG_1, *cmp, prefix.as_bytes());
        }
        Expr::MarkIs { mask, cmp, value } => {
            meta(b, 3, REG_1);
            bitwise(b, REG_1, &mask.to_ne_bytes(), &[0; 4]);
            compare(b, REG_1, *cmp, &value.to_ne_bytes());
        }
        // x | m = (x & !m) ^ m
        Expr::MarkOr(m) => mark(b, !m, *m),
        Expr::MarkXor(m) => mark(b, u32::MAX, *m),
        Expr::StateInvalid => conntrack(b, 0, 1),
        Expr::StateNew => conntrack(b, 0, 8),
        Expr::StateRelated => conntrack(b, 0, 4),
        Expr::Reply => {
            expr(b, "ct", |b| {
                b.be32(2, 1);
                b.be32(1, REG_1);
            });
            compare(b, REG_1, Cmp::Eq, &[1]);
        }
        Expr::Dnatted => conntrack(b, 2, 0x20),
        Expr::InSet { load, set, negate } => {
            let reg = loads(b, load);
            expr(b, "lookup", |b| {
                b.text(1, set);
                b.be32(2, reg);
                b.be32(5, u32::from(*negate));
            });
        }
        Expr::LookupVerdict { load, map } => {
            let reg = loads(b, load);
            expr(b, "lookup", |b| {
                b.text(1, map);
                b.be32(2, reg);
                b.be32(3, REG_VERDICT);
            });
        }
        Expr::Update { load, set, timeout_ms } => {
            let reg = loads(b, load);
            expr(b, "dynset", |b| {
                b.text(1, set);
                b.be32(3, 1);
                b.be32(4, reg);
                b.be64(6, *timeout_ms);
            });
        }
        Expr::Dnat(Nat::To { addr, port }) => {
            let family = if addr.is_ipv4() { Family::Ip } else { Family::Ip6 };
            immediate(b, REG_1, &datum(&Datum::Addr(*addr)));
            immediate(b, REG_1 + 1, &port.to_be_bytes());
            dnat(b, family, REG_1, REG_1 + 1);
        }
        Expr::Dnat(Nat::Map { family, load, map }) => {
            let reg = loads(b, load);
            expr(b, "lookup", |b| {
                b.text(1, map);
                b.be32(2, reg);
                b.be32(3, REG32_00);
            });
            let port = REG32_00 + if *family == Family::Ip6 { 4 } else { 1 };
            dnat(b, *family, REG32_00, port);
        }
        Expr::Masquerade => expr(b, "masq", |b| b.be32(1, 16)),
        Expr::Reject { tcp_reset } => expr(b, "reject", |b| {
            // Port unreachable has a number in each family, and one in a table of both.
            let (kind, code) = match family {
                Family::Ip => (0, 3),
                Family::Ip6 => (0, 4),
                Family::Inet => (2, 1),
            };
            b.be32(1, if *tcp_reset { 1 } else { kind });
            if !tcp_reset {
                b.attr(2, &[code]);
            }
        }),
        Expr::Counter(_) | Expr::Limit { .. } | Expr::Log { .. } => observe::expression(b, e),
        Expr::Verdict(v) => expr(b, "immediate", |b| {
            b.be32(1, REG_VERDICT);
            b.nest(2, |b| verdict(b, v));
        }),
    }
}

fn prefix_byte(prefix: u8, index: usize) -> u8 {
    let bits = (usize::from(prefix)).saturating_sub(index * 8).min(8);
    (0xff00_u16 >> bits) as u8
}
