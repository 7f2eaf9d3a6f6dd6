//! What decoders do with damaged bytes: they read them or refuse them, within a bound of time, and never end the program.
//!
//! Each target begins with samples and damages them at random. A second each in the gate, from one seed; `make fuzz` gives each
//! minutes, from a seed that the clock draws. A failure says the seed and the bytes (`KEELSON_FUZZ_SEED` repeats it).
#![allow(clippy::unwrap_used)]

mod samples;

use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{Format, Strictness, decode_text, json, proto};
use keelson_api::{Quantity, SchemaRef, Value};
use keelson_machinery::apply::Set;
use keelson_machinery::cel;
use keelson_machinery::jsonpath::JsonPath;
use keelson_machinery::patch::{json_patch, merge_patch, strategic};
use keelson_machinery::selector::{FieldSelector, LabelSelector};
use keelson_pki::jwt::keyset::{KeySet, Signed};
use keelson_pki::x509::{Certificate, Request};
use keelson_pki::{BootstrapToken, Kubeconfig, ServiceAccountKeys};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// One input takes no longer than this, on a machine that does other things too.
const LONGEST: Duration = Duration::from_secs(20);
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// Bytes changed, cut out, doubled, and put in from another sample.
    fn damaged(&mut self, sample: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = sample.to_vec();
        for _ in 0..1 + self.below(8) {
            if bytes.is_empty() {
                break;
            }
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(64)).min(bytes.len());
            match self.below(6) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.below(256) as u8,
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let piece = bytes[at..end].repeat(1 + self.below(3));
                    drop(bytes.splice(at..at, piece));
                }
                4 => {
                    let from = self.below(other.len());
                    let to = (from + 1 + self.below(32)).min(other.len());
                    drop(bytes.splice(at..at, other[from..to].iter().copied()));
                }
                _ => bytes.insert(at, b"{}[]():,\"'\\\n &*-#!|>=%.0\xff"[self.below(25)]),
            }
        }
        bytes
    }
}

fn pod() -> SchemaRef {
    builtin_kind_at("v1", "Pod").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(bytes: &[u8]) -> Option<Value> {
    let read = decode_text(bytes, Format::Json, None, Strictness::Lenient);
    read.ok().map(|d| d.value)
}

fn json_documents(bytes: &[u8]) {
    for schema in [None, Some(&pod())] {
        if let Ok(read) = decode_text(bytes, Format::Json, schema, Strictness::Report) {
            // What is read can be written, and is read again as the same.
            let written = json::encode(&read.value);
            let again = decode_text(&written, Format::Json, None, Strictness::Lenient).unwrap();
            assert_eq!(json::encode(&again.value), written);
        }
    }
}

fn yaml_documents(bytes: &[u8]) {
    let _ = decode_text(bytes, Format::Yaml, Some(&pod()), Strictness::Report);
}

fn protobuf(bytes: &[u8]) {
    let _ = proto::decode_message(bytes, &pod());
    let mut out = Vec::new();
    let _ = proto::json_members(bytes, &pod(), 7, &mut out);
    let _ = proto::open_watch_event(bytes);
    if let Ok(envelope) = proto::open(bytes) {
        let _ = envelope.decode(&pod());
    }
}

fn patches(bytes: &[u8]) {
    let document = read(samples::POD.as_bytes()).unwrap();
    let Some(patch) = read(bytes) else { return };
    let _ = json_patch::apply(&document, &patch);
    let _ = merge_patch::apply(&document, &patch);
    let _ = strategic::apply(&document, &patch, &pod());
    let _ = Set::from_value(&patch);
}

fn expressions(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(program) = cel::compile(&text, &cel::Env::default()) {
        let none: BTreeMap<&str, cel::Val> = BTreeMap::new();
        let _ = program.eval(&none, 100_000);
    }
    if let Ok(selector) = cel::device::Selector::compile(&text) {
        let device = cel::device::Device {
            driver: "d.example.com",
            is_shared: true,
            attributes: &BTreeMap::from([
                ("name".to_owned(), cel::device::Attribute::Text("a".into())),
                (
                    "x.example.com/v".to_owned(),
                    cel::device::Attribute::Version("1.2.3".into()),
                ),
            ]),
            capacity: &Quantity::parse("1Gi")
                .map(|memory| BTreeMap::from([("memory".to_owned(), memory)]))
                .unwrap(),
        };
        let _ = selector.matches(device);
    }
}

fn selectors(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(selector) = LabelSelector::parse(&text) {
        // It is written as it is read.
        assert_eq!(LabelSelector::parse(&selector.to_string()).as_ref(), Ok(&selector));
    }
    let _ = FieldSelector::parse(&text);
    let _ = JsonPath::parse(&text).map(|path| path.find(&Value::Null).len());
}

fn small_texts(bytes: &[u8]) {
    let text = text(bytes);
    let _ = Quantity::parse(&text);
    let _ = text.parse::<BootstrapToken>();
    if let Ok(schedule) = keelson_cron::Schedule::parse(&text, jiff::tz::TimeZone::UTC) {
        let _ = schedule.next(keelson_clock::now());
    }
}

fn certificates(bytes: &[u8]) {
    if let Ok(request) = Request::from_der(bytes) {
        let _ = request.check_signature();
    }
    let _ = Request::from_pem(bytes);
    if let Ok(certificate) = Certificate::from_der(bytes) {
        let _ = certificate.check_signature(certificate.key.as_ref());
    }
}

fn tokens(bytes: &[u8]) {
    let text = text(bytes);
    let _ = Signed::parse(&text);
    let _ = ServiceAccountKeys::claimed_issuer(&text);
    let _ = KeySet::parse(bytes);
    let keys = samples::keys();
    // Whatever else is changed, nobody has signed it.
    if !samples::tokens().contains(&text) {
        assert!(
            keys.verify(&text).is_err() && keys.verify_legacy(&text).is_err(),
            "a forged token counts"
        );
    }
}

fn kubeconfigs(bytes: &[u8]) {
    let _ = Kubeconfig::parse(&text(bytes), Path::new("/nonexistent"));
}

type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

const TARGETS: &[Target] = &[
    ("JSON", json_documents, samples::json),
    ("YAML", yaml_documents, samples::yaml),
    ("protobuf", protobuf, samples::protobuf),
    ("patches", patches, samples::patches),
    ("CEL", expressions, samples::expressions),
    ("selectors and paths", selectors, samples::selectors),
    ("quantities, schedules, tokens", small_texts, samples::small_texts),
    ("certificates and requests", certificates, samples::certificates),
    ("JWT", tokens, samples::jwt),
    ("kubeconfigs", kubeconfigs, samples::kubeconfigs),
];

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn damaged_bytes_are_read_or_refused() {
    let long = variable("KEELSON_FUZZ_SECONDS");
    let drawn = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64
            | 1
    };
    let seed = variable("KEELSON_FUZZ_SEED").unwrap_or_else(|| if long.is_some() { drawn() } else { SEED });
    let time = long.map_or(Duration::from_secs(1), Duration::from_secs);
    for (name, target, samples) in TARGETS {
        let (samples, mut random, end) = (samples(), Random(seed), Instant::now() + time);
        samples.iter().for_each(|sample| target(sample));
        let mut rounds = 0u64;
        while Instant::now() < end {
            rounds += 1;
            let (sample, other) = (random.below(samples.len()), random.below(samples.len()));
            let bytes = random.damaged(&samples[sample], &samples[other]);
            let begun = Instant::now();
            let done = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
            let shown = || {
                format!(
                    "{name}, seed {seed}, round {rounds}: {:?}",
                    String::from_utf8_lossy(&bytes)
                )
            };
            assert!(done.is_ok(), "{}", shown());
            assert!(begun.elapsed() < LONGEST, "{:?}: {}", begun.elapsed(), shown());
        }
        println!("{name}: {rounds} rounds, seed {seed}");
        assert!(rounds > 10, "{name}");
    }
}
