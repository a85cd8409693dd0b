//! Seeded draws. The same seed gives the same sequence on every machine and in every version of this program, so that
//! a measurement can be repeated; hence a generator of our own (SplitMix64) and not that of a library.

/// A stream of draws.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Stream `stream` of a seed: streams of one seed are independent of each other.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { state: mix(seed.wrapping_add(mix(stream.wrapping_mul(GOLDEN)))) }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Above 0 and at most 1.
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high.saturating_sub(low) + 1)
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    /// Box and Muller's transform, one of the two values.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// exp(N(ln median, sigma)): its mean is `median * exp(sigma^2 / 2)`.
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 200_000;

    fn check_mean(name: &str, expected: f64, tolerance: f64, mut draw: impl FnMut(&mut Random) -> f64) {
        let mut random = Random::new(7, 1);
        let mean = (0..DRAWS).map(|_| draw(&mut random)).sum::<f64>() / DRAWS as f64;
        assert!((mean - expected).abs() <= tolerance, "{name}: mean {mean}, expected {expected}");
    }

    #[test]
    fn means_are_as_stated() {
        check_mean("unit", 0.5, 0.005, Random::unit);
        check_mean("below", 4.5, 0.03, |r| r.below(10) as f64);
        check_mean("between", 6.0, 0.03, |r| r.between(4, 8) as f64);
        check_mean("exponential", 3.0, 0.05, |r| r.exponential(3.0));
        check_mean("normal", 0.0, 0.01, Random::normal);
        check_mean("square of normal", 1.0, 0.02, |r| r.normal().powi(2));
        check_mean("log-normal", 100.0 * 0.125f64.exp(), 1.0, |r| r.log_normal(100.0, 0.5));
    }

    #[test]
    fn a_seed_and_a_stream_decide_all() {
        let draws = |seed, stream| {
            let mut random = Random::new(seed, stream);
            [random.next(), random.next(), random.next()]
        };
        assert_eq!(draws(1, 2), draws(1, 2));
        for (seed, stream) in [(1, 3), (2, 2), (2, 1), (0, 0)] {
            assert_ne!(draws(1, 2), draws(seed, stream));
        }
        // Written down once: reports of different versions stay comparable.
        assert_eq!(Random::new(0, 0).next(), 16_294_208_416_658_607_535);
    }
}
