//! One batch over one netlink socket, answered before this returns.

use super::encode::batch;
use super::{Family, Op};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("nftables socket: {0}")]
    Socket(#[from] io::Error),
    #[error("nftables refused `{op}`: {error}")]
    Refused { op: String, error: io::Error },
}

const NLMSG_ERROR: u16 = 2;

/// Applies all of `ops` to `table`, or none. Blocks for as long as the kernel works (well under a millisecond for
/// ordinary changes); acts on the network namespace of the calling thread.
pub fn apply(family: Family, table: &str, ops: &[Op]) -> Result<(), NftError> {
    if ops.is_empty() {
        return Ok(());
    }
    let bytes = batch(family, table, ops);
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    crate::net::grow_send_buffer(&socket, bytes.len() + 4096)?;
    socket.send(&bytes, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while rest.len() >= 20 {
            let len = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            let seq = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]) as usize;
            if kind == NLMSG_ERROR {
                let code = i32::from_ne_bytes([rest[16], rest[17], rest[18], rest[19]]);
                if code != 0 {
                    let op = seq.checked_sub(1).and_then(|i| ops.get(i));
                    let op = op.map_or_else(|| "the batch".to_string(), Op::to_string);
                    return Err(NftError::Refused {
                        op,
                        error: io::Error::from_raw_os_error(-code),
                    });
                }
                if seq == ops.len() {
                    return Ok(());
                }
            }
            rest = rest.get(len.max(16).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
