//! Encoding of one vector in few bits: the specification of every format.

use half::f16;

use crate::minifloat::{from_scale, to_scale, to_scale_above};

/// How one vector of K or V is coded. All but F16 become signed bytes times one scale, so that
/// attention sees two kinds of vectors only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F16,
    /// Signed 8-bit integers times the largest magnitude over 127.
    Int8,
    /// Lloyd-Max levels of a normal variable times the root mean square. Each eighth of the channels
    /// has a number of bits of its own, at most [`MAX_BITS`].
    Levels([u8; 8]),
}

/// Channels whose codes stand together: with b bits each they fill b bytes.
pub const LANE: usize = 8;
pub const MAX_BITS: u8 = 6;
/// What a step of [`LEVELS`] is worth in standard deviations.
const LEVEL_UNIT: f32 = 3.744_1 / 127.0;

/// Lloyd-Max levels of a standard normal variable (Max 1960) in signed bytes. Those of b bits stand
/// at `1 << b ..`, so that a marker bit above a code makes it an index.
#[rustfmt::skip]
pub const LEVELS: [i8; 128] = [
    0, 0, -27, 27, -51, -15, 15, 51, -73, -46, -26, -8, 8, 26, 46, 73,
    -93, -70, -55, -43, -32, -22, -13, -4, 4, 13, 22, 32, 43, 55, 70, 93,
    -111, -91, -79, -69, -61, -53, -47, -41, -36, -30, -25, -21, -16, -11, -7, -2,
    2, 7, 11, 16, 21, 25, 30, 36, 41, 47, 53, 61, 69, 79, 91, 111,
    -127, -110, -99, -91, -84, -78, -73, -68, -64, -60, -56, -53, -49, -46, -43, -40,
    -38, -35, -32, -30, -27, -24, -22, -20, -17, -15, -13, -10, -8, -6, -3, -1,
    1, 3, 6, 8, 10, 13, 15, 17, 20, 22, 24, 27, 30, 32, 35, 38,
    40, 43, 46, 49, 53, 56, 60, 64, 68, 73, 78, 84, 91, 99, 110, 127,
];

/// Twice the largest value that is told from larger ones.
const REACH: i32 = 255;

/// The codes of b bits, by [`REACH`] more than twice a value, rounded up: nothing else decides which level is
/// closest, for twice the middle between two levels is an integer.
static CODES: [[u8; 2 * REACH as usize + 1]; MAX_BITS as usize + 1] = {
    let mut codes = [[0; 2 * REACH as usize + 1]; MAX_BITS as usize + 1];
    let mut bits = 0;
    while bits < codes.len() {
        let (mut level, last) = (1 << bits, (2 << bits) - 1);
        let mut i = 0;
        while i < codes[bits].len() {
            let twice = i as i32 - REACH;
            while level < last && twice > LEVELS[level] as i32 + LEVELS[level + 1] as i32 {
                level += 1;
            }
            codes[bits][i] = (level - (1 << bits)) as u8;
            i += 1;
        }
        bits += 1;
    }
    codes
};

impl Format {
    /// Levels with the same number of bits in all channels.
    pub const fn uniform(bits: u8) -> Self {
        Self::Levels([bits; 8])
    }

    /// Bytes of the codes of a vector of `dim` channels, a multiple of [`LANE`].
    pub const fn vector_bytes(self, dim: usize) -> usize {
        match self {
            Self::F16 => 2 * dim,
            Self::Int8 => dim,
            Self::Levels(bits) => {
                let (mut bytes, mut lane) = (0, 0);
                while lane < dim / LANE {
                    bytes += lane_bits(&bits, dim, lane) as usize;
                    lane += 1;
                }
                bytes
            }
        }
    }

    /// Bytes of the vector's scale.
    pub const fn scale_bytes(self) -> usize {
        match self {
            Self::F16 => 0,
            Self::Int8 | Self::Levels(_) => 1,
        }
    }

    /// What a signed byte is worth under the scale `scale`.
    #[inline(always)]
    pub fn step(self, scale: u8) -> f32 {
        if self == Self::F16 { 1.0 } else { from_scale(scale) * self.unit() }
    }

    /// What a signed byte is worth under the scale 1.
    #[inline(always)]
    pub fn unit(self) -> f32 {
        match self {
            Self::F16 => 1.0,
            Self::Int8 => 1.0 / 127.0,
            Self::Levels(_) => LEVEL_UNIT,
        }
    }

    /// Codes `x` and returns its scale (meaningless for F16, which has none). Inlined, so that code
    /// compiled for an instruction set uses its vectors; the result is the same bit by bit.
    #[inline(always)]
    pub fn encode(self, x: &[f32], codes: &mut [u8]) -> u8 {
        match self {
            Self::F16 => encode_f16(x, codes),
            Self::Int8 => encode_int8(x, codes),
            Self::Levels(bits) => encode_levels(&bits, x, codes),
        }
    }

    /// Decodes to floats.
    pub fn decode(self, codes: &[u8], scale: u8, x: &mut [f32]) {
        if self == Self::F16 {
            for (v, b) in x.iter_mut().zip(codes.chunks_exact(2)) {
                *v = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
            return;
        }
        let mut bytes = vec![0; x.len()];
        self.unpack(codes, &mut bytes);
        let step = self.step(scale);
        for (v, byte) in x.iter_mut().zip(bytes) {
            *v = f32::from(byte as i8) * step;
        }
    }

    /// The signed bytes of a coded vector, in two's complement.
    ///
    /// # Panics
    /// For F16, which is not made of bytes.
    #[inline(always)]
    pub fn unpack(self, codes: &[u8], bytes: &mut [u8]) {
        match self {
            Self::F16 => panic!("F16 has no signed bytes"),
            Self::Int8 => bytes.copy_from_slice(codes),
            Self::Levels(bits) => {
                let dim = bytes.len();
                let mut codes = codes;
                for (lane, bytes) in bytes.chunks_exact_mut(LANE).enumerate() {
                    let bits = lane_bits(&bits, dim, lane);
                    let (here, rest) = codes.split_at(usize::from(bits));
                    unpack_lane(bits, here, bytes);
                    codes = rest;
                }
            }
        }
    }
}

/// Bits of each channel of a lane: its eighth of the vector decides.
pub const fn lane_bits(bits: &[u8; 8], dim: usize, lane: usize) -> u8 {
    bits[lane * 8 / (dim / LANE)]
}

#[inline(always)]
fn unpack_lane(bits: u8, codes: &[u8], bytes: &mut [u8]) {
    let mut word = [0; 8];
    word[..codes.len()].copy_from_slice(codes);
    let word = u64::from_le_bytes(word);
    let marker = 1 << bits;
    for (i, byte) in bytes.iter_mut().enumerate() {
        let code = (word >> (usize::from(bits) * i)) as usize & (marker - 1);
        *byte = LEVELS[marker | code] as u8;
    }
}

/// 1.5 * 2^23: an integer added to it is found in the low bits of the sum. Conversions that saturate
/// do not vectorize.
const MAGIC: f32 = 12_582_912.0;

/// Values beyond f16 are clamped: an infinity in the cache would poison every later token.
pub fn to_f16(x: f32) -> f16 {
    f16::from_f32(x.clamp(-65504.0, 65504.0))
}

fn encode_f16(x: &[f32], codes: &mut [u8]) -> u8 {
    for (b, v) in codes.chunks_exact_mut(2).zip(x) {
        b.copy_from_slice(&to_f16(*v).to_le_bytes());
    }
    0
}

#[inline(always)]
fn encode_int8(x: &[f32], codes: &mut [u8]) -> u8 {
    let largest = fold_lanes(x, |m, v| if v.abs() > m { v.abs() } else { m }, f32::max);
    let scale = to_scale_above(largest);
    let inverse = inverse_or_zero(Format::Int8.step(scale));
    for (code, v) in codes.iter_mut().zip(x) {
        *code = ((v * inverse).round().clamp(-127.0, 127.0) + MAGIC).to_bits() as u8;
    }
    scale
}

#[inline(always)]
fn encode_levels(bits: &[u8; 8], x: &[f32], mut codes: &mut [u8]) -> u8 {
    let power = fold_lanes(x, |sum, v| sum + v * v, |a, b| a + b);
    let scale = to_scale((power / x.len() as f32).sqrt());
    let inverse = inverse_or_zero(Format::Levels(*bits).step(scale));
    let lanes_bits = (0..x.len() / LANE).map(|lane| lane_bits(bits, x.len(), lane));
    let lanes = x.chunks(BLOCK).flat_map(|x| places(x, inverse));
    for (bits, places) in lanes_bits.zip(lanes) {
        let (here, rest) = codes.split_at_mut(usize::from(bits));
        encode_lane(bits, places, here);
        codes = rest;
    }
    scale
}

/// Channels whose places are found together.
const BLOCK: usize = 64;

/// Where [`CODES`] has the codes of `x * inverse`, lane by lane.
#[inline(always)]
fn places(x: &[f32], inverse: f32) -> [[u32; LANE]; BLOCK / LANE] {
    const LARGEST: f32 = REACH as f32;
    let mut places = [[0; LANE]; BLOCK / LANE];
    for (place, v) in places.as_flattened_mut().iter_mut().zip(x) {
        // What is no number gets the first code.
        let twice = (2.0 * (v * inverse)).max(-LARGEST).ceil().min(LARGEST);
        *place = (twice + LARGEST + MAGIC).to_bits() - MAGIC.to_bits();
    }
    places
}

/// The codes of the closest levels.
#[inline(always)]
fn encode_lane(bits: u8, places: [u32; LANE], codes: &mut [u8]) {
    let table = &CODES[usize::from(bits)];
    let chosen = places.map(|place| table[place as usize]);
    let fold = |word, (i, code): (usize, &u8)| word | u64::from(*code) << (usize::from(bits) * i);
    let word = chosen.iter().enumerate().fold(0u64, fold);
    codes.copy_from_slice(&word.to_le_bytes()[..codes.len()]);
}

/// Sums go round this many lanes, then halves are joined: the order is part of the specification,
/// and one that vectors of any width can follow bit by bit.
const LANES: usize = 16;

#[inline(always)]
fn fold_lanes(x: &[f32], add: impl Fn(f32, f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (runs, rest) = x.as_chunks::<LANES>();
    for run in runs {
        for (lane, v) in lanes.iter_mut().zip(run) {
            *lane = add(*lane, *v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane = add(*lane, *v);
    }
    fold(lanes, join)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        let (low, high) = lanes.split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high) {
            *low = join(*low, *high);
        }
    }
    lanes[0]
}

fn inverse_or_zero(x: f32) -> f32 {
    if x > 0.0 { 1.0 / x } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    const FORMATS: [Format; 9] = [
        Format::F16,
        Format::Int8,
        Format::uniform(6),
        Format::uniform(5),
        Format::uniform(4),
        Format::uniform(3),
        Format::uniform(2),
        Format::uniform(1),
        Format::Levels([6, 5, 4, 4, 3, 2, 1, 0]),
    ];

    fn gaussian(seed: u64, dim: usize) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        let uniform = |rng: &mut StdRng| rng.random_range(-0.5f32..0.5);
        (0..dim).map(|_| (0..12).map(|_| uniform(&mut rng)).sum::<f32>()).collect()
    }

    fn round_trip(format: Format, x: &[f32]) -> Vec<f32> {
        let mut codes = vec![0; format.vector_bytes(x.len())];
        let scale = format.encode(x, &mut codes);
        let mut y = vec![0.0; x.len()];
        format.decode(&codes, scale, &mut y);
        y
    }

    #[test]
    fn the_error_of_each_format_stays_below_its_bound() {
        // Normalized mean squared errors of Lloyd-Max levels for a normal source are .363, .1175,
        // .0345, .0095, .0025 and .00065 with 1 to 6 bits (Max 1960); a scale in a byte and levels
        // in bytes add to these.
        let bounds = [1e-7, 1.2e-4, 0.0012, 0.0033, 0.0105, 0.036, 0.12, 0.37, 0.195];
        for (format, bound) in FORMATS.into_iter().zip(bounds) {
            let (mut error, mut power) = (0f64, 0f64);
            for seed in 0..200 {
                let x = gaussian(seed, 64);
                for (a, b) in x.iter().zip(round_trip(format, &x)) {
                    error += f64::from(a - b).powi(2);
                    power += f64::from(*a).powi(2);
                }
            }
            assert!(error / power < bound, "{format:?}: {}", error / power);
        }
    }

    #[test]
    fn scaling_a_vector_by_a_power_of_two_scales_what_comes_back() {
        for format in FORMATS {
            let x = gaussian(3, 64);
            let big: Vec<f32> = x.iter().map(|v| v * 16.0).collect();
            let (x, big) = (round_trip(format, &x), round_trip(format, &big));
            assert!(x.iter().zip(&big).all(|(a, b)| (a * 16.0 - b).abs() <= 2e-3 * b.abs()));
        }
    }

    #[test]
    fn a_zero_vector_and_one_beyond_f16_come_back_finite() {
        for format in FORMATS {
            assert_eq!(round_trip(format, &[0.0; 32]), [0.0; 32]);
            assert!(round_trip(format, &[1e30; 32]).iter().all(|v| v.is_finite()));
        }
    }

    #[test]
    fn each_eighth_of_the_channels_has_its_own_number_of_bits() {
        let format = Format::Levels([6, 5, 4, 4, 3, 2, 1, 0]);
        assert_eq!(format.vector_bytes(64), 25);
        assert_eq!(format.vector_bytes(128), 50);
        assert_eq!(format.vector_bytes(32), 6 + 4 + 3 + 1);
        let y = round_trip(format, &gaussian(5, 64));
        let distinct = |lane: &[f32]| {
            let mut bits: Vec<_> = lane.iter().map(|v| v.to_bits()).collect();
            bits.sort_unstable();
            bits.dedup();
            bits.len()
        };
        assert!(distinct(&y[48..56]) <= 2);
        assert_eq!(distinct(&y[56..]), 1, "no bits leave the middle");
    }

    #[test]
    fn a_code_counts_the_middles_between_levels_that_a_value_exceeds() {
        let edges = (-254..=254).map(|twice| 0.5 * twice as f32);
        let near = edges.flat_map(|edge| [edge.next_down(), edge, edge.next_up()]);
        let odd = [f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, 1e-45];
        let scattered = gaussian(9, 512).into_iter().map(|v| 60.0 * v);
        let values: Vec<f32> = near.chain(odd).chain(scattered).collect();
        for bits in 0..=MAX_BITS {
            let levels = LEVELS[1 << bits..2 << bits].windows(2);
            let middles = levels.map(|pair| 0.5 * (f32::from(pair[0]) + f32::from(pair[1])));
            let middles: Vec<f32> = middles.collect();
            for v in &values {
                let mut codes = vec![0; usize::from(bits)];
                encode_lane(bits, places(&[*v; LANE], 1.0)[0], &mut codes);
                let code = middles.iter().filter(|middle| v > middle).count();
                let word =
                    (0..LANE).fold(0u64, |word, i| word | (code as u64) << (usize::from(bits) * i));
                assert_eq!(codes, word.to_le_bytes()[..codes.len()], "{v} in {bits} bits");
            }
        }
    }

    #[test]
    fn the_levels_of_any_number_of_bits_are_sorted_and_lie_symmetrically() {
        for bits in 1..=MAX_BITS {
            let levels = &LEVELS[1 << bits..2 << bits];
            assert!(levels.is_sorted());
            assert!(levels.iter().zip(levels.iter().rev()).all(|(a, b)| *a == -*b));
        }
    }
}
