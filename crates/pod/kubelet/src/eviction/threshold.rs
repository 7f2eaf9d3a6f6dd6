//! Signals, and the amounts below which pods are ended: as `KubeletConfiguration` says them, and judged against a look at the
//! machine. Pure.

use crate::disks::{Disk, Disks};
use crate::host::FsStats;
use keelson_api::quantity::Quantity;
use std::collections::BTreeMap;
use std::time::Duration;

/// In the order in which they are relieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    Memory,
    /// Of what is left to all pods together, where that is enforced: its thresholds are those of memory.
    PodsMemory,
    Disk,
    ImageDisk,
    /// Where containers write, if that is a disk of its own: its thresholds are those of the node's.
    LayerDisk,
    Inodes,
    ImageInodes,
    LayerInodes,
    Pids,
}

const NAMES: [(&str, Signal); 9] = [
    ("memory.available", Signal::Memory),
    ("allocatableMemory.available", Signal::PodsMemory),
    ("nodefs.available", Signal::Disk),
    ("imagefs.available", Signal::ImageDisk),
    ("containerfs.available", Signal::LayerDisk),
    ("nodefs.inodesFree", Signal::Inodes),
    ("imagefs.inodesFree", Signal::ImageInodes),
    ("containerfs.inodesFree", Signal::LayerInodes),
    ("pid.available", Signal::Pids),
];

impl Signal {
    fn parse(name: &str) -> Result<Signal, String> {
        let found = NAMES.iter().find(|(n, s)| *n == name && s.margin_of() == *s);
        found.map(|(_, s)| *s).ok_or_else(|| match name {
            "containerfs.available" | "containerfs.inodesFree" | "allocatableMemory.available" => {
                format!("eviction signal {name} can't be set: it follows from the others")
            }
            _ => format!("unsupported eviction signal {name}"),
        })
    }

    /// Upstream's name of it.
    pub fn name(self) -> &'static str {
        let found = NAMES.iter().find(|(_, s)| *s == self);
        found.map_or("", |(name, _)| name)
    }

    pub fn condition(self) -> &'static str {
        match self {
            Signal::Memory | Signal::PodsMemory => "MemoryPressure",
            Signal::Pids => "PIDPressure",
            _ => "DiskPressure",
        }
    }

    pub fn resource(self) -> &'static str {
        match self {
            Signal::Memory | Signal::PodsMemory => "memory",
            Signal::Disk | Signal::ImageDisk | Signal::LayerDisk => "ephemeral-storage",
            Signal::Inodes | Signal::ImageInodes | Signal::LayerInodes => "inodes",
            Signal::Pids => "pids",
        }
    }

    /// By which signal's threshold it is too little, and by whose margin enough again.
    fn margin_of(self) -> Signal {
        match self {
            Signal::PodsMemory => Signal::Memory,
            Signal::LayerDisk => Signal::Disk,
            Signal::LayerInodes => Signal::Inodes,
            other => other,
        }
    }

    /// The disk that is meant.
    pub fn disk(self, disks: &Disks) -> Option<Disk> {
        match self {
            Signal::Disk | Signal::Inodes => Some(Disk::Node),
            Signal::ImageDisk | Signal::ImageInodes => Some(disks.images),
            Signal::LayerDisk | Signal::LayerInodes => Some(disks.layers),
            Signal::Memory | Signal::PodsMemory | Signal::Pids => None,
        }
    }

    /// Whether removing what nobody needs may help.
    pub fn is_disk(self) -> bool {
        self.condition() == "DiskPressure"
    }
}

/// A number of bytes, inodes or processes, or a part of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    Number(u64),
    Percent(f64),
}

impl Amount {
    /// `None`: never.
    fn parse(signal: Signal, text: &str) -> Result<Option<Amount>, String> {
        let name = signal.name();
        let Some(percent) = text.strip_suffix('%') else {
            let quantity = Quantity::parse(text).map_err(|e| format!("eviction threshold {name}: {text}: {e}"))?;
            return match u64::try_from(quantity.value()) {
                Ok(n) if n > 0 => Ok(Some(Amount::Number(n))),
                _ => Err(format!("eviction threshold {name} must be positive: {text}")),
            };
        };
        match percent.parse::<f64>() {
            Ok(p) if p < 0.0 => Err(format!("eviction percentage threshold {name} must be >= 0%: {text}")),
            Ok(p) if p > 100.0 => Err(format!("eviction percentage threshold {name} must be <= 100%: {text}")),
            Ok(p) if p.is_finite() => Ok((p > 0.0 && p < 100.0).then_some(Amount::Percent(p))),
            _ => Err(format!("eviction percentage threshold {name}: {text}: invalid syntax")),
        }
    }

    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Amount::Number(n) => n,
            Amount::Percent(p) => (capacity as f64 * p / 100.0) as u64,
        }
    }

    fn show(self) -> String {
        match self {
            Amount::Number(n) if n > 0 && n % (1 << 20) == 0 => format!("{}Mi", n >> 20),
            Amount::Number(n) => n.to_string(),
            Amount::Percent(p) => format!("{p}%"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
}

/// When pods are ended to keep the machine alive.
#[derive(Clone, Debug, PartialEq)]
pub struct Eviction {
    /// At once.
    pub hard: Vec<Threshold>,
    /// After so long.
    pub soft: Vec<(Threshold, Duration)>,
    /// The most seconds that a pod gets to end when a soft threshold is met.
    pub max_pod_grace: i64,
    /// How much more has to be free before it is enough again.
    pub reclaim: Vec<Threshold>,
    /// How long a condition stays after the pressure has gone.
    pub transition: Duration,
}

/// Upstream's, and one for processes: a node without any left can't end what has taken them.
impl Default for Eviction {
    fn default() -> Self {
        let t = |signal, amount| Threshold { signal, amount };
        Eviction {
            hard: vec![
                t(Signal::Memory, Amount::Number(100 << 20)),
                t(Signal::Disk, Amount::Percent(10.0)),
                t(Signal::ImageDisk, Amount::Percent(15.0)),
                t(Signal::Inodes, Amount::Percent(5.0)),
                t(Signal::ImageInodes, Amount::Percent(5.0)),
                t(Signal::Pids, Amount::Percent(5.0)),
            ],
            soft: Vec::new(),
            max_pod_grace: 0,
            reclaim: Vec::new(),
            transition: Duration::from_secs(300),
        }
    }
}

/// Texts of amounts by the names of signals.
pub type Texts = BTreeMap<String, String>;

/// Reads thresholds; one of 0 or 100 percent is none.
pub fn parse(texts: &Texts) -> Result<Vec<Threshold>, String> {
    let mut all = Vec::new();
    for (name, text) in texts {
        let signal = Signal::parse(name)?;
        let amount = Amount::parse(signal, text)?;
        all.extend(amount.map(|amount| Threshold { signal, amount }));
    }
    all.sort_by_key(|t| t.signal);
    Ok(all)
}

/// After how long soft thresholds count. One for a signal without such a threshold means nothing.
pub fn graces(texts: &Texts) -> Result<BTreeMap<Signal, Duration>, String> {
    let all = texts.iter().map(|(name, text)| {
        let nanos = keelson_api::duration::parse(text).map_err(|e| e.to_string())?;
        let nanos = u64::try_from(nanos)
            .map_err(|_| format!("invalid eviction grace period specified: {text}, must be a positive value"))?;
        Ok((Signal::parse(name)?, Duration::from_nanos(nanos)))
    });
    all.collect()
}

/// Reads how much more has to be free.
pub fn reclaims(texts: &Texts) -> Result<Vec<Threshold>, String> {
    let mut all = Vec::new();
    for (name, text) in texts {
        let signal = Signal::parse(name)?;
        let amount = match text.strip_suffix('%') {
            Some(percent) => match percent.parse::<f64>() {
                Ok(p) if p > 0.0 && p.is_finite() => Amount::Percent(p),
                Ok(_) => {
                    return Err(format!(
                        "eviction percentage minimum reclaim {name} must be positive: {text}"
                    ));
                }
                Err(_) => return Err(format!("eviction minimum reclaim {name}: {text}: invalid syntax")),
            },
            None => {
                let quantity =
                    Quantity::parse(text).map_err(|e| format!("eviction minimum reclaim {name}: {text}: {e}"))?;
                let negative = |_| format!("negative eviction minimum reclaim specified for {name}");
                Amount::Number(u64::try_from(quantity.value()).map_err(negative)?)
            }
        };
        all.push(Threshold { signal, amount });
    }
    all.sort_by_key(|t| t.signal);
    Ok(all)
}

pub fn show(all: &[Threshold]) -> Texts {
    let named = all.iter().map(|t| (t.signal.name().to_owned(), t.amount.show()));
    named.collect()
}

impl Eviction {
    /// The hard threshold of a signal, as an amount.
    pub fn hard_amount(&self, signal: Signal, capacity: u64) -> u64 {
        let found = self.hard.iter().filter(|t| t.signal == signal);
        found.map(|t| t.amount.of(capacity)).max().unwrap_or(0)
    }
}

impl Eviction {
    /// All that count at once: what memory is kept of the machine is kept of the pods' part of it, too, and what of its disk, of
    /// the one that containers write to.
    pub fn at_once(&self) -> impl Iterator<Item = Threshold> {
        let derived = [Signal::PodsMemory, Signal::LayerDisk, Signal::LayerInodes];
        let follow = derived.into_iter().flat_map(move |signal| {
            let of = self.hard.iter().filter(move |t| t.signal == signal.margin_of());
            of.map(move |t| Threshold { signal, ..*t })
        });
        self.hard.iter().copied().chain(follow)
    }

    /// All that count after a time.
    pub fn in_time(&self) -> impl Iterator<Item = (Threshold, Duration)> {
        let follow = [Signal::LayerDisk, Signal::LayerInodes]
            .into_iter()
            .flat_map(move |signal| {
                let of = self.soft.iter().filter(move |(t, _)| t.signal == signal.margin_of());
                of.map(move |(t, grace)| (Threshold { signal, ..*t }, *grace))
            });
        self.soft.iter().copied().chain(follow)
    }

    /// Whether pods end before memory runs out.
    pub fn guards_memory(&self) -> bool {
        self.hard.iter().any(|t| t.signal == Signal::Memory)
    }
}

/// A look at the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub memory: u64,
    pub memory_available: u64,
    /// What all pods together may have, zero where that isn't enforced or known, and what is left of it.
    pub pods_memory: u64,
    pub pods_memory_available: u64,
    /// The node's own disk, that of images, which may be the same, and that of containers where it is another.
    pub fs: FsStats,
    pub images: FsStats,
    pub layers: FsStats,
    pub pids: u64,
    pub max_pids: u64,
}

impl Sample {
    /// What there is of a resource, and what is left of it. A capacity of zero isn't known.
    fn of(&self, signal: Signal) -> (u64, u64) {
        let bytes = |fs: &FsStats| (fs.capacity, fs.available);
        let inodes = |fs: &FsStats| (fs.inodes, fs.inodes_free);
        match signal {
            Signal::Memory => (self.memory, self.memory_available),
            Signal::PodsMemory => (self.pods_memory, self.pods_memory_available),
            Signal::Disk => bytes(&self.fs),
            Signal::ImageDisk => bytes(&self.images),
            Signal::LayerDisk => bytes(&self.layers),
            Signal::Inodes => inodes(&self.fs),
            Signal::ImageInodes => inodes(&self.images),
            Signal::LayerInodes => inodes(&self.layers),
            Signal::Pids => (self.max_pids, self.max_pids.saturating_sub(self.pids)),
        }
    }

    /// Whether less is left than a threshold says; `again`: it was so before, and is until the margin is free too.
    pub fn meets(&self, t: &Threshold, reclaim: &[Threshold], again: bool) -> bool {
        let (capacity, left) = self.of(t.signal);
        let margin = reclaim.iter().filter(|r| again && r.signal == t.signal.margin_of());
        let wanted = t.amount.of(capacity) + margin.map(|r| r.amount.of(capacity)).sum::<u64>();
        capacity > 0 && left < wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pairs: &[(&str, &str)]) -> Texts {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn what_is_kept_of_memory_is_kept_of_the_pods_part_too() {
        let t = |signal, amount| Threshold { signal, amount };
        let wanted = Eviction {
            hard: vec![
                t(Signal::Memory, Amount::Percent(10.0)),
                t(Signal::Pids, Amount::Number(5)),
            ],
            soft: vec![(t(Signal::Memory, Amount::Number(1)), Duration::ZERO)],
            ..Eviction::default()
        };
        let all: Vec<Threshold> = wanted.at_once().collect();
        let of_pods = t(Signal::PodsMemory, Amount::Percent(10.0));
        assert_eq!(all, [wanted.hard[0], wanted.hard[1], of_pods]);
        let mut sample = Sample {
            memory: 1000,
            memory_available: 500,
            pods_memory: 400,
            pods_memory_available: 39,
            ..Sample::default()
        };
        assert!(!sample.meets(&all[0], &[], false) && sample.meets(&of_pods, &[], false));
        sample.pods_memory_available = 40;
        assert!(!sample.meets(&of_pods, &[], false));
        // Memory's margin is its own, too.
        let margin = [t(Signal::Memory, Amount::Number(10))];
        assert!(sample.meets(&of_pods, &margin, true) && !sample.meets(&of_pods, &margin, false));
        (sample.pods_memory, sample.pods_memory_available) = (0, 0);
        assert!(!sample.meets(&of_pods, &[], false), "it isn't enforced");
        assert_eq!(
            (of_pods.signal.name(), of_pods.signal.condition()),
            ("allocatableMemory.available", "MemoryPressure")
        );
        assert!(Signal::parse("allocatableMemory.available").is_err());
    }

    #[test]
    fn thresholds_are_read_as_upstream_reads_them() {
        let all = parse(&texts(&[
            ("nodefs.available", "12.5%"),
            ("memory.available", "1Gi"),
            ("imagefs.available", "0%"),
            ("pid.available", "100%"),
        ]));
        let all = all.unwrap();
        assert_eq!(
            show(&all),
            texts(&[("memory.available", "1024Mi"), ("nodefs.available", "12.5%")])
        );
        for (name, text, why) in [
            ("memory.free", "1Gi", "unsupported eviction signal memory.free"),
            (
                "memory.available",
                "0",
                "eviction threshold memory.available must be positive: 0",
            ),
            (
                "memory.available",
                "-1Mi",
                "eviction threshold memory.available must be positive: -1Mi",
            ),
            (
                "nodefs.available",
                "-3%",
                "eviction percentage threshold nodefs.available must be >= 0%: -3%",
            ),
            (
                "nodefs.available",
                "101%",
                "eviction percentage threshold nodefs.available must be <= 100%: 101%",
            ),
            (
                "nodefs.available",
                "x%",
                "eviction percentage threshold nodefs.available: x%: invalid syntax",
            ),
            (
                "containerfs.available",
                "1%",
                "eviction signal containerfs.available can't be set: it follows from the others",
            ),
        ] {
            assert_eq!(parse(&texts(&[(name, text)])).unwrap_err(), why);
        }
    }

    #[test]
    fn thresholds_that_leave_memory_out_are_known() {
        assert!(Eviction::default().guards_memory());
        for (pairs, guards) in [
            (&[("nodefs.available", "1%")][..], false),
            (&[("nodefs.available", "1%"), ("memory.available", "100Mi")], true),
            (&[("memory.available", "0%")], false),
        ] {
            let hard = parse(&texts(pairs)).unwrap();
            let wanted = Eviction {
                hard,
                ..Eviction::default()
            };
            assert_eq!(wanted.guards_memory(), guards, "{pairs:?}");
        }
    }

    #[test]
    fn margins_and_times_are_read_as_upstream_reads_them() {
        let all = reclaims(&texts(&[("nodefs.available", "0"), ("memory.available", "150%")])).unwrap();
        assert_eq!(
            show(&all),
            texts(&[("memory.available", "150%"), ("nodefs.available", "0")])
        );
        for (text, why) in [
            (
                "0%",
                "eviction percentage minimum reclaim pid.available must be positive: 0%",
            ),
            ("-1", "negative eviction minimum reclaim specified for pid.available"),
            ("x%", "eviction minimum reclaim pid.available: x%: invalid syntax"),
        ] {
            assert_eq!(reclaims(&texts(&[("pid.available", text)])).unwrap_err(), why);
        }
        let all = graces(&texts(&[("pid.available", "1m30s")])).unwrap();
        assert_eq!(all[&Signal::Pids], Duration::from_secs(90));
        let negative = graces(&texts(&[("pid.available", "-1s")])).unwrap_err();
        assert_eq!(
            negative,
            "invalid eviction grace period specified: -1s, must be a positive value"
        );
        assert!(graces(&texts(&[("pids", "1s")])).is_err());
    }

    fn sample() -> Sample {
        let fs = FsStats {
            capacity: 1000,
            available: 500,
            free: 500,
            inodes: 100,
            inodes_free: 50,
        };
        Sample {
            memory: 4 << 30,
            memory_available: 1 << 30,
            fs,
            images: fs,
            pids: 10,
            max_pids: 1000,
            ..Sample::default()
        }
    }

    #[test]
    fn what_is_left_is_compared() {
        let met = |s: &Sample| {
            let hard = Eviction::default().hard.into_iter();
            hard.filter(|t| s.meets(t, &[], false))
                .map(|t| t.signal)
                .collect::<Vec<_>>()
        };
        let good = sample();
        assert_eq!(met(&good), []);
        let mut s = good;
        s.memory_available = (100 << 20) - 1;
        s.pids = 960;
        assert_eq!(met(&s), [Signal::Memory, Signal::Pids]);
        s = good;
        (s.fs.available, s.fs.inodes_free) = (99, 4);
        assert_eq!(
            met(&s),
            [Signal::Disk, Signal::Inodes],
            "images have a disk of their own"
        );
        s.images = s.fs;
        assert_eq!(
            met(&s),
            [Signal::Disk, Signal::ImageDisk, Signal::Inodes, Signal::ImageInodes]
        );
        (s.fs.capacity, s.images.capacity) = (0, 0);
        assert_eq!(
            met(&s),
            [Signal::Inodes, Signal::ImageInodes],
            "what isn't known isn't short"
        );
    }

    #[test]
    fn enough_is_more_than_the_threshold_once_it_was_met() {
        let t = Threshold {
            signal: Signal::Memory,
            amount: Amount::Number(1 << 29),
        };
        let more = Threshold {
            signal: Signal::Memory,
            amount: Amount::Percent(25.0),
        };
        let s = sample();
        assert!(!s.meets(&t, &[more], false) && s.meets(&t, &[more], true));
    }
}
