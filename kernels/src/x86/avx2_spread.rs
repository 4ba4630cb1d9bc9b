//! Codes of a few bits to signed bytes with AVX2: a lane's bits to doublewords, four lanes of these to
//! bytes, and one look-up for each sixteen levels in use. (Depositing bits would take fewer
//! instructions, but is slow before Zen 3.)

use std::arch::x86_64::*;

use crate::codec::{Format, LANE, LEVELS, MAX_BITS, lane_bits};

/// Channels of a register of signed bytes.
const BLOCK: usize = 32;
const LANES: usize = BLOCK / LANE;
/// Bytes read of a lane's codes, some of them beyond it.
const WORD: usize = 8;
/// Levels of one look-up.
const TABLE: usize = 16;
const NUM_TABLES: usize = LEVELS.len() / TABLE;
const _: () = assert!(MAX_BITS as usize <= WORD);

/// 32 bytes that lie in one register.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Bytes([u8; BLOCK]);

/// How the codes of a lane become doublewords.
struct Lane {
    /// Brings to each doubleword the two bytes in which its code lies.
    bytes: Bytes,
    /// The bit at which it starts there.
    shifts: Bytes,
    masks: Bytes,
}

impl Lane {
    const fn new(bits: usize) -> Self {
        let (mut bytes, mut shifts, mut masks) = ([0x80; BLOCK], [0; BLOCK], [0; BLOCK]);
        let mut code = 0;
        while code < LANE {
            let start = bits * code;
            (bytes[4 * code], bytes[4 * code + 1]) = ((start / 8) as u8, (start / 8 + 1) as u8);
            shifts[4 * code] = (start % 8) as u8;
            masks[4 * code] = (1 << bits) - 1;
            code += 1;
        }
        Self { bytes: Bytes(bytes), shifts: Bytes(shifts), masks: Bytes(masks) }
    }
}

/// By the number of bits.
static BY_BITS: [Lane; MAX_BITS as usize + 1] = [
    Lane::new(0),
    Lane::new(1),
    Lane::new(2),
    Lane::new(3),
    Lane::new(4),
    Lane::new(5),
    Lane::new(6),
];

/// Sixteen levels, of its own for each half of a register.
#[derive(Clone, Copy)]
struct LookUp {
    /// Turns indices of these levels into numbers below [`TABLE`].
    flip: Bytes,
    levels: Bytes,
}

impl LookUp {
    /// Finds nothing: no index has its highest bit set.
    const NONE: Self = Self { flip: Bytes([0x80; BLOCK]), levels: Bytes([0; BLOCK]) };

    fn set(&mut self, half: usize, table: usize) {
        let half = half * TABLE..(half + 1) * TABLE;
        self.flip.0[half.clone()].fill((table * TABLE) as u8);
        let levels = LEVELS[table * TABLE..].iter().map(|level| *level as u8);
        self.levels.0[half].iter_mut().zip(levels).for_each(|(to, level)| *to = level);
    }
}

/// How the codes of a block of channels become signed bytes.
struct Spread {
    /// Byte of the vector at which each lane starts.
    starts: [usize; LANES],
    lanes: [&'static Lane; LANES],
    markers: Bytes,
    look_ups: [LookUp; NUM_TABLES],
    num_look_ups: usize,
}

impl Spread {
    fn new(bits: &[u8; 8], dim: usize, block: usize) -> Self {
        let bits_of = |lane: usize| usize::from(lane_bits(bits, dim, lane));
        let first = block * LANES;
        let here: [usize; LANES] = std::array::from_fn(|lane| bits_of(first + lane));
        let mut spread = Self {
            starts: std::array::from_fn(|lane| (0..first + lane).map(bits_of).sum()),
            lanes: here.map(|bits| &BY_BITS[bits]),
            markers: Bytes(std::array::from_fn(|channel| 1 << here[channel / LANE])),
            look_ups: [LookUp::NONE; NUM_TABLES],
            num_look_ups: 0,
        };
        for (half, bits) in here.chunks(LANES / 2).enumerate() {
            let is_used = |table: &usize| bits.iter().any(|b| tables(*b).contains(table));
            for (i, table) in (0..NUM_TABLES).filter(is_used).enumerate() {
                spread.look_ups[i].set(half, table);
                spread.num_look_ups = spread.num_look_ups.max(i + 1);
            }
        }
        spread
    }

    /// The levels of one vector that begins at `codes`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn levels(&self, codes: &[u8]) -> __m256i {
        let lane = |i: usize| {
            let Lane { bytes, shifts, masks } = self.lanes[i];
            let word = _mm256_set1_epi64x(word(&codes[self.starts[i]..]));
            let codes = _mm256_srlv_epi32(_mm256_shuffle_epi8(word, load(bytes)), load(shifts));
            _mm256_and_si256(codes, load(masks))
        };
        let (ab, cd) = (_mm256_packs_epi32(lane(0), lane(1)), _mm256_packs_epi32(lane(2), lane(3)));
        // Packing goes half by half: the first four codes of all lanes come first.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let codes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order);
        let index = _mm256_or_si256(codes, load(&self.markers));
        let mut levels = _mm256_setzero_si256();
        for LookUp { flip, levels: table } in &self.look_ups[..self.num_look_ups] {
            // Adding 0x80 - TABLE sets the highest bit of what is TABLE or more: it finds zero.
            let index = _mm256_xor_si256(index, load(flip));
            let index = _mm256_adds_epu8(index, _mm256_set1_epi8(0x70));
            levels = _mm256_or_si256(levels, _mm256_shuffle_epi8(load(table), index));
        }
        levels
    }
}

/// The look-ups that have the levels of so many bits.
fn tables(bits: usize) -> std::ops::Range<usize> {
    (1 << bits) / TABLE..(2usize << bits).div_ceil(TABLE)
}

#[inline(always)]
fn word(codes: &[u8]) -> i64 {
    if let Some(word) = codes.first_chunk::<WORD>() {
        return i64::from_le_bytes(*word);
    }
    let mut word = [0; WORD];
    word[..codes.len()].copy_from_slice(codes);
    i64::from_le_bytes(word)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &Bytes) -> __m256i {
    // SAFETY: 32 aligned bytes.
    unsafe { _mm256_load_si256(bytes.0.as_ptr().cast()) }
}

/// [`Format::unpack`] of vectors of `dim` channels, one after the other.
#[inline]
#[target_feature(enable = "avx2")]
pub fn unpack(format: Format, dim: usize, codes: &[u8], bytes: &mut [u8]) {
    let len = format.vector_bytes(dim);
    let bits = match format {
        Format::Levels(bits) if dim.is_multiple_of(BLOCK) => bits,
        _ => {
            let vectors = codes.chunks_exact(len).zip(bytes.chunks_exact_mut(dim));
            return vectors.for_each(|(codes, to)| format.unpack(codes, to));
        }
    };
    let num_vectors = bytes.len() / dim;
    assert!(codes.len() >= num_vectors * len);
    for block in 0..dim / BLOCK {
        let spread = Spread::new(&bits, dim, block);
        for vector in 0..num_vectors {
            let levels = spread.levels(&codes[vector * len..]);
            let to = &mut bytes[vector * dim + block * BLOCK..][..BLOCK];
            // SAFETY: 32 bytes.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), levels) };
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::TIERS;

    #[test]
    fn every_format_is_unpacked_as_the_codec_says() {
        if !is_x86_feature_detected!("avx2") {
            return;
        }
        let mut rng = StdRng::seed_from_u64(1);
        let formats = TIERS.iter().flat_map(|info| [info.key, info.value]);
        let uneven = [Format::Levels([6, 5, 4, 4, 3, 2, 1, 0]), Format::uniform(6)];
        for format in formats.filter(|f| *f != Format::F16).chain(uneven) {
            for (dim, len) in [(32, 3), (64, 1), (64, 5), (96, 2), (128, 9), (80, 2)] {
                if dim == 80 && matches!(format, Format::Levels(_)) {
                    continue;
                }
                let codes: Vec<u8> =
                    (0..len * format.vector_bytes(dim)).map(|_| rng.random()).collect();
                let (mut fast, mut plain) = (vec![1; len * dim], vec![2; len * dim]);
                // SAFETY: the feature was seen.
                unsafe { unpack(format, dim, &codes, &mut fast) };
                let vectors = codes.chunks_exact(format.vector_bytes(dim));
                for (codes, plain) in vectors.zip(plain.chunks_exact_mut(dim)) {
                    format.unpack(codes, plain);
                }
                assert_eq!(fast, plain, "{format:?} at {dim} x {len}");
            }
        }
    }
}
