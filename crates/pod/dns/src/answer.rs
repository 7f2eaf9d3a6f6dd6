//! From a query and the zone to a response. `None` means: not our name, forward it.

use crate::zone::{Endpoint, Port, ServiceFacts, Zone};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::net::IpAddr;

/// Seconds. Short: endpoints come and go.
const TTL: u32 = 5;
/// Seconds that a "no such name" may be kept.
const NEGATIVE_TTL: u32 = 5;

/// What a name stands for.
enum Found {
    /// These records (none: the name exists, but not with this type).
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// An alias to a name outside; it has to be looked up elsewhere.
    Alias(Record, String),
    NoSuchName,
    NotOurs,
}

/// A response, and perhaps a name that has yet to be looked up and appended.
pub struct Answer {
    pub message: Message,
    /// The target of an alias that points out of the zone.
    pub follow: Option<Name>,
}

/// Answers `request` from the zone; `None` when the name belongs to somebody else.
pub fn answer(zone: &Zone, request: &Message) -> Option<Answer> {
    let query = request.queries.first()?;
    let found = look_up(zone, query);
    let mut message = Message::response(request.metadata.id, request.metadata.op_code);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = true;
    message.add_query(query.clone());
    let mut follow = None;
    match found {
        Found::NotOurs => return None,
        Found::NoSuchName => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.add_authority(soa(zone)?);
        }
        Found::Records { answers, additionals } => {
            if answers.is_empty() {
                message.add_authority(soa(zone)?);
            }
            message.add_answers(answers);
            message.add_additionals(additionals);
        }
        Found::Alias(record, target) => {
            let target = Name::from_ascii(format!("{target}.")).ok()?;
            message.add_answer(record);
            if matches!(query.query_type(), RecordType::A | RecordType::AAAA) {
                match answer(zone, &question(&target, query.query_type())) {
                    // An alias to an alias is as far as this goes: services can point at each other in a circle.
                    Some(inner) if inner.follow.is_none() => {
                        message.add_answers(inner.message.answers);
                    }
                    Some(_) => {}
                    None => follow = Some(target),
                }
            }
        }
    }
    Some(Answer { message, follow })
}

/// A query of our own.
pub fn question(name: &Name, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    message
}

fn soa(zone: &Zone) -> Option<Record> {
    let name = Name::from_ascii(format!("{}.", zone.domain)).ok()?;
    let ns = Name::from_ascii(format!("ns.dns.{}.", zone.domain)).ok()?;
    let mail = Name::from_ascii(format!("hostmaster.{}.", zone.domain)).ok()?;
    let soa = SOA::new(ns, mail, 1, 7200, 1800, 86400, NEGATIVE_TTL);
    Some(Record::from_rdata(name, NEGATIVE_TTL, RData::SOA(soa)))
}

fn look_up(zone: &Zone, query: &Query) -> Found {
    let name = query.name().to_lowercase().to_ascii();
    let name = name.trim_end_matches('.');
    if name.ends_with(".in-addr.arpa") || name.ends_with(".ip6.arpa") {
        return reverse(zone, query);
    }
    let Some(rest) = name.strip_suffix(&zone.domain) else {
        return Found::NotOurs;
    };
    if rest.is_empty() {
        return apex(zone, query);
    }
    let Some(rest) = rest.strip_suffix('.') else {
        return Found::NotOurs;
    };
    let labels: Vec<&str> = rest.split('.').collect();
    match labels.as_slice() {
        ["dns-version"] => version(query),
        ["ns", "dns"] | ["dns"] | ["svc"] | ["pod"] => nothing(),
        [.., "pod"] => pod(&labels[..labels.len() - 1], query),
        [inner @ .., "svc"] => service(zone, inner, query),
        _ => Found::NoSuchName,
    }
}

fn nothing() -> Found {
    Found::Records {
        answers: Vec::new(),
        additionals: Vec::new(),
    }
}

fn records(answers: Vec<Record>) -> Found {
    Found::Records {
        answers,
        additionals: Vec::new(),
    }
}

fn apex(zone: &Zone, query: &Query) -> Found {
    match query.query_type() {
        RecordType::SOA => records(soa(zone).into_iter().collect()),
        _ => nothing(),
    }
}

fn version(query: &Query) -> Found {
    match query.query_type() {
        RecordType::TXT => {
            let text = RData::TXT(TXT::new(vec!["1.1.0".into()]));
            records(vec![Record::from_rdata(query.name().clone(), TTL, text)])
        }
        _ => nothing(),
    }
}

fn reverse(zone: &Zone, query: &Query) -> Found {
    let Some(ip) = query
        .name()
        .parse_arpa_name()
        .ok()
        .filter(|net| net.prefix_len() == net.max_prefix_len())
    else {
        return Found::NotOurs;
    };
    let names = zone.names_of(ip.addr());
    if names.is_empty() {
        return Found::NotOurs;
    }
    if query.query_type() != RecordType::PTR {
        return nothing();
    }
    let pointers = names.iter().filter_map(|n| Name::from_ascii(format!("{n}.")).ok());
    records(
        pointers
            .map(|n| Record::from_rdata(query.name().clone(), TTL, RData::PTR(PTR(n))))
            .collect(),
    )
}

/// `1-2-3-4.<namespace>.pod`: the address is in the name.
fn pod(labels: &[&str], query: &Query) -> Found {
    let ip: Option<IpAddr> = match labels {
        [dashed, _namespace] => dashed
            .replace('-', ".")
            .parse()
            .ok()
            .or_else(|| dashed.replace('-', ":").parse().ok()),
        _ => None,
    };
    match ip {
        Some(ip) => records(address(query, query.name(), ip).into_iter().collect()),
        None => Found::NoSuchName,
    }
}

fn address(query: &Query, name: &Name, ip: IpAddr) -> Option<Record> {
    let data = match (ip, query.query_type()) {
        (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => RData::A(A(ip)),
        (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => RData::AAAA(AAAA(ip)),
        _ => return None,
    };
    Some(Record::from_rdata(name.clone(), TTL, data))
}

fn any_address(name: &Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

fn service(zone: &Zone, labels: &[&str], query: &Query) -> Found {
    let (prefix, name, namespace) = match labels {
        [namespace] => {
            return if zone.has_namespace(namespace) {
                nothing()
            } else {
                Found::NoSuchName
            };
        }
        [prefix @ .., name, namespace] => (prefix, *name, *namespace),
        [] => return nothing(),
    };
    let Some(facts) = zone.service(namespace, name) else {
        return Found::NoSuchName;
    };
    match (prefix, facts) {
        ([], ServiceFacts::External { name: target }) => match Name::from_ascii(format!("{target}.")) {
            Ok(alias) => {
                let record = Record::from_rdata(query.name().clone(), TTL, RData::CNAME(CNAME(alias)));
                Found::Alias(record, target.clone())
            }
            Err(_) => Found::NoSuchName,
        },
        (_, ServiceFacts::External { .. }) => Found::NoSuchName,
        ([], ServiceFacts::ClusterIp { ips, ports }) => {
            if query.query_type() == RecordType::SRV {
                return srv(query, ports.iter().map(|p| (p, query.name().clone(), ips.clone())));
            }
            records(ips.iter().filter_map(|ip| address(query, query.name(), *ip)).collect())
        }
        ([], ServiceFacts::Headless { endpoints }) => {
            if endpoints.is_empty() {
                return Found::NoSuchName;
            }
            if query.query_type() == RecordType::SRV {
                return srv(query, endpoint_ports(query.name(), endpoints, |_| true));
            }
            records(
                endpoints
                    .iter()
                    .filter_map(|e| address(query, query.name(), e.ip))
                    .collect(),
            )
        }
        ([label], ServiceFacts::Headless { endpoints }) if !label.starts_with('_') => {
            let same: Vec<&Endpoint> = endpoints
                .iter()
                .filter(|e| e.label.eq_ignore_ascii_case(label))
                .collect();
            if same.is_empty() {
                return Found::NoSuchName;
            }
            records(same.iter().filter_map(|e| address(query, query.name(), e.ip)).collect())
        }
        ([port, protocol], _) if port.starts_with('_') && protocol.starts_with('_') => {
            named_port(zone, (name, namespace), facts, (&port[1..], &protocol[1..]), query)
        }
        _ => Found::NoSuchName,
    }
}

/// `_http._tcp.<service>`
fn named_port(
    zone: &Zone,
    (name, namespace): (&str, &str),
    facts: &ServiceFacts,
    (port, protocol): (&str, &str),
    query: &Query,
) -> Found {
    let Ok(service) = Name::from_ascii(format!("{name}.{namespace}.svc.{}.", zone.domain)) else {
        return Found::NoSuchName;
    };
    let wanted = |p: &Port| p.name.eq_ignore_ascii_case(port) && p.protocol.eq_ignore_ascii_case(protocol);
    let targets: Vec<(&Port, Name, Vec<IpAddr>)> = match facts {
        ServiceFacts::ClusterIp { ips, ports } => ports
            .iter()
            .filter(|p| wanted(p))
            .map(|p| (p, service.clone(), ips.clone()))
            .collect(),
        ServiceFacts::Headless { endpoints } => endpoint_ports(&service, endpoints, wanted).collect(),
        ServiceFacts::External { .. } => Vec::new(),
    };
    if targets.is_empty() {
        return Found::NoSuchName;
    }
    if query.query_type() == RecordType::SRV {
        srv(query, targets.into_iter())
    } else {
        nothing()
    }
}

fn endpoint_ports<'a>(
    service: &Name,
    endpoints: &'a [Endpoint],
    wanted: impl Fn(&Port) -> bool + 'a,
) -> impl Iterator<Item = (&'a Port, Name, Vec<IpAddr>)> + 'a {
    let service = service.clone();
    endpoints.iter().flat_map(move |e| {
        let target = service
            .prepend_label(e.label.as_str())
            .unwrap_or_else(|_| service.clone());
        let ports: Vec<&Port> = e.ports.iter().filter(|p| wanted(p)).collect();
        ports.into_iter().map(move |p| (p, target.clone(), vec![e.ip]))
    })
}

fn srv<'a>(query: &Query, targets: impl Iterator<Item = (&'a Port, Name, Vec<IpAddr>)>) -> Found {
    let mut answers = Vec::new();
    let mut additionals: Vec<Record> = Vec::new();
    let targets: Vec<_> = targets.collect();
    let weight = (100 / targets.len().max(1)).max(1) as u16;
    for (port, target, ips) in targets {
        let data = SRV::new(0, weight, port.number, target.clone());
        answers.push(Record::from_rdata(query.name().clone(), TTL, RData::SRV(data)));
        for ip in ips {
            let record = any_address(&target, ip);
            if !additionals.contains(&record) {
                additionals.push(record);
            }
        }
    }
    Found::Records { answers, additionals }
}
