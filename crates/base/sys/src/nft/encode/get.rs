//! Requests that read.

use super::*;

const NLM_F_DUMP: u16 = 0x300;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_GENERATION: u16 = 16;
const GET_OBJECT: u16 = 19;

pub fn generation() -> Vec<u8> {
    let mut buf = Buf::default();
    buf.message(SUBSYS_NFTABLES << 8 | GET_GENERATION, NLM_F_REQUEST, 0, 0, 1, |_| {});
    buf.0
}

pub fn chains() -> Vec<u8> {
    let mut buf = Buf::default();
    buf.message(
        SUBSYS_NFTABLES << 8 | GET_CHAIN,
        NLM_F_REQUEST | NLM_F_DUMP,
        0,
        0,
        1,
        |_| {},
    );
    buf.0
}

pub fn rules(family: Family, table: &str, chain: &str) -> Vec<u8> {
    let mut buf = Buf::default();
    let kind = SUBSYS_NFTABLES << 8 | GET_RULE;
    buf.message(kind, NLM_F_REQUEST | NLM_F_DUMP, family as u8, 0, 1, |b| {
        b.text(1, table);
        b.text(2, chain);
    });
    buf.0
}

/// The sets of a table, without their elements.
pub fn sets(family: Family, table: &str) -> Vec<u8> {
    let mut buf = Buf::default();
    let kind = SUBSYS_NFTABLES << 8 | GET_SET;
    buf.message(kind, NLM_F_REQUEST | NLM_F_DUMP, family as u8, 0, 1, |b| {
        b.text(1, table)
    });
    buf.0
}

/// The named counters of a table.
pub fn counters(family: Family, table: &str) -> Vec<u8> {
    let mut buf = Buf::default();
    let kind = SUBSYS_NFTABLES << 8 | GET_OBJECT;
    buf.message(kind, NLM_F_REQUEST | NLM_F_DUMP, family as u8, 0, 1, |b| {
        b.text(1, table);
        b.be32(3, observe::COUNTER);
    });
    buf.0
}
