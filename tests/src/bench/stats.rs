//! Ratios of paired blocks and how sure they are. Pure: the resampling has a seed of its own, so the same blocks give the same
//! interval.

use serde::Serialize;

/// Resamplings behind an interval.
const RESAMPLES: usize = 2000;

/// One round: the same work with the programs, with programs that do nothing, without any, and once more without any.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Round {
    /// Time of an operation with the programs attached.
    pub(super) on: f64,
    /// With programs that do nothing.
    pub(super) floor: f64,
    /// Without any.
    pub(super) off: f64,
    /// Without any, too.
    pub(super) control: f64,
}

/// With programs, over without.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Ratio {
    /// Median over the rounds, net of the control.
    pub(super) median: f64,
    /// Lower end of its 95% interval.
    pub(super) low: f64,
    /// Upper end.
    pub(super) high: f64,
    /// Median of the same ratio with no programs in either arm: what it is off 1 is the noise of the machine.
    pub(super) control: f64,
}

/// The ratio of one arm of many rounds, with a bootstrap over whole rounds. `None` without rounds.
pub(super) fn ratio(rounds: &[Round], arm: impl Fn(&Round) -> f64) -> Option<Ratio> {
    let control = median(rounds.iter().map(|round| round.control / round.off).collect())?;
    let net = |rounds: &[Round]| {
        // The two arms without programs are worth the same: their mean is the better measure of "without".
        median(rounds.iter().map(|round| arm(round) / f64::midpoint(round.off, round.control)).collect())
    };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let sample: Vec<Round> = rounds.iter().map(|_| rounds[random.below(rounds.len())]).collect();
            net(&sample)
        })
        .collect();
    resampled.sort_by(f64::total_cmp);
    let at = |part: f64| quantile(&resampled, part);
    Some(Ratio { median: net(rounds)?, low: at(0.025)?, high: at(0.975)?, control })
}

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// Half the distance between the quartiles, over the median: how much blocks differ.
pub(super) fn spread(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    Some((quantile(&values, 0.75)? - quantile(&values, 0.25)?) / 2.0 / quantile(&values, 0.5)?)
}

/// The value below which `part` of the sorted values lie, interpolated.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = part * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((value * end as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds whose times drift and jitter, with the programs `cost` times as slow.
    fn rounds(count: usize, cost: f64, jitter: f64) -> Vec<Round> {
        let mut random = Random(7);
        (0..count)
            .map(|index| {
                let base = 1000.0 + index as f64 * 5.0;
                let mut time =
                    |factor: f64| base * factor * (1.0 + jitter * (random.below(2001) as f64 / 1000.0 - 1.0));
                Round { on: time(cost), floor: time(1.0), off: time(1.0), control: time(1.0) }
            })
            .collect()
    }

    #[test]
    fn the_interval_holds_the_true_ratio_whatever_the_drift() {
        for cost in [1.0, 1.02, 1.5] {
            let ratio = ratio(&rounds(60, cost, 0.05), |round| round.on).unwrap();
            assert!(ratio.low <= ratio.median && ratio.median <= ratio.high, "{ratio:?}");
            assert!((ratio.low..=ratio.high).contains(&cost), "{cost}: {ratio:?}");
            assert!((ratio.control - 1.0).abs() < 0.02, "{ratio:?}");
        }
    }

    #[test]
    fn more_noise_makes_the_interval_wider_and_none_makes_it_a_point() {
        let width = |jitter| {
            ratio(&rounds(60, 1.1, jitter), |round| round.on).map(|ratio| ratio.high - ratio.low).unwrap()
        };
        assert!(width(0.0) < 1e-9);
        assert!(width(0.01) < width(0.2));
    }

    #[test]
    fn a_few_wild_rounds_do_not_move_the_median() {
        let mut rounds = rounds(61, 1.01, 0.001);
        for round in rounds.iter_mut().step_by(10) {
            round.on *= 50.0;
        }
        let ratio = ratio(&rounds, |round| round.on).unwrap();
        assert!((ratio.median - 1.01).abs() < 0.002, "{ratio:?}");
    }

    #[test]
    fn medians_quantiles_and_spread_of_few_values() {
        assert_eq!(ratio(&[], |round| round.on), None);
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(quantile(&[0.0, 10.0], 0.25), Some(2.5));
        assert_eq!(spread(vec![1.0, 2.0, 3.0, 4.0, 5.0]), Some(1.0 / 3.0));
    }
}
