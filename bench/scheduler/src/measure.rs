//! Samples, and what a histogram of a metrics page says.

use std::collections::BTreeMap;
use std::time::Duration;

/// What one workload came to at one level.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Pods of the measured operation that got a node.
    pub pods: usize,
    /// From the first of them created until the last had its node; of decisions alone, the time that these took.
    pub took: Duration,
    /// Pods a second, of each tenth of a second.
    pub samples: Vec<f64>,
    /// Of one attempt, in milliseconds. At the API that is with its binding, as upstream measures it.
    pub attempt: Times,
    /// Of one decision, in milliseconds.
    pub decision: Times,
}

impl Outcome {
    pub fn throughput(&self) -> f64 {
        self.pods as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    pub median: f64,
    pub p99: f64,
}

impl Times {
    pub fn of(mut took: Vec<Duration>) -> Times {
        took.sort();
        let at = |share| quantile(&took, share).map_or(0.0, |d| d.as_secs_f64() * 1000.0);
        Times {
            median: at(0.5),
            p99: at(0.99),
        }
    }
}

/// The nearest rank, as scheduler_perf takes it.
pub fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Cumulative counts of a histogram by bound, all its series with these labels together.
#[derive(Clone, Debug, Default)]
pub struct Buckets(BTreeMap<u64, u64>);

impl Buckets {
    pub fn of(page: &str, family: &str, label: &str) -> Buckets {
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for line in page.lines() {
            let Some(rest) = line.strip_prefix(family).and_then(|rest| rest.strip_prefix("_bucket{")) else {
                continue;
            };
            let Some((labels, value)) = rest.split_once("} ") else {
                continue;
            };
            if !labels.contains(label) {
                continue;
            }
            // Other labels' names may end with these letters.
            let bound = labels
                .split(',')
                .find_map(|label| label.strip_prefix("le=\"")?.strip_suffix('"'));
            let bound = bound.map(|b| {
                if b == "+Inf" {
                    f64::INFINITY
                } else {
                    b.parse().unwrap_or(f64::NAN)
                }
            });
            if let (Some(bound), Ok(count)) = (bound.filter(|b| !b.is_nan()), value.trim().parse::<f64>()) {
                // Bounds are positive: their bits are in the order of their values.
                *counts.entry(bound.to_bits()).or_default() += count as u64;
            }
        }
        Buckets(counts)
    }

    pub fn since(&self, before: &Buckets) -> Buckets {
        let less = |(bound, count): (&u64, &u64)| (*bound, count - before.0.get(bound).unwrap_or(&0).min(count));
        Buckets(self.0.iter().map(less).collect())
    }

    pub fn times(&self) -> Times {
        Times {
            median: self.quantile(0.5),
            p99: self.quantile(0.99),
        }
    }

    /// Milliseconds, in even shares of the bucket, as upstream's collector reckons.
    fn quantile(&self, share: f64) -> f64 {
        let total = self.0.values().copied().max().unwrap_or(0) as f64;
        let (mut below, mut bound_below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            let (bound, count) = (f64::from_bits(*bound), *count as f64);
            if count >= total * share && count > 0.0 {
                let part = (total * share - below) / (count - below).max(1.0);
                let end = if bound.is_finite() { bound } else { bound_below };
                return (bound_below + (end - bound_below) * part) * 1000.0;
            }
            (below, bound_below) = (count, bound);
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_share_of_its_bucket() {
        let page = |a: u64, b: u64, c: u64| {
            format!(
                "x_bucket{{profile=\"p\",result=\"scheduled\",le=\"0.001\"}} {a}\nx_bucket{{result=\"scheduled\",le=\"0.002\"}} {b}\n\
                 x_bucket{{profile=\"p\",result=\"error\",le=\"0.001\"}} 50\nx_bucket{{result=\"scheduled\",le=\"+Inf\"}} {c}\nx_count 1\n"
            )
        };
        let buckets = |page: &str| Buckets::of(page, "x", "result=\"scheduled\"");
        let (before, after) = (buckets(&page(10, 10, 10)), buckets(&page(60, 110, 110)));
        let times = after.since(&before).times();
        assert!((times.median - 1.0).abs() < 1e-9, "{times:?}");
        assert!((times.p99 - 1.98).abs() < 1e-9, "{times:?}");
        assert_eq!(Buckets::default().times().p99, 0.0);
    }

    #[test]
    fn ranks_are_the_nearest() {
        let sorted: Vec<u64> = (1..=100).collect();
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99)), (Some(50), Some(99)));
        assert_eq!(quantile::<u64>(&[], 0.5), None);
        assert_eq!(quantile(&[7], 0.01), Some(7));
    }
}
