//! C = A B, or C = s C + A B, for the small dense products of attention; also the squared distances
//! of the rows of A from the columns of B.

use crate::simd::{Op, Simd};

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

/// What a row of A and a column of B add up over the depth.
pub trait Term: Copy {
    fn add<S: Simd>(self, simd: S, a: S::V, b: S::V, sum: S::V) -> S::V;
}

/// a b
#[derive(Clone, Copy)]
pub struct Dot;

impl Term for Dot {
    #[inline(always)]
    fn add<S: Simd>(self, simd: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        simd.fma(a, b, sum)
    }
}

/// (a - b)^2
#[derive(Clone, Copy)]
pub struct SquaredDistance;

impl Term for SquaredDistance {
    #[inline(always)]
    fn add<S: Simd>(self, simd: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        let d = simd.sub(a, b);
        simd.fma(d, d, sum)
    }
}

/// a (rows, depth) times b (depth, cols). With `scales` (rows), what is in c is multiplied with
/// them and added to.
pub struct Product<'a, T> {
    pub term: T,
    pub a: Rows<'a>,
    pub b: Rows<'a>,
    pub depth: usize,
    pub scales: Option<&'a [f32]>,
}

impl<T: Term> Product<'_, T> {
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
                simd.vectorize(Sums::<T, R, 4> { product: self, row, col, c });
                col += 4 * S::LANES;
            } else if vectors >= 2 {
                simd.vectorize(Sums::<T, R, 2> { product: self, row, col, c });
                col += 2 * S::LANES;
            } else {
                simd.vectorize(Sums::<T, R, 1> { product: self, row, col, c });
                col += S::LANES;
            }
        }
        R
    }
}

/// R rows by N vectors of c; all sums stay in registers.
struct Sums<'a, 'b, T, const R: usize, const N: usize> {
    product: &'a Product<'a, T>,
    row: usize,
    col: usize,
    c: &'a mut RowsMut<'b>,
}

impl<S: Simd, T: Term, const R: usize, const N: usize> Op<S> for Sums<'_, '_, T, R, N> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let Product { term, a, b, depth, scales } = *self.product;
        let (row, col, stride) = (self.row, self.col, self.c.stride);
        let out = &mut self.c.data[row * stride + col..];
        let (a_rows, b_rows) = (&a.data[row * a.stride..], &b.data[col..]);
        assert!(a_rows.len() >= (R - 1) * a.stride + depth);
        assert!(b_rows.len() >= (depth - 1) * b.stride + N * S::LANES);
        assert!(out.len() >= (R - 1) * stride + N * S::LANES);
        let mut sums = [[simd.splat(0.0); N]; R];
        let out = out.as_mut_ptr();
        // SAFETY: rows 0..R of a and c and rows 0..depth of b, N vectors wide, were just seen to be
        // inside their slices.
        unsafe {
            if let Some(scales) = scales {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let scale = simd.splat(scales[row + r]);
                    for (n, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.mul(scale, simd.load(out.add(r * stride + n * S::LANES)));
                    }
                }
            }
            for k in 0..depth {
                let from = b_rows.as_ptr().add(k * b.stride);
                let mut vectors = [simd.splat(0.0); N];
                for (n, vector) in vectors.iter_mut().enumerate() {
                    *vector = simd.load(from.add(n * S::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = simd.splat(*a_rows.as_ptr().add(r * a.stride + k));
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = term.add(simd, a, vector, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    simd.store(out.add(r * stride + n * S::LANES), *sum);
                }
            }
        }
    }
}
