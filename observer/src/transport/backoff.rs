//! How long to wait before the next try. Pure.

use std::time::Duration;

/// The first wait, on average a little less.
const FIRST: Duration = Duration::from_millis(200);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(30);

/// The wait after so many failures in a row, where `random` is between 0 and 1: twice as long each time, between half and all of it, so
/// that agents which lost their aggregator at the same moment do not come back at the same moment.
pub fn delay(failures: u32, random: f64) -> Duration {
    let whole = FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST);
    whole.mul_f64(random.clamp(0.0, 1.0) / 2.0 + 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_longest() {
        let waits: Vec<u128> = (0..10).map(|failures| delay(failures, 1.0).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(delay(u32::MAX, 0.0), LONGEST / 2);
    }
}
