//! Ports of a pod's containers that get in each other's way.

use super::pod::containers;
use super::{Errs, MOST, s};
use keelson_api::Map;

struct Port<'a> {
    path: String,
    port: &'a Map,
}

impl Port<'_> {
    fn host_port(&self) -> i64 {
        self.port.int("hostPort").unwrap_or(0)
    }
    fn host_ip(&self) -> &str {
        s(self.port, "hostIP")
    }
    fn same_target(&self, other: &Port) -> bool {
        self.port.int("containerPort") == other.port.int("containerPort")
            && s(self.port, "protocol") == s(other.port, "protocol")
    }
    /// As Go prints it.
    fn shown(&self) -> String {
        let text = |key: &str| s(self.port, key).to_string();
        format!(
            "{{Name:{} HostPort:{} ContainerPort:{} Protocol:{} HostIP:{}}}",
            text("name"),
            self.host_port(),
            self.port.int("containerPort").unwrap_or(0),
            text("protocol"),
            text("hostIP")
        )
    }
}

pub fn of(e: &mut Errs, spec: &Map) {
    let mut ports: Vec<Port> = Vec::new();
    containers(e, spec, |e, container| {
        for (i, port) in container.arr("ports").into_iter().flatten().enumerate() {
            if let Some(port) = port.as_object()
                && ports.len() < MOST
            {
                let path = e.at(&format!("ports[{i}]"));
                ports.push(Port { path, port });
            }
        }
    });
    for (i, port) in ports.iter().enumerate() {
        if e.list.len() >= MOST {
            return;
        }
        let mut warn = |text: String| e.remark(format!("{}: {text}", port.path));
        if !port.host_ip().is_empty() && port.host_port() == 0 {
            warn(format!("hostIP set without hostPort: {}", port.shown()));
        }
        for other in ports[..i].iter().filter(|other| port.same_target(other)) {
            let (a, b) = (port.host_ip(), other.host_ip());
            if a == b && port.host_port() == other.host_port() {
                warn(format!("duplicate port definition with {}", other.path));
            } else if port.host_port() == 0 || other.host_port() == 0 {
                warn(format!("overlapping port definition with {}", other.path));
            } else if port.host_port() == other.host_port() && a.is_empty() != b.is_empty() {
                warn(format!("dangerously ambiguous port definition with {}", other.path));
            }
        }
    }
    for (i, port) in ports.iter().enumerate() {
        let name = s(port.port, "name");
        if let Some(other) = ports[..i]
            .iter()
            .find(|other| !name.is_empty() && s(other.port, "name") == name)
        {
            e.remark(format!(
                "{}: duplicate port name {name:?} with {other}, services and probes that select ports by name will use {other}",
                port.path,
                other = other.path
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn a_request_full_of_ports_costs_little() {
        let port = value!({"containerPort": 80, "protocol": "TCP"});
        let ports = keelson_api::Value::Array(vec![port; 40_000]);
        let spec = value!({"containers": [{"name": "c", "ports": ports}]});
        let (mut e, began) = (Errs::default(), std::time::Instant::now());
        of(&mut e, spec.as_object().expect("a map"));
        assert_eq!(e.list.len(), MOST);
        // Compared each with each it would be minutes; a busy machine is slow, too.
        assert!(
            began.elapsed() < std::time::Duration::from_secs(30),
            "{:?}",
            began.elapsed()
        );
    }
}
