//! Codes of a few bits to signed bytes with AVX-512 VBMI: bytes to lanes, bits to bytes, and one
//! look-up for each register.

use std::{arch::x86_64::*, cell::RefCell};

use super::{Avx512, made::Made};
use crate::{
    codec::{Format, LANE, LEVELS, lane_bits},
    simd::attention::pieces::Ahead,
};

/// Channels of a register of signed bytes.
pub const BLOCK: usize = 64;
/// Vectors that a share is asked for ahead with.
const VECTORS_PER_SHARE: usize = 4;

/// 64 bytes that lie in one line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line(pub [u8; BLOCK]);

impl Line {
    pub const ZERO: Self = Self([0; BLOCK]);
}

/// How the codes of a block of channels become signed bytes.
pub struct Spread {
    /// Of a coded vector, all its blocks.
    vector_bytes: usize,
    /// First byte of the block's codes, and their number, which is 0 where all channels have 0 bits.
    start: usize,
    len: usize,
    /// `None` if codes are signed bytes.
    look: Option<Box<Look>>,
}

/// How codes become indices into [`LEVELS`].
struct Look {
    /// Brings the code bytes of a lane into its 8 bytes.
    bytes: Line,
    /// The bit of the lane at which each code starts.
    shifts: Line,
    masks: Line,
    markers: Line,
    /// Whether all indices lie in the first half of the levels: one look-up then does.
    is_short: bool,
}

/// What is wanted of some coded vectors.
pub struct Wanted<'a, 'b> {
    pub simd: Avx512,
    /// Flips bits of each level: 128 makes them unsigned.
    pub flip: u8,
    pub ahead: &'a mut Ahead<'b>,
}

impl Spread {
    /// # Panics
    /// For F16.
    pub fn new(format: Format, dim: usize, block: usize) -> Self {
        let vector_bytes = format.vector_bytes(dim);
        let bits = match format {
            Format::F16 => panic!("F16 has no signed bytes"),
            Format::Int8 => {
                return Self { vector_bytes, start: block * BLOCK, len: BLOCK, look: None };
            }
            Format::Levels(bits) => bits,
        };
        let bits = |lane: usize| usize::from(lane_bits(&bits, dim, lane));
        let first = block * BLOCK / LANE;
        let zeros = Line::ZERO;
        let (bytes, shifts, masks, markers) = (zeros, zeros, zeros, zeros);
        let mut look = Look { bytes, shifts, masks, markers, is_short: true };
        let mut len = 0;
        for lane in 0..BLOCK / LANE {
            let bits = bits(first + lane);
            look.is_short &= 2 << bits <= BLOCK;
            for i in 0..LANE {
                let channel = lane * LANE + i;
                look.bytes.0[channel] = (len + i.min(bits.saturating_sub(1))) as u8;
                look.shifts.0[channel] = (bits * i) as u8;
                look.masks.0[channel] = (1 << bits) - 1;
                look.markers.0[channel] = 1 << bits;
            }
            len += bits;
        }
        let start = (0..first).map(bits).sum();
        Self { vector_bytes, start, len, look: Some(Box::new(look)) }
    }

    /// Writes the block's levels of each vector of `codes` to `rows`, one line each.
    ///
    /// # Panics
    /// `codes` has fewer vectors than there are rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn unpack(&self, codes: &[u8], wanted: Wanted, rows: &mut [Line]) {
        assert!(self.start + self.len <= self.vector_bytes);
        assert!(codes.len() >= rows.len() * self.vector_bytes);
        let mask = first_bytes(self.len);
        let flip = _mm512_set1_epi8(wanted.flip as i8);
        // A run of its own for each case keeps what it needs in registers.
        match &self.look {
            None => self.each(codes, (mask, wanted), rows, |bytes| _mm512_xor_si512(bytes, flip)),
            Some(look) => {
                const { assert!(LEVELS.len() == 2 * BLOCK) };
                let (bytes, shifts) = (load(&look.bytes), load(&look.shifts));
                let (masks, markers) = (load(&look.masks), load(&look.markers));
                // SAFETY: LEVELS are two blocks.
                let (low, high) = unsafe {
                    let levels: *const u8 = LEVELS.as_ptr().cast();
                    let low = _mm512_loadu_si512(levels.cast());
                    (low, _mm512_loadu_si512(levels.add(BLOCK).cast()))
                };
                let (low, high) = (_mm512_xor_si512(low, flip), _mm512_xor_si512(high, flip));
                let index = |packed| {
                    let words = _mm512_permutexvar_epi8(bytes, packed);
                    let codes = _mm512_multishift_epi64_epi8(shifts, words);
                    // (codes & masks) | markers
                    _mm512_ternarylogic_epi64::<0xea>(codes, masks, markers)
                };
                if look.is_short {
                    let level = |packed| _mm512_permutexvar_epi8(index(packed), low);
                    return self.each(codes, (mask, wanted), rows, level);
                }
                let level = |packed| _mm512_permutex2var_epi8(low, index(packed), high);
                self.each(codes, (mask, wanted), rows, level);
            }
        }
    }

    #[inline(always)]
    fn each(
        &self,
        codes: &[u8],
        (mask, Wanted { simd, ahead, .. }): (u64, Wanted),
        rows: &mut [Line],
        levels: impl Fn(__m512i) -> __m512i,
    ) {
        let mut from = codes.as_ptr().wrapping_add(self.start);
        let mut one = |row: &mut Line| {
            // SAFETY: the caller runs with AVX-512 BW. The mask leaves out what does not belong to the
            // block, which lies inside the vector, and there are as many vectors as rows.
            unsafe {
                let packed = _mm512_maskz_loadu_epi8(mask, from.cast());
                _mm512_store_si512(row.0.as_mut_ptr().cast(), levels(packed));
            }
            from = from.wrapping_add(self.vector_bytes);
        };
        for rows in rows.chunks_mut(VECTORS_PER_SHARE) {
            ahead.ask(simd, 1);
            rows.iter_mut().for_each(&mut one);
        }
    }
}

/// The first `len` bytes of a register of 64.
fn first_bytes(len: usize) -> u64 {
    u64::MAX.checked_shr((BLOCK - len) as u32).unwrap_or(0)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 aligned bytes.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

thread_local!(static MADE: RefCell<Made<Spread>> = const { RefCell::new(Made::new()) });

/// [`Format::unpack`] of many vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub fn unpack(simd: Avx512, format: Format, dim: usize, codes: &[u8], bytes: &mut [u8]) {
    let len = format.vector_bytes(dim);
    if !dim.is_multiple_of(BLOCK) {
        let vectors = codes.chunks_exact(len).zip(bytes.chunks_exact_mut(dim));
        return vectors.for_each(|(codes, to)| format.unpack(codes, to));
    }
    let make = |block| Spread::new(format, dim, block);
    let spreads = MADE.with_borrow_mut(|made| made.of((format, dim), dim / BLOCK, make));
    let mut rows = [Line::ZERO; 16];
    let vectors = codes.chunks(rows.len() * len).zip(bytes.chunks_mut(rows.len() * dim));
    for (codes, to) in vectors {
        for (block, spread) in spreads.iter().enumerate() {
            let rows = &mut rows[..to.len() / dim];
            let ahead = &mut Ahead::new(&[]);
            spread.unpack(codes, Wanted { simd, flip: 0, ahead }, rows);
            for (row, to) in rows.iter().zip(to.chunks_exact_mut(dim)) {
                to[block * BLOCK..][..BLOCK].copy_from_slice(&row.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_whose_channels_have_no_bits_reads_nothing() {
        let k1 = Format::Levels([4, 2, 1, 1, 0, 0, 0, 0]);
        let reads = |block: usize| first_bytes(Spread::new(k1, 2 * BLOCK, block).len);
        assert_eq!([reads(0), reads(1)], [u64::from(u16::MAX), 0]);
        assert_eq!(first_bytes(BLOCK), u64::MAX);
    }
}
