//! Turns samples into figures: medians, their spread, and ratios.
//!
//! A ratio is computed within each round, between neighbours in time, and the median of these is given: a
//! temporary slowdown affects both, and cancels out.

use super::{record::Run, trials::Metric};

/// A figure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Summary {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        let (&least, &most) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, least, most })
    }

    /// Half of the distance between the extremes, as a share of the median.
    pub(crate) fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.most - self.least) / 2.0 / self.median.abs() }
    }
}

impl Run {
    /// A figure of a system.
    pub(crate) fn summary(&self, system: &str, trial: &str, metric: Metric) -> Option<Summary> {
        Summary::of(self.values(system, trial, metric).into_iter().map(|(_, value)| value))
    }

    /// How many times as much as `base` a system has, round by round.
    pub(crate) fn ratio(&self, system: &str, base: &str, trial: &str, metric: Metric) -> Option<Summary> {
        let bases = self.values(base, trial, metric);
        let of_round = |round| bases.iter().find(|(other, _)| *other == round).map(|(_, value)| *value);
        Summary::of(
            self.values(system, trial, metric)
                .into_iter()
                .filter_map(|(round, value)| Some(value / of_round(round)?)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_lies_between() {
        let summary = Summary::of([4.0, 1.0, 3.0, 2.0, f64::NAN]).unwrap();
        assert_eq!(summary, Summary { median: 2.5, least: 1.0, most: 4.0 });
        assert!((summary.spread() - 0.6).abs() < 1e-9);
        assert!(Summary::of([f64::INFINITY]).is_none());
    }
}
