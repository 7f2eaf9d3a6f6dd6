//! Medians, and what can be said of paired rounds.

/// The middle, or the mean of both that are.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some((sorted[low] + sorted[high]) / 2.0)
}

/// Between which of the values their population's median lies in at least 95 of 100 cases, whatever its distribution. With fewer than
/// six values that can't be said: then between the least and the most.
pub fn interval(values: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    // How probable it is that at most `least` of the values are below the median.
    let (mut ways, mut below, mut least) = (1.0, 0.0, 0);
    for n in 0..count / 2 {
        below += ways * 0.5f64.powi(count as i32);
        if 2.0 * below > 0.05 {
            break;
        }
        least = n;
        ways = ways * (count - n) as f64 / (n + 1) as f64;
    }
    Some((*sorted.get(least)?, sorted[count - 1 - least]))
}

/// What differs by less is no difference worth telling.
const NOTHING: f64 = 0.03;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Slower,
    Faster,
    NoDifference,
    /// Of fewer than six pairs, all on one side even, nobody can say with that certainty that they aren't chance.
    TooFewRounds,
}

impl Verdict {
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Slower => "slower",
            Verdict::Faster => "faster",
            Verdict::NoDifference => "no difference",
            Verdict::TooFewRounds => "too few rounds",
        }
    }
}

/// Of costs now by costs before, round by round. All of the interval has to be on one side, and the median by more than nothing.
pub fn verdict(ratios: &[f64]) -> Verdict {
    let (Some(middle), Some((low, high))) = (median(ratios), interval(ratios)) else {
        return Verdict::TooFewRounds;
    };
    if ratios.len() < 6 {
        return Verdict::TooFewRounds;
    }
    match () {
        () if low > 1.0 && middle > 1.0 + NOTHING => Verdict::Slower,
        () if high < 1.0 && middle < 1.0 - NOTHING => Verdict::Faster,
        () => Verdict::NoDifference,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn intervals_are_those_of_the_sign_test() {
        let up_to = |n: usize| (1..=n).map(|v| v as f64).collect::<Vec<_>>();
        // The ranks that tables of the sign test have for 95 %.
        for (count, low, high) in [
            (3, 1.0, 3.0),
            (5, 1.0, 5.0),
            (6, 1.0, 6.0),
            (9, 2.0, 8.0),
            (12, 3.0, 10.0),
            (20, 6.0, 15.0),
        ] {
            assert_eq!(interval(&up_to(count)), Some((low, high)), "{count}");
        }
        assert_eq!(interval(&[]), None);
    }

    #[test]
    fn a_verdict_needs_all_rounds_to_agree_and_more_than_nothing() {
        assert_eq!(verdict(&[1.2, 1.1, 1.3, 1.2, 1.1, 1.3]), Verdict::Slower);
        assert_eq!(verdict(&[0.5, 0.6, 0.4, 0.5, 0.5, 0.5]), Verdict::Faster);
        let one_says_otherwise = [1.2, 0.9, 1.3, 1.2, 1.2, 1.2];
        assert_eq!(verdict(&one_says_otherwise), Verdict::NoDifference);
        assert_eq!(
            verdict(&[1.01, 1.02, 1.01, 1.01, 1.02, 1.02]),
            Verdict::NoDifference,
            "it is nothing"
        );
        // The same program twice was so once in a few times.
        assert_eq!(verdict(&[0.95, 0.94, 0.97]), Verdict::TooFewRounds);
        let mut many = vec![1.2; 11];
        many.push(0.7);
        assert_eq!(verdict(&many), Verdict::Slower, "one of twelve is chance");
        assert_eq!(verdict(&[]), Verdict::TooFewRounds);
    }
}
