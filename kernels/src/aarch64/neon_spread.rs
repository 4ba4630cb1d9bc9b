//! Codes of a few bits to signed bytes with NEON: each code's two bytes to a word, which is shifted,
//! and one look-up among as many levels as codes of so many bits have.

use std::arch::aarch64::*;

use crate::codec::{Format, LANE, LEVELS, MAX_BITS, lane_bits};

/// Channels of a register of signed bytes: two lanes, whose codes come by one load.
const BLOCK: usize = 2 * LANE;
/// Bytes of that load, some of them beyond the codes.
const READ: usize = 16;
/// Levels of a register.
const TABLE: usize = 16;
/// A code starts in the first byte of its word and ends in the second.
const _: () = assert!(7 + MAX_BITS <= 16 && 2 * (MAX_BITS as usize) < READ);

/// How the codes of a lane, with so many bits each, become words that start with them.
#[derive(Clone, Copy)]
struct Words {
    /// Bytes of the lane in which each code lies.
    bytes: [u8; 2 * LANE],
    /// Bits to the left: none or fewer.
    shifts: [i16; LANE],
}

const WORDS: [Words; MAX_BITS as usize + 1] = {
    let mut words = [Words { bytes: [0; 2 * LANE], shifts: [0; LANE] }; MAX_BITS as usize + 1];
    let mut bits = 0;
    while bits < words.len() {
        let mut code = 0;
        while code < LANE {
            let start = bits * code;
            words[bits].bytes[2 * code] = (start / 8) as u8;
            words[bits].bytes[2 * code + 1] = (start / 8 + 1) as u8;
            words[bits].shifts[code] = -((start % 8) as i16);
            code += 1;
        }
        bits += 1;
    }
    words
};

/// The codes of a block of channels.
struct Spread {
    /// Byte of the vector at which they start.
    start: usize,
    /// Bits of each lane's codes.
    bits: [u8; 2],
}

impl Spread {
    /// The levels of the block's channels in each vector of `codes`, `len` bytes each, to the first
    /// of each `dim` bytes.
    #[inline]
    #[target_feature(enable = "neon")]
    fn unpack(&self, codes: &[u8], len: usize, bytes: &mut [u8], dim: usize) {
        match self.bits.into_iter().max() {
            Some(6..) => self.each::<8>(codes, len, bytes, dim),
            Some(5) => self.each::<4>(codes, len, bytes, dim),
            Some(4) => self.each::<2>(codes, len, bytes, dim),
            _ => self.each::<1>(codes, len, bytes, dim),
        }
    }

    /// With the first N registers of levels.
    #[inline]
    #[target_feature(enable = "neon")]
    fn each<const N: usize>(&self, codes: &[u8], len: usize, bytes: &mut [u8], dim: usize) {
        let [low, high] = self.bits.map(|bits| &WORDS[usize::from(bits)]);
        let (low_bytes, high_bytes) = (load(&low.bytes), load(&high.bytes));
        let high_bytes = vaddq_u8(high_bytes, vdupq_n_u8(self.bits[0]));
        let (low_shifts, high_shifts) = (shifts(low), shifts(high));
        let [low, high] = self.bits.map(|bits| vdup_n_u8(1 << bits));
        let markers = vcombine_u8(low, high);
        let masks = vsubq_u8(markers, vdupq_n_u8(1));
        let levels: [uint8x16_t; N] = std::array::from_fn(|i| table(i));
        // The last ones may end where codes end, too early for a whole load.
        let num_whole = (codes.len() + len).saturating_sub(self.start + READ) / len.max(1);
        for (vector, to) in bytes.chunks_mut(dim).enumerate() {
            let from = &codes[vector * len + self.start..];
            let packed = if vector < num_whole { first(from) } else { load(&padded(from)) };
            let low = vshlq_u16(words(packed, low_bytes), low_shifts);
            let high = vshlq_u16(words(packed, high_bytes), high_shifts);
            let both = vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
            let index = vorrq_u8(vandq_u8(both, masks), markers);
            // SAFETY: 16 bytes.
            unsafe { vst1q_u8(to[..BLOCK].as_mut_ptr(), look_up(&levels, index)) };
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn words(packed: uint8x16_t, bytes: uint8x16_t) -> uint16x8_t {
    vreinterpretq_u16_u8(vqtbl1q_u8(packed, bytes))
}

#[inline]
#[target_feature(enable = "neon")]
fn look_up<const N: usize>(levels: &[uint8x16_t; N], index: uint8x16_t) -> uint8x16_t {
    let four = |first: usize| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| levels[first + i]);
        uint8x16x4_t(a, b, c, d)
    };
    match N {
        1 => vqtbl1q_u8(levels[0], index),
        2 => vqtbl2q_u8(uint8x16x2_t(levels[0], levels[1]), index),
        4 => vqtbl4q_u8(four(0), index),
        // What one finds nothing for is left to the other.
        _ => {
            let behind = vsubq_u8(index, vdupq_n_u8(4 * TABLE as u8));
            vqtbx4q_u8(vqtbl4q_u8(four(0), index), four(4), behind)
        }
    }
}

/// Register i of the levels.
#[inline]
#[target_feature(enable = "neon")]
fn table(i: usize) -> uint8x16_t {
    let (tables, _) = LEVELS.as_chunks::<TABLE>();
    // SAFETY: 16 bytes.
    vreinterpretq_u8_s8(unsafe { vld1q_s8(tables[i].as_ptr()) })
}

#[inline]
#[target_feature(enable = "neon")]
fn shifts(words: &Words) -> int16x8_t {
    // SAFETY: 8 words.
    unsafe { vld1q_s16(words.shifts.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn first(codes: &[u8]) -> uint8x16_t {
    load(codes.first_chunk().expect("seen to be whole"))
}

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; READ]) -> uint8x16_t {
    // SAFETY: 16 bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// The last bytes of the codes, and zeros behind them.
#[cold]
fn padded(codes: &[u8]) -> [u8; READ] {
    let mut bytes = [0; READ];
    let len = codes.len().min(READ);
    bytes[..len].copy_from_slice(&codes[..len]);
    bytes
}

/// [`Format::unpack`] of vectors of `dim` channels, one after the other. Quicker where `codes` goes on
/// behind the last.
#[inline]
#[target_feature(enable = "neon")]
pub fn unpack(format: Format, dim: usize, codes: &[u8], bytes: &mut [u8]) {
    let len = format.vector_bytes(dim);
    let bits = match format {
        Format::Levels(bits) if dim.is_multiple_of(BLOCK) => bits,
        _ => {
            let vectors = codes.chunks_exact(len).zip(bytes.chunks_exact_mut(dim));
            return vectors.for_each(|(codes, to)| format.unpack(codes, to));
        }
    };
    let mut start = 0;
    for block in 0..dim / BLOCK {
        let bits = [2 * block, 2 * block + 1].map(|lane| lane_bits(&bits, dim, lane));
        let from_block = bytes.get_mut(block * BLOCK..).unwrap_or_default();
        Spread { start, bits }.unpack(codes, len, from_block, dim);
        start += bits.map(usize::from).iter().sum::<usize>();
    }
}
