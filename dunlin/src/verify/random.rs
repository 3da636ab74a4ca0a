//! Chance that a seed decides. Pure.

use std::time::Duration;

/// SplitMix64: a counter, hashed.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// One stream of chance for each client.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From zero, below a bound that is not zero.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// How long until something happens that happens this often on average, at
    /// any moment alike.
    pub(super) fn until(&mut self, mean: Duration) -> Duration {
        const FINENESS: f64 = 9_007_199_254_740_992.0;
        let fraction = (self.next() >> 11) as f64 / FINENESS;
        // ln(0) is never asked for; ten times the mean is seldom enough.
        mean.mul_f64((-(1.0 - fraction).ln()).min(10.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides() {
        let of = |seed, stream| {
            let mut random = Random::new(seed, stream);
            (0..8).map(|_| random.below(1_000)).collect::<Vec<_>>()
        };
        assert_eq!(of(1, 2), of(1, 2));
        assert_ne!(of(1, 2), of(1, 3));
        assert_ne!(of(1, 2), of(2, 2));
    }

    #[test]
    fn the_mean_is_the_mean() {
        let mut random = Random::new(1, 1);
        let total: Duration = (0..10_000)
            .map(|_| random.until(Duration::from_secs(5)))
            .sum();
        let mean = total / 10_000;
        assert!(
            mean > Duration::from_secs(4) && mean < Duration::from_secs(6),
            "{mean:?}"
        );
    }
}
