//! What is to be forwarded, as it is written on the command line.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        })
    }
}

/// A pod's port, or a service's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    Number(u16),
    Name(String),
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remote::Number(number) => write!(f, "{number}"),
            Remote::Name(name) => f.write_str(name),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// 0: one that is free.
    pub local: u16,
    pub remote: Remote,
    pub protocol: Protocol,
}

impl Port {
    /// As it is told.
    pub fn remote(&self) -> String {
        match self.protocol {
            Protocol::Tcp => self.remote.to_string(),
            Protocol::Udp => format!("{}/udp", self.remote),
        }
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Port, String> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, protocol)) if protocol.eq_ignore_ascii_case("tcp") => (ports, Protocol::Tcp),
            Some((ports, protocol)) if protocol.eq_ignore_ascii_case("udp") => (ports, Protocol::Udp),
            Some((_, other)) => return Err(format!("{other} can't be forwarded: tcp and udp can")),
        };
        let (local, remote) = match ports.split_once(':') {
            Some((local, remote)) => (Some(local), remote),
            None => (None, ports),
        };
        let remote = match remote.parse() {
            Ok(0) => return Err("port 0 of a pod is no port".into()),
            Ok(number) => Remote::Number(number),
            Err(_) if remote.bytes().all(|b| b.is_ascii_digit()) => return Err(format!("{remote:?} is no port")),
            Err(_) if remote.contains(':') => return Err(format!("{remote:?} is no port")),
            Err(_) => Remote::Name(remote.to_owned()),
        };
        let local = match (local, &remote) {
            (Some(""), _) | (None, Remote::Name(_)) => 0,
            (Some(local), _) => local.parse().map_err(|_| format!("{local:?} is no port"))?,
            (None, Remote::Number(number)) => *number,
        };
        Ok(Port {
            local,
            remote,
            protocol,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_kubectl_reads_them_and_by_protocol() {
        let told = |text: &str| {
            let port: Port = text.parse()?;
            Ok::<_, String>(format!("{} {} {}", port.local, port.remote, port.protocol))
        };
        let table = [
            ("80", "80 80 TCP"),
            ("8080:80", "8080 80 TCP"),
            (":80", "0 80 TCP"),
            ("0:80/tcp", "0 80 TCP"),
            ("5353:53/udp", "5353 53 UDP"),
            ("53/UDP", "53 53 UDP"),
            (":dns/udp", "0 dns UDP"),
            ("http", "0 http TCP"),
        ];
        for (text, expected) in table {
            assert_eq!(told(text).unwrap(), expected, "{text}");
        }
        for wrong in ["", "0", "80:0", "65536", "x:80", "80:", "80/sctp", "1:2:3", "-1:80"] {
            assert!(told(wrong).is_err(), "{wrong}");
        }
    }
}
