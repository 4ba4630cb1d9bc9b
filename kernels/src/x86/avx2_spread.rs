//! Codes of a few bits to signed bytes with AVX2: each code's two bytes to a word, which a product
//! shifts, and one look-up for each sixteen levels in use. (Depositing bits would take about as many
//! instructions, but is slow before Zen 3.)

use std::{arch::x86_64::*, cell::RefCell};

use super::made::Made;
use crate::codec::{Format, LANE, LEVELS, MAX_BITS, lane_bits};

/// Channels of a register of signed bytes.
const BLOCK: usize = 32;
const LANES: usize = BLOCK / LANE;
/// Channels of half a register, whose codes come by one load: a shuffle stays within it.
const HALF: usize = BLOCK / 2;
/// Bytes of that load, some of them beyond the codes.
const READ: usize = 16;
/// Levels of one look-up.
const TABLE: usize = 16;
const NUM_TABLES: usize = LEVELS.len() / TABLE;
/// A code starts in the first byte of its word and ends in the second.
const _: () = assert!(7 + MAX_BITS <= 16 && HALF / LANE * MAX_BITS as usize <= READ);

/// 32 bytes that lie in one register.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Bytes([u8; BLOCK]);

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

/// How the codes of every other channel of a block are brought to the upper bytes of words.
struct Words {
    /// Brings to each word the two bytes in which its code lies.
    bytes: Bytes,
    /// Shifts the code's first bit to the upper byte.
    factors: Bytes,
}

impl Words {
    /// Of the channels from `first`, 0 or 1; `bits` are those of the block's lanes.
    fn new(bits: &[usize; LANES], first: usize) -> Self {
        let (mut bytes, mut factors) = (Bytes([0; BLOCK]), Bytes([0; BLOCK]));
        for word in 0..HALF {
            let channel = 2 * word + first;
            let (lane, code) = (channel / LANE, channel % LANE);
            let before = if lane % 2 == 1 { bits[lane - 1] } else { 0 };
            let start = 8 * before + bits[lane] * code;
            let at = 2 * word..2 * word + 2;
            bytes.0[at.clone()].copy_from_slice(&[(start / 8) as u8, (start / 8 + 1) as u8]);
            factors.0[at].copy_from_slice(&(1u16 << (8 - start % 8)).to_le_bytes());
        }
        Self { bytes, factors }
    }
}

/// How the codes of a block of channels become signed bytes.
struct Spread {
    /// Byte of the vector at which the codes of each half start.
    starts: [usize; 2],
    even: Words,
    odd: Words,
    masks: Bytes,
    markers: Bytes,
    look_ups: [LookUp; NUM_TABLES],
    num_look_ups: usize,
}

impl Spread {
    fn new(bits: &[u8; 8], dim: usize, block: usize) -> Self {
        let bits_of = |lane: usize| usize::from(lane_bits(bits, dim, lane));
        let first = block * LANES;
        let here: [usize; LANES] = std::array::from_fn(|lane| bits_of(first + lane));
        let marker = |channel: usize| 1u8 << here[channel / LANE];
        let mut spread = Self {
            starts: [0, LANES / 2].map(|lane| (0..first + lane).map(bits_of).sum()),
            even: Words::new(&here, 0),
            odd: Words::new(&here, 1),
            masks: Bytes(std::array::from_fn(|channel| marker(channel) - 1)),
            markers: Bytes(std::array::from_fn(marker)),
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

    /// The levels of the block's channels in each vector of `codes`, `len` bytes each, to the first
    /// of each `dim` bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn unpack(&self, codes: &[u8], len: usize, bytes: &mut [u8], dim: usize) {
        match self.num_look_ups {
            0 | 1 => self.each::<1>(codes, len, bytes, dim),
            2 => self.each::<2>(codes, len, bytes, dim),
            3 | 4 => self.each::<4>(codes, len, bytes, dim),
            5 => self.each::<5>(codes, len, bytes, dim),
            6 => self.each::<6>(codes, len, bytes, dim),
            _ => self.each::<NUM_TABLES>(codes, len, bytes, dim),
        }
    }

    /// With the first N look-ups.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn each<const N: usize>(&self, codes: &[u8], len: usize, bytes: &mut [u8], dim: usize) {
        let (even, odd) = (load(&self.even.bytes), load(&self.odd.bytes));
        let (even_factors, odd_factors) = (load(&self.even.factors), load(&self.odd.factors));
        let (masks, markers) = (load(&self.masks), load(&self.markers));
        let mut look_ups = [(masks, masks); N];
        for (to, LookUp { flip, levels }) in look_ups.iter_mut().zip(&self.look_ups) {
            *to = (load(flip), load(levels));
        }
        let num_vectors = bytes.len().div_ceil(dim);
        assert!(num_vectors == 0 || bytes.len() >= (num_vectors - 1) * dim + BLOCK);
        let reach = self.starts[1] + READ;
        // The last ones may end where codes end, too early for a whole load.
        let num_whole = (codes.len() + len).saturating_sub(reach) / len.max(1);
        for vector in 0..num_vectors {
            let from = vector * len;
            let packed = if vector < num_whole {
                // SAFETY: READ bytes from either start, the second of which is the later.
                unsafe { two_halves(self.starts.map(|start| codes.as_ptr().add(from + start))) }
            } else {
                let halves = self.starts.map(|start| padded(&codes[from + start..]));
                // SAFETY: READ bytes each.
                unsafe { two_halves([halves[0].as_ptr(), halves[1].as_ptr()]) }
            };
            let even = _mm256_mullo_epi16(_mm256_shuffle_epi8(packed, even), even_factors);
            let odd = _mm256_mullo_epi16(_mm256_shuffle_epi8(packed, odd), odd_factors);
            let odd = _mm256_and_si256(odd, _mm256_set1_epi16(0xff00u16 as i16));
            let both = _mm256_or_si256(_mm256_srli_epi16::<8>(even), odd);
            let index = _mm256_or_si256(_mm256_and_si256(both, masks), markers);
            let mut levels = _mm256_setzero_si256();
            for (flip, table) in look_ups {
                // Adding 0x80 - TABLE sets the highest bit of what is TABLE or more: it finds zero.
                let index = _mm256_xor_si256(index, flip);
                let index = _mm256_adds_epu8(index, _mm256_set1_epi8(0x70));
                levels = _mm256_or_si256(levels, _mm256_shuffle_epi8(table, index));
            }
            // SAFETY: the last of `bytes` has a whole block, as the others have.
            unsafe {
                _mm256_storeu_si256(bytes.as_mut_ptr().add(vector * dim).cast(), levels);
            }
        }
    }
}

/// # Safety
/// Both point to READ bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn two_halves([low, high]: [*const u8; 2]) -> __m256i {
    // SAFETY: as the caller says.
    unsafe { _mm256_set_m128i(_mm_loadu_si128(high.cast()), _mm_loadu_si128(low.cast())) }
}

/// The last bytes of the codes, and zeros behind them.
#[cold]
fn padded(codes: &[u8]) -> [u8; READ] {
    let mut bytes = [0; READ];
    let len = codes.len().min(READ);
    bytes[..len].copy_from_slice(&codes[..len]);
    bytes
}

/// The look-ups that have the levels of so many bits.
fn tables(bits: usize) -> std::ops::Range<usize> {
    (1 << bits) / TABLE..(2usize << bits).div_ceil(TABLE)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &Bytes) -> __m256i {
    // SAFETY: 32 aligned bytes.
    unsafe { _mm256_load_si256(bytes.0.as_ptr().cast()) }
}

thread_local!(static MADE: RefCell<Made<Spread>> = const { RefCell::new(Made::new()) });

/// [`Format::unpack`] of vectors of `dim` channels, one after the other. Quicker where `codes` goes on
/// behind the last.
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
    assert!(codes.len() >= bytes.len() / dim * len);
    let make = |block| Spread::new(&bits, dim, block);
    let spreads = MADE.with_borrow_mut(|made| made.of((format, dim), dim / BLOCK, make));
    for (block, spread) in spreads.iter().enumerate() {
        let from_block = bytes.get_mut(block * BLOCK..).unwrap_or_default();
        spread.unpack(codes, len, from_block, dim);
    }
}
