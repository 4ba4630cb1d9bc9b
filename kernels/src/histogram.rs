//! How the attributions of tokens are spread: enough for a decision that is about how many, not which.

/// One for each octave.
pub const BINS: usize = 64;
/// The power of two at which the first bin starts.
const LOWEST: i32 = -48;

/// Numbers of tokens by the octave of their attribution; the first bin has all below it too, the last
/// all above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    pub counts: [u32; BINS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BINS] }
    }
}

impl Histogram {
    pub fn add(&mut self, attribution: f32) {
        self.counts[bin(attribution)] += 1;
    }

    /// Tokens in all.
    pub fn len(&self) -> usize {
        self.counts.iter().map(|count| *count as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The bin of an attribution. What should not occur goes to an end: NaN is large, below zero is small.
pub fn bin(attribution: f32) -> usize {
    if attribution.is_sign_negative() {
        return 0;
    }
    let exponent = (attribution.to_bits() >> 23) as i32 - 127;
    (exponent - LOWEST).clamp(0, BINS as i32 - 1) as usize
}

/// What the tokens of a bin have about: the geometric middle of its octave, 0 in the first.
pub fn middle(bin: usize) -> f32 {
    match bin {
        0 => 0.0,
        bin => std::f32::consts::SQRT_2 * ((LOWEST + bin as i32) as f32).exp2(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_octave_has_its_bin_and_its_middle_lies_in_it() {
        for octave in 1..BINS {
            assert_eq!(bin(middle(octave)), octave);
        }
        assert_eq!((bin(1.0), bin(1.99), bin(2.0), bin(0.99)), (48, 48, 49, 47));
    }

    #[test]
    fn what_is_beyond_the_bins_or_no_number_goes_to_an_end() {
        for small in [0.0, -0.0, -1.0, f32::MIN_POSITIVE, 1e-40, f32::NEG_INFINITY] {
            assert_eq!(bin(small), 0, "{small}");
        }
        for large in [1e5, f32::MAX, f32::INFINITY, f32::NAN.abs()] {
            assert_eq!(bin(large), BINS - 1, "{large}");
        }
    }

    #[test]
    fn a_histogram_counts_what_was_added() {
        let mut histogram = Histogram::default();
        assert!(histogram.is_empty());
        [0.0, 1.0, 1.5, 1e9].into_iter().for_each(|attribution| histogram.add(attribution));
        assert_eq!((histogram.len(), histogram.counts[48]), (4, 2));
    }
}
