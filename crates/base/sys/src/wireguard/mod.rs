//! WireGuard devices, by the kernel's generic netlink: keys and peers read and set. Links are made and removed elsewhere.
//!
//! All calls block for as long as the kernel works, and act on the network namespace of the calling thread. Private keys go to the
//! kernel and never come back: what it has is told by the public key. The kernel also computes that one ([`public_key`]), so that
//! there is no second implementation of the curve.

mod message;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr as Port};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The link that is made for a moment in a namespace of its own.
const PROBE: &str = "keelson-probe";

/// By which a node is known: 32 bytes, as `wg` writes them (base64).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// Has no form that a log could show, and is wiped when it goes.
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// A new one, from the kernel's random numbers, once they are good.
    pub fn generate() -> io::Result<PrivateKey> {
        let mut key = PrivateKey([0; 32]);
        // SAFETY: the buffer is as long as said, and lives through the call.
        let got = unsafe { libc::getrandom(key.0.as_mut_ptr().cast(), key.0.len(), 0) };
        match got {
            32 => Ok(key),
            0.. => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub fn read(text: &str) -> Option<PrivateKey> {
        decode(text.trim()).map(PrivateKey)
    }

    /// As it is written to a file that only its owner can read.
    pub fn secret_text(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        for byte in &mut self.0 {
            // SAFETY: a valid place; volatile, so that it isn't left out as a write that nobody reads.
            unsafe { std::ptr::write_volatile(byte, 0) };
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no WireGuard key: 32 bytes in base64 are one")]
pub struct NoKey;

impl FromStr for PublicKey {
    type Err = NoKey;
    fn from_str(text: &str) -> Result<PublicKey, NoKey> {
        decode(text).map(PublicKey).ok_or(NoKey)
    }
}

/// A range of addresses: the first one, and how many bits are the range's.
pub type Range = (IpAddr, u8);

/// What a device has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// `None`: it has no private key.
    pub key: Option<PublicKey>,
    pub port: u16,
    pub peers: BTreeMap<PublicKey, Peer>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Where it is reached: as it was set, or where it was last heard from.
    pub endpoint: Option<SocketAddr>,
    /// Whose packets go to it, and are believed to come from it.
    pub ranges: BTreeSet<Range>,
    /// Seconds since 1970; 0: never.
    pub last_handshake: i64,
}

/// One change.
pub enum Change<'a> {
    /// The device's own key and port. All that is agreed with others under another key ends.
    Own {
        key: &'a PrivateKey,
        port: u16,
    },
    /// A peer as it is to be. Ranges that another peer has are taken from it, in the same moment.
    Peer {
        key: PublicKey,
        endpoint: SocketAddr,
        ranges: &'a BTreeSet<Range>,
    },
    Remove(PublicKey),
}

/// What the device `link` has.
pub fn read(link: &str) -> io::Result<Device> {
    let generic = Generic::open()?;
    let mut device = Device::default();
    let mut last = None;
    exchange(&generic.socket, &message::get(generic.family, link), |payload| {
        message::add(&mut device, &mut last, payload);
    })?;
    Ok(device)
}

/// Changes the device `link`.
pub fn change(link: &str, change: &Change) -> io::Result<()> {
    let generic = Generic::open()?;
    exchange(&generic.socket, &message::set(generic.family, link, change), |_| {})
}

/// The public key of a private one.
pub fn public_key(key: &PrivateKey) -> io::Result<PublicKey> {
    apart(|| {
        change(PROBE, &Change::Own { key, port: 0 })?;
        let key = read(PROBE)?.key;
        key.ok_or_else(|| io::Error::other("the kernel tells no public key"))
    })
}

/// Whether the kernel has WireGuard: tried in a namespace of its own, so that nothing of the machine changes.
pub fn available() -> io::Result<()> {
    apart(|| read(PROBE).map(drop))
}

/// Does something with a device in a network namespace that ends with it.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let walk = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        let route = open(NETLINK_ROUTE)?;
        exchange(&route, &message::new_link(PROBE), |_| {})?;
        work()
    };
    std::thread::scope(|scope| {
        let done = scope.spawn(walk).join();
        done.unwrap_or_else(|_| Err(io::Error::other("the thread of the namespace panicked")))
    })
}

fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&Port::new(0, 0))?;
    Ok(socket)
}

struct Generic {
    socket: Socket,
    /// The number that the family `wireguard` has in this kernel.
    family: u16,
}

impl Generic {
    fn open() -> io::Result<Generic> {
        let socket = open(NETLINK_GENERIC)?;
        let mut family = None;
        exchange(&socket, &message::family(), |payload| {
            family = message::family_in(payload)
        })?;
        match family {
            Some(family) => Ok(Generic { socket, family }),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Sends one request and reads to the end of its answer.
fn exchange(socket: &Socket, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    socket.send(request, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        for (kind, payload) in message::messages(&answer) {
            match kind {
                message::DONE | message::ERROR => return message::outcome(payload),
                _ => each(payload),
            }
        }
    }
}

/// 32 bytes are one, in the one form that base64 has for them.
fn decode(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_form() {
        let text = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
        let key: PublicKey = text.parse().unwrap();
        assert_eq!((key.0[0], key.0[31], key.to_string().as_str()), (0x1c, 0x4c, text));
        for wrong in [
            "",
            "=",
            "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8yky=",
            &text[..43],
            "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8y-w=",
        ] {
            assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
        }
        let (one, two) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        assert_ne!(one.secret_text(), two.secret_text());
        assert_eq!(
            PrivateKey::read(&one.secret_text()).unwrap().secret_text(),
            one.secret_text()
        );
    }

    /// Through the kernel, where it has WireGuard: the key pair is RFC 7748's (section 6.1).
    #[test]
    fn the_kernel_computes_public_keys() {
        if let Err(error) = available() {
            eprintln!("not tried: this kernel has no WireGuard ({error})");
            return;
        }
        let private = PrivateKey::read("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        let public = public_key(&private).unwrap();
        assert_eq!(public.to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }
}
