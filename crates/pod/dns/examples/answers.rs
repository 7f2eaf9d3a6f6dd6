//! How many questions for names of a cluster one core answers, and how long each takes: from the bytes of a question to those
//! of its answer, without sockets. `answers SERVICES`.

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use k8s_openapi::api::core::v1::Service;
use keelson_dns::answer::answer;
use keelson_dns::zone::Zone;
use serde_json::json;
use std::time::Instant;

const QUESTIONS: usize = 200_000;

fn main() -> anyhow::Result<()> {
    let services: usize = std::env::args().nth(1).unwrap_or_else(|| "10000".into()).parse()?;
    let mut zone = Zone::empty("cluster.local");
    for n in 0..services {
        let ip = std::net::Ipv4Addr::from(0x0a60_0001 + n as u32);
        let service: Service = serde_json::from_value(json!({
            "metadata": {"namespace": format!("ns-{}", n % 100), "name": format!("web-{n}")},
            "spec": {"clusterIP": ip, "ports": [{"port": 80, "protocol": "TCP"}]},
        }))?;
        zone.set(&format!("ns-{}", n % 100), &format!("web-{n}"), Some(&service), &[]);
    }
    // As a resolver with `ndots:5` asks: the name first with its own namespace's suffix, which is none, then right.
    let question = |k: usize| -> anyhow::Result<Vec<u8>> {
        let n = k * 7919 % services;
        let wrong = if k.is_multiple_of(2) {
            "shop.svc.cluster.local."
        } else {
            ""
        };
        let name = Name::from_ascii(format!("web-{n}.ns-{}.svc.cluster.local.{wrong}", n % 100))?;
        let mut message = Message::query();
        message.add_query(Query::query(name, RecordType::A));
        Ok(message.to_vec()?)
    };
    let questions: Vec<Vec<u8>> = (0..1000).map(question).collect::<anyhow::Result<_>>()?;
    let mut times = Vec::with_capacity(QUESTIONS);
    let (begin, mut bytes) = (Instant::now(), 0);
    for k in 0..QUESTIONS {
        let one = Instant::now();
        let request = Message::from_vec(&questions[k % questions.len()])?;
        if let Some(answer) = answer(&zone, &request) {
            bytes += answer.message.to_vec()?.len();
        }
        times.push(one.elapsed());
    }
    let took = begin.elapsed();
    times.sort();
    anyhow::ensure!(bytes > QUESTIONS * 12, "answers have at least a head");
    println!(
        "{services} services: {:.0} answers/s, p50 {:?}, p99 {:?}",
        QUESTIONS as f64 / took.as_secs_f64(),
        times[QUESTIONS / 2],
        times[QUESTIONS * 99 / 100]
    );
    Ok(())
}
