//! C = A B, or C = s C + A B, for the small dense products of attention.

use super::super::simd::Simd;

/// Rows of a row-major matrix: a slice and the distance of its rows.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// The same, to be written.
pub struct RowsMut<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
}

/// a (rows, depth) times b (depth, cols). With `scales` (rows), what is in c is multiplied with
/// them and added to.
pub struct Product<'a> {
    pub a: Rows<'a>,
    pub b: Rows<'a>,
    pub depth: usize,
    pub scales: Option<&'a [f32]>,
}

impl Product<'_> {
    /// Computes c (rows, cols); `cols` is a multiple of the vector's lanes.
    #[inline(always)]
    pub fn run<S: Simd>(&self, simd: S, (rows, cols): (usize, usize), mut c: RowsMut) {
        let mut row = 0;
        while row < rows {
            row += match rows - row {
                6.. => self.strip::<S, 6>(simd, row, cols, &mut c),
                4 | 5 => self.strip::<S, 4>(simd, row, cols, &mut c),
                3 => self.strip::<S, 3>(simd, row, cols, &mut c),
                2 => self.strip::<S, 2>(simd, row, cols, &mut c),
                _ => self.strip::<S, 1>(simd, row, cols, &mut c),
            };
        }
    }

    /// R rows of c. 16 registers hold 6 x 2 sums, 32 hold 6 x 4.
    #[inline(always)]
    fn strip<S: Simd, const R: usize>(
        &self,
        simd: S,
        row: usize,
        cols: usize,
        c: &mut RowsMut,
    ) -> usize {
        let mut col = 0;
        while col < cols {
            let vectors = (cols - col) / S::LANES;
            if S::LANES == 16 && vectors >= 4 {
                simd.vectorize(|| self.tile::<S, R, 4>(simd, row, col, c));
                col += 4 * S::LANES;
            } else if vectors >= 2 {
                simd.vectorize(|| self.tile::<S, R, 2>(simd, row, col, c));
                col += 2 * S::LANES;
            } else {
                simd.vectorize(|| self.tile::<S, R, 1>(simd, row, col, c));
                col += S::LANES;
            }
        }
        R
    }

    /// R rows by N vectors of c; all sums stay in registers.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize>(
        &self,
        simd: S,
        row: usize,
        col: usize,
        c: &mut RowsMut,
    ) {
        let (a, b) = (&self.a.data[row * self.a.stride..], &self.b.data[col..]);
        let out = &mut c.data[row * c.stride + col..];
        assert!(a.len() >= (R - 1) * self.a.stride + self.depth);
        assert!(b.len() >= (self.depth - 1) * self.b.stride + N * S::LANES);
        assert!(out.len() >= (R - 1) * c.stride + N * S::LANES);
        let mut sums = [[simd.splat(0.0); N]; R];
        // SAFETY: rows 0..R of a and c and rows 0..depth of b, N vectors wide, were just seen to be
        // inside their slices.
        unsafe {
            if let Some(scales) = self.scales {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let scale = simd.splat(scales[row + r]);
                    for (n, sum) in sums.iter_mut().enumerate() {
                        let old = simd.load(out.as_ptr().add(r * c.stride + n * S::LANES));
                        *sum = simd.mul(scale, old);
                    }
                }
            }
            for k in 0..self.depth {
                let b = b.as_ptr().add(k * self.b.stride);
                let b: [S::V; N] = std::array::from_fn(|n| simd.load(b.add(n * S::LANES)));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = simd.splat(*a.as_ptr().add(r * self.a.stride + k));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = simd.fma(a, b, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    simd.store(out.as_mut_ptr().add(r * c.stride + n * S::LANES), *sum);
                }
            }
        }
    }
}
