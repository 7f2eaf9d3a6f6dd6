//! What a TCP connection can be asked for beyond the usual: signatures of its segments (RFC 2385), and how far they may come from.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

/// As the kernel has room.
pub const LONGEST_PASSWORD: usize = 80;

/// The kernel's `struct tcp_md5sig`.
#[repr(C)]
struct Signature {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    link: u32,
    key: [u8; LONGEST_PASSWORD],
}

/// All segments to and from this address are signed with the password, others from there dropped. To be said before connecting.
pub fn sign(socket: &impl AsFd, address: IpAddr, password: &[u8]) -> io::Result<()> {
    // SAFETY: a C struct of numbers and arrays of them, of which zeroes are a value.
    let mut signature: Signature = unsafe { zeroed() };
    let room = signature.key.get_mut(..password.len());
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(password);
    signature.key_length = password.len() as u16;
    let storage: *mut libc::sockaddr_storage = &raw mut signature.address;
    match address {
        IpAddr::V4(ip) => {
            // SAFETY: the storage is made for every kind of address, and aligned for it.
            let to = unsafe { &mut *storage.cast::<libc::sockaddr_in>() };
            to.sin_family = libc::AF_INET as libc::sa_family_t;
            to.sin_addr.s_addr = u32::from(ip).to_be();
        }
        IpAddr::V6(ip) => {
            // SAFETY: as above.
            let to = unsafe { &mut *storage.cast::<libc::sockaddr_in6>() };
            to.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            to.sin6_addr.s6_addr = ip.octets();
        }
    }
    set(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &signature).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) => io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel doesn't sign TCP segments (CONFIG_TCP_MD5SIG)",
        ),
        _ => error,
    })
}

/// How many hops what is sent may pass, and the number of hops that what comes must have left.
pub fn set_hops(socket: &impl AsFd, v6: bool, hops: Option<u8>, least: Option<u8>) -> io::Result<()> {
    let (level, of_sent, of_heard) = match v6 {
        true => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_MINHOPCOUNT),
        false => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_MINTTL),
    };
    for (name, value) in [(of_sent, hops), (of_heard, least)] {
        if let Some(value) = value {
            set(socket, level, name, &libc::c_int::from(value))?;
        }
    }
    Ok(())
}

fn set<T>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads a value of that many bytes, which lives until after the call.
    let done = unsafe {
        libc::setsockopt(
            socket,
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener};
    use std::time::Duration;

    #[tokio::test]
    async fn only_who_knows_the_password_gets_through() {
        for ip in ["127.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap()) {
            let listener = TcpListener::bind((ip, 0)).unwrap();
            sign(&listener, ip, b"of both").unwrap();
            let to = listener.local_addr().unwrap();
            let connect = async |password: &'static [u8], least: Option<u8>| {
                let socket = match to {
                    SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4().unwrap(),
                    SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6().unwrap(),
                };
                sign(&socket, ip, password).unwrap();
                set_hops(&socket, to.is_ipv6(), Some(255), least).unwrap();
                let connected = tokio::time::timeout(Duration::from_millis(300), socket.connect(to)).await;
                connected.is_ok_and(|connected| connected.is_ok())
            };
            assert!(!connect(b"of another", None).await);
            assert!(connect(b"of both", None).await);
            set_hops(&listener, to.is_ipv6(), Some(254), None).unwrap();
            assert!(
                !connect(b"of both", Some(255)).await,
                "what answers comes from too far away"
            );
            set_hops(&listener, to.is_ipv6(), Some(255), None).unwrap();
            assert!(connect(b"of both", Some(255)).await);
        }
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        assert!(sign(&socket, "127.0.0.1".parse().unwrap(), &[1; 81]).is_err());
    }
}
