//! Durations in log-linear buckets: cheap to record, exact to 12.5 %, and easy to add up.
//!
//! Every power of two of microseconds is cut into 8 equal buckets (the scheme of HdrHistogram), from
//! 1 µs to 2³² µs, a little over an hour: 240 buckets and one for what is longer. Finding the bucket
//! is a shift and a count of leading zeros; recording is two stores to memory that only the owning
//! thread writes (the bucket and the sum of all durations).
//!
//! Quantiles come from the fine buckets; Prometheus gets the powers of two, whose bounds are edges of
//! fine buckets, so that no count has to be guessed across a bound.

use std::time::Duration;

use super::counter::Counter;

/// Written by one thread, read by any.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    /// Microseconds, all recorded durations together.
    sum: Counter,
}

/// The sum of some histograms, as of one moment.
#[derive(Clone, Debug)]
pub struct Distribution {
    buckets: [u64; BUCKETS],
    sum: u64,
}

impl Histogram {
    /// Counts one duration, cut to whole microseconds.
    #[inline]
    pub fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)].inc();
        self.sum.add(micros);
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| Counter::default()),
            sum: Counter::default(),
        }
    }
}

impl Distribution {
    /// Adds what `histogram` holds now.
    pub fn add(&mut self, histogram: &Histogram) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum += bucket.get();
        }
        self.sum = self.sum.wrapping_add(histogram.sum.get());
    }

    /// Adds what `other` holds.
    pub fn merge(&mut self, other: &Self) {
        for (sum, bucket) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += bucket;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// What was recorded since `earlier`, which must be an older state of the same histograms.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            buckets: std::array::from_fn(|i| self.buckets[i].saturating_sub(earlier.buckets[i])),
            sum: self.sum.wrapping_sub(earlier.sum),
        }
    }

    /// How many durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum)
    }

    /// The duration that `quantile` (0 to 1) of all stay below, to 12.5 % above the truth; `None` if
    /// there are none. What is beyond the range counts as its end.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((count as f64 * quantile).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        self.buckets.iter().enumerate().find_map(|(i, n)| {
            seen += n;
            (seen >= rank).then(|| Duration::from_micros(upper_edge(i)))
        })
    }

    /// For each of [`BOUNDS`], how many durations were shorter; then all of them (`+Inf`).
    pub fn cumulative(&self) -> [u64; BOUNDS.len() + 1] {
        let mut counts = [0; BOUNDS.len() + 1];
        let (mut seen, mut next) = (0, 0);
        for (i, bound) in BOUNDS.iter().enumerate() {
            let end = bucket(bound.as_micros() as u64);
            seen += self.buckets[next..end].iter().sum::<u64>();
            next = end;
            counts[i] = seen;
        }
        counts[BOUNDS.len()] = seen + self.buckets[next..].iter().sum::<u64>();
        counts
    }
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum: 0,
        }
    }
}

/// Where a duration belongs. The first 8 buckets are 1 µs wide; then the number of the power of two
/// and the 3 bits below its leading one make the index.
#[inline]
fn bucket(micros: u64) -> usize {
    if micros < SUB_BUCKETS as u64 {
        return micros as usize;
    }
    let power = 63 - micros.leading_zeros() as usize;
    let sub = (micros >> (power - SUB_BITS)) as usize & (SUB_BUCKETS - 1);
    ((power - SUB_BITS + 1) * SUB_BUCKETS + sub).min(BUCKETS - 1)
}

/// The first microsecond that is no longer in bucket `index`; the range's end for the last one.
fn upper_edge(index: usize) -> u64 {
    let next = (index + 1).min(BUCKETS - 1);
    if next < SUB_BUCKETS {
        return next as u64;
    }
    let shift = next / SUB_BUCKETS - 1;
    ((SUB_BUCKETS + next % SUB_BUCKETS) as u64) << shift
}

const SUB_BITS: usize = 3;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Powers 3 to 31 of two, the 8 single microseconds below, and one for everything longer.
const BUCKETS: usize = (31 - SUB_BITS + 2) * SUB_BUCKETS + 1;

/// The bounds given to Prometheus: powers of two, from 64 µs to 67 s.
pub const BOUNDS: [Duration; 21] = {
    let mut bounds = [Duration::ZERO; 21];
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = Duration::from_micros(64 << i);
        i += 1;
    }
    bounds
};

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(micros: impl IntoIterator<Item = u64>) -> Distribution {
        let histogram = Histogram::default();
        for micros in micros {
            histogram.record(Duration::from_micros(micros));
        }
        let mut distribution = Distribution::default();
        distribution.add(&histogram);
        distribution
    }

    #[test]
    fn buckets_are_contiguous_and_hold_their_edges() {
        let mut last = 0;
        for micros in (0..100_000)
            .chain((17..32).map(|p| (1 << p) - 1))
            .chain([1 << 31])
        {
            let index = bucket(micros);
            assert!(index >= last, "{micros} µs goes back to {index}");
            assert!(micros < upper_edge(index), "{micros} µs in {index}");
            last = index;
        }
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper_edge(index)), index + 1);
            assert_eq!(bucket(upper_edge(index) - 1), index);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket(1 << 32), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_an_eighth() {
        let all = distribution(1..=10_000);
        for (quantile, truth) in [
            (0.5, 5_000.0),
            (0.99, 9_900.0),
            (0.01, 100.0),
            (1.0, 10_000.0),
        ] {
            let got = all.quantile(quantile).unwrap().as_micros() as f64;
            assert!(
                got >= truth && got <= truth * 1.125 + 1.0,
                "{quantile}: {got}"
            );
        }
        assert_eq!(distribution([]).quantile(0.5), None);
        assert_eq!(
            distribution([7]).quantile(0.0),
            Some(Duration::from_micros(8))
        );
    }

    #[test]
    fn too_long_counts_as_the_end_of_the_range() {
        let all = distribution([u64::MAX]);
        assert_eq!(all.quantile(0.5), Some(Duration::from_micros(1 << 32)));
        assert_eq!(all.cumulative()[BOUNDS.len() - 1..], [0, 1]);
    }

    #[test]
    fn cumulative_counts_split_at_the_bounds() {
        let all = distribution([0, 63, 64, 127, 128, 70_000_000]);
        let counts = all.cumulative();
        assert_eq!((counts[0], counts[1], counts[2]), (2, 4, 5));
        assert_eq!((counts[BOUNDS.len() - 1], counts[BOUNDS.len()]), (5, 6));
        assert_eq!(all.sum(), Duration::from_micros(70_000_382));
    }

    #[test]
    fn since_is_what_came_between() {
        let (early, late) = (distribution([10]), distribution([10, 1_000, 1_000]));
        let between = late.since(&early);
        assert_eq!(
            (between.count(), between.sum()),
            (2, Duration::from_micros(2_000))
        );
        assert!(between.quantile(0.01).unwrap() >= Duration::from_millis(1));
    }
}
