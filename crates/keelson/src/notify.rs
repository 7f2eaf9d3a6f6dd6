//! Words to the service manager: a datagram to the socket that it named, if it named one.

use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

fn tell(message: &str) {
    if let Err(error) = try_tell(message, None)
        && error.kind() != ErrorKind::Unsupported
    {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// Fails as unsupported where none has named a socket, and where the manager takes nothing for so long.
pub fn try_tell(message: &str, patience: Option<Duration>) -> io::Result<()> {
    let path = keelson_sys::handed::said("NOTIFY_SOCKET");
    let path = path.ok_or_else(|| io::Error::new(ErrorKind::Unsupported, "NOTIFY_SOCKET is not set"))?;
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(patience)?;
    socket.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

/// By when every component has asked for the sockets that it listens on.
const SETTLED: Duration = Duration::from_secs(60);

pub fn ready() {
    tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        let unused = keelson_sys::handed::release();
        if !unused.is_empty() {
            tracing::info!(?unused, "sockets of the process before that nobody listens on any more");
        }
    });
    tell("READY=1");
}

pub fn stopping() {
    tell("STOPPING=1");
}
