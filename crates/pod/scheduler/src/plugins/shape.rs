//! Broken lines from use, in a hundred, to a score: points of configuration, whose scores go to ten.

use crate::framework::MAX_SCORE;

/// Points (use, score), by use.
pub type Shape = Vec<(i64, i64)>;

const MOST_POINTS: i64 = 10;

pub fn broken_line(shape: &[(i64, i64)], x: i64) -> i64 {
    let score = |points: i64| points * (MAX_SCORE / MOST_POINTS);
    let Some(after) = shape.iter().position(|(utilization, _)| x <= *utilization) else {
        return shape.last().map_or(0, |(_, points)| score(*points));
    };
    let (x1, y1) = shape[after];
    let Some((x0, y0)) = after.checked_sub(1).map(|before| shape[before]) else {
        return score(y1);
    };
    score(y0) + (score(y1) - score(y0)) * (x - x0) / (x1 - x0)
}
