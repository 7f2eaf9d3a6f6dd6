//! What only looks at packets: counters, limits, and what is told of a packet to a program that listens.

use super::*;

/// The kind of a counter among named objects.
pub(super) const COUNTER: u32 = 1;

pub(super) fn counter_object(b: &mut Buf, name: &str, comes: bool) {
    b.text(2, name);
    b.be32(3, COUNTER);
    if comes {
        b.nest(4, |b| {
            b.be64(1, 0);
            b.be64(2, 0);
        });
    }
}

pub(super) fn expression(b: &mut Buf, e: &Expr) {
    match e {
        Expr::Counter(name) => expr(b, "objref", |b| {
            b.be32(1, COUNTER);
            b.text(2, name);
        }),
        Expr::Limit { per_second, burst } => expr(b, "limit", |b| {
            b.be64(1, *per_second);
            b.be64(2, 1); // seconds
            b.be32(3, *burst);
            b.be32(4, 0); // packets
        }),
        Expr::Log { group, length, prefix } => expr(b, "log", |b| {
            b.attr(1, &group.to_be_bytes());
            b.text(2, prefix);
            b.be32(3, *length);
        }),
        _ => {}
    }
}
