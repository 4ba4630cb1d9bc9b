//! Kernels with vectors: one source for all instruction sets, over what they need of one.

mod activation;
pub mod attention;
mod backend;
mod compact;
mod write_kv;

use self::attention::coded::Wide;
use crate::{codec::Format, hadamard};

/// Bytes that come from memory together.
pub const LINE: usize = 64;

/// Vectors of f32. A value of the implementing type proves that the processor can run it.
///
/// Methods are inlined into [`Simd::vectorize`], where they turn into single instructions; outside
/// of it they are right but slow.
pub trait Simd: Copy + Send + Sync + 'static {
    type V: Copy;
    const NAME: &str;
    const LANES: usize;

    /// Proof that codes can be multiplied as integers, 64 at a time.
    #[inline(always)]
    fn wide(self) -> Option<Wide> {
        None
    }

    /// Runs `op` compiled for the instruction set.
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Out;

    fn splat(self, x: f32) -> Self::V;
    /// a * b + c
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger of each; b where a is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn largest_lane(self, v: Self::V) -> f32;
    fn sum_of_lanes(self, v: Self::V) -> f32;
    /// 2^v by [`exp2`]'s series, for v up to 0.
    fn exp2(self, v: Self::V) -> Self::V;
    /// Limits to the finite f16; NaN stays.
    fn clamp_f16(self, v: Self::V) -> Self::V;
    /// Lane i of the result is lane i ^ `half`.
    fn swap(self, v: Self::V, half: usize) -> Self::V;
    /// -1 in the lanes whose number has bit `half`, else 1.
    fn signs(self, half: usize) -> Self::V;

    /// Asks for these bytes to be brought near.
    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        bytes.chunks(LINE).for_each(|line| self.prefetch_at(line.as_ptr()));
    }

    /// Asks for the line with this address, which may be none of the program's.
    fn prefetch_at(self, address: *const u8);

    /// # Safety
    /// `from` points to LANES floats.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// # Safety
    /// `to` points to LANES floats.
    unsafe fn store(self, to: *mut f32, v: Self::V);
    /// # Safety
    /// `from` points to LANES f16.
    unsafe fn load_f16(self, from: *const u8) -> Self::V;
    /// # Safety
    /// `to` points to LANES f16.
    unsafe fn store_f16(self, to: *mut u8, v: Self::V);
    /// # Safety
    /// `from` points to LANES i8.
    unsafe fn load_i8(self, from: *const u8) -> Self::V;
    /// [`Format::unpack`] of vectors of `dim` channels, one after the other. `codes` may go on behind
    /// the last.
    #[inline(always)]
    fn unpack(self, format: Format, dim: usize, codes: &[u8], bytes: &mut [u8]) {
        let vectors = codes.chunks_exact(format.vector_bytes(dim));
        vectors.zip(bytes.chunks_exact_mut(dim)).for_each(|(codes, to)| format.unpack(codes, to));
    }
    /// The sum of each of LANES rows of LANES floats.
    ///
    /// # Safety
    /// `rows` points to them, one after the other.
    unsafe fn row_sums(self, rows: *const f32) -> Self::V;
    /// A square of LANES rows and columns, transposed. Strides are in floats.
    ///
    /// # Safety
    /// `from` and `to` point to LANES rows of LANES floats.
    unsafe fn transpose(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
}

/// Work for [`Simd::vectorize`]. `run`, and all it calls, is marked `inline(always)`: a closure may be
/// left outside, without the instructions.
pub trait Op<S: Simd> {
    type Out;
    fn run(self, simd: S) -> Self::Out;
}

/// The longest run of channels that is rotated with vectors.
const MAX_RUN: usize = 256;

/// The signs of [`hadamard::rotate`].
const SIGNS: [f32; MAX_RUN] = {
    let mut signs = [1.0; MAX_RUN];
    let mut i = 0;
    while i < MAX_RUN {
        if hadamard::is_flipped(i) {
            signs[i] = -1.0;
        }
        i += 1;
    }
    signs
};

/// [`hadamard::rotate`]
#[inline(always)]
pub fn rotate<S: Simd>(simd: S, x: &mut [f32]) {
    let len = hadamard::run_len(x.len());
    if !(S::LANES..=MAX_RUN).contains(&len) {
        return hadamard::rotate(x);
    }
    for run in x.chunks_exact_mut(len) {
        flip_signs(run);
        transform(simd, run);
    }
}

/// [`hadamard::rotate_back`]
#[inline(always)]
pub fn rotate_back<S: Simd>(simd: S, x: &mut [f32]) {
    let len = hadamard::run_len(x.len());
    if !(S::LANES..=MAX_RUN).contains(&len) {
        return hadamard::rotate_back(x);
    }
    for run in x.chunks_exact_mut(len) {
        transform(simd, run);
        flip_signs(run);
    }
}

#[inline(always)]
fn flip_signs(run: &mut [f32]) {
    for (x, sign) in run.iter_mut().zip(&SIGNS) {
        *x *= sign;
    }
}

/// The Walsh-Hadamard transform of a run of whole vectors.
#[inline(always)]
fn transform<S: Simd>(simd: S, run: &mut [f32]) {
    transform_lanes(simd, run);
    let mut half = S::LANES;
    while half < run.len() {
        for pair in run.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// The stages inside of vectors, and the scale.
#[inline(always)]
fn transform_lanes<S: Simd>(simd: S, run: &mut [f32]) {
    let scale = simd.splat(1.0 / (run.len() as f32).sqrt());
    for lanes in run.chunks_exact_mut(S::LANES) {
        // SAFETY: `lanes` is LANES floats.
        let mut v = unsafe { simd.load(lanes.as_ptr()) };
        let mut half = 1;
        while half < S::LANES {
            v = simd.fma(v, simd.signs(half), simd.swap(v, half));
            half *= 2;
        }
        // SAFETY: as above.
        unsafe { simd.store(lanes.as_mut_ptr(), simd.mul(v, scale)) };
    }
}

/// The Taylor series of 2^r for |r| <= 1/2, the highest power first.
pub const EXP2_SERIES: [f32; 7] = [
    1.540_353e-4,
    1.333_355_8e-3,
    9.618_129e-3,
    5.550_411e-2,
    0.240_226_5,
    std::f32::consts::LN_2,
    1.0,
];

/// 2^x to 2e-7 of its value; 0 below the normal numbers. For x up to 127; vectorizes.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    /// 1.5 * 2^23: sums with it are rounded to integers, found in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = x.max(-127.0);
    let shifted = clamped + MAGIC;
    let r = clamped - (shifted - MAGIC);
    let p = EXP2_SERIES.into_iter().fold(0.0f32, |p, c| p.mul_add(r, c));
    let power = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -126.0 { 0.0 } else { power }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::TIERS;
    #[cfg(target_arch = "aarch64")]
    use crate::aarch64::Neon;
    #[cfg(target_arch = "x86_64")]
    use crate::x86::{Avx2, Avx512};

    #[test]
    fn every_format_is_unpacked_as_the_codec_says() {
        #[cfg(target_arch = "aarch64")]
        Neon::new().into_iter().for_each(check_unpacking);
        #[cfg(target_arch = "x86_64")]
        Avx2::new().into_iter().for_each(check_unpacking);
        #[cfg(target_arch = "x86_64")]
        Avx512::new().into_iter().for_each(check_unpacking);
    }

    fn check_unpacking<S: Simd>(simd: S) {
        let formats = TIERS.iter().flat_map(|info| [info.key, info.value]);
        let uneven = [Format::Levels([6, 5, 4, 4, 3, 2, 1, 0]), Format::uniform(6)];
        for format in formats.filter(|f| *f != Format::F16).chain(uneven) {
            for shape in [(16, 4), (32, 3), (64, 1), (64, 5), (80, 2), (96, 2), (128, 9)] {
                check_vectors(simd, format, shape);
            }
        }
    }

    fn check_vectors<S: Simd>(simd: S, format: Format, (dim, len): (usize, usize)) {
        let mut rng = StdRng::seed_from_u64(1);
        let codes: Vec<u8> = (0..len * format.vector_bytes(dim)).map(|_| rng.random()).collect();
        let (mut fast, mut plain) = (vec![1; len * dim], vec![2; len * dim]);
        simd.unpack(format, dim, &codes, &mut fast);
        let mut longer = codes.clone();
        longer.extend([0xa5; 40]);
        let mut within = vec![3; len * dim];
        simd.unpack(format, dim, &longer, &mut within);
        assert_eq!(within, fast, "what lies behind the last vector shows");
        let vectors = codes.chunks_exact(format.vector_bytes(dim));
        for (codes, plain) in vectors.zip(plain.chunks_exact_mut(dim)) {
            format.unpack(codes, plain);
        }
        assert_eq!(fast, plain, "{}: {format:?} at {dim} x {len}", S::NAME);
    }
}
