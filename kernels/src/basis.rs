//! A basis of its own for the keys of each KV head, in which few bits code them well.
//!
//! Scores do not change when keys lose what they have in common (softmax is blind to it: SmoothK of
//! SageAttention, arXiv 2410.02367) and when keys and queries change basis inversely. A basis that
//! knows where queries look and where keys vary (found by calibration) sorts the channels by how
//! much an error in them matters; each eighth of them then gets the bits it deserves, as in
//! transform coding (KVTC, arXiv 2511.01815). It takes the place of the Hadamard rotation.

use crate::{Error, Result};

/// k' = F (k - mean) and q' = F^-T q, after RoPE, for every (layer, KV head).
#[derive(Clone, Debug, PartialEq)]
pub struct KeyBasis {
    head_dim: usize,
    /// (heads, D)
    means: Vec<f32>,
    /// (heads, D, D): the columns of F, one after the other.
    keys: Vec<f32>,
    /// (heads, D, D): the columns of F^-T.
    queries: Vec<f32>,
}

/// The basis of one (layer, KV head).
#[derive(Clone, Copy, Debug)]
pub struct HeadBasis<'a> {
    pub mean: &'a [f32],
    /// Columns of F.
    pub keys: &'a [f32],
    /// Columns of F^-T.
    pub queries: &'a [f32],
}

impl KeyBasis {
    /// `means` (heads, D), `keys` and `queries` (heads, D, D) as in [`HeadBasis`].
    ///
    /// # Errors
    /// The lengths do not belong together, or a number is not finite.
    pub fn new(
        head_dim: usize,
        means: Vec<f32>,
        keys: Vec<f32>,
        queries: Vec<f32>,
    ) -> Result<Self> {
        let squares = means.len() * head_dim;
        let fit = head_dim > 0 && means.len().is_multiple_of(head_dim);
        if !fit || keys.len() != squares || queries.len() != squares {
            return Err(Error::shape("key basis", "lengths differ".to_owned()));
        }
        if [&means, &keys, &queries].into_iter().flatten().any(|x| !x.is_finite()) {
            return Err(Error::shape("key basis", "a number is not finite".to_owned()));
        }
        Ok(Self { head_dim, means, keys, queries })
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    pub fn num_heads(&self) -> usize {
        self.means.len() / self.head_dim
    }

    pub fn means(&self) -> &[f32] {
        &self.means
    }

    pub fn keys(&self) -> &[f32] {
        &self.keys
    }

    pub fn queries(&self) -> &[f32] {
        &self.queries
    }

    /// `head`: layer times KV heads plus KV head.
    pub fn head(&self, head: usize) -> HeadBasis<'_> {
        let (dim, square) = (self.head_dim, self.head_dim * self.head_dim);
        HeadBasis {
            mean: &self.means[head * dim..(head + 1) * dim],
            keys: &self.keys[head * square..(head + 1) * square],
            queries: &self.queries[head * square..(head + 1) * square],
        }
    }
}

impl HeadBasis<'_> {
    /// Brings a key into the basis, in place.
    pub fn turn_key(&self, key: &mut [f32]) {
        key.iter_mut().zip(self.mean).for_each(|(k, mean)| *k -= mean);
        turn(self.keys, key);
    }

    /// Brings a query into the inverse basis, in place.
    pub fn turn_query(&self, query: &mut [f32]) {
        turn(self.queries, query);
    }
}

fn turn(columns: &[f32], x: &mut [f32]) {
    let mut out = vec![0f32; x.len()];
    for (column, x) in columns.chunks_exact(x.len()).zip(x.iter()) {
        for (out, c) in out.iter_mut().zip(column) {
            *out += c * x;
        }
    }
    x.copy_from_slice(&out);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shear and its inverse transposed, as columns.
    fn basis() -> KeyBasis {
        let keys = vec![1.0, 0.5, 0.0, 2.0];
        let queries = vec![1.0, 0.0, -0.25, 0.5];
        KeyBasis::new(2, vec![3.0, -1.0], keys, queries).unwrap()
    }

    #[test]
    fn differences_of_scores_stay_what_they_were() {
        let basis = basis();
        let score = |q: [f32; 2], k: [f32; 2]| q[0] * k[0] + q[1] * k[1];
        let turned = |mut q: [f32; 2], mut k: [f32; 2]| {
            basis.head(0).turn_query(&mut q);
            basis.head(0).turn_key(&mut k);
            score(q, k)
        };
        let (q, a, b) = ([0.7, -1.3], [2.0, 5.0], [-4.0, 0.5]);
        let (plain, other) = (score(q, a) - score(q, b), turned(q, a) - turned(q, b));
        assert!((plain - other).abs() < 1e-5, "{plain} {other}");
    }

    #[test]
    fn a_basis_of_the_wrong_size_or_with_an_infinity_is_refused() {
        assert!(KeyBasis::new(2, vec![0.0; 4], vec![0.0; 4], vec![0.0; 8]).is_err());
        assert!(KeyBasis::new(2, vec![0.0; 3], vec![0.0; 6], vec![0.0; 6]).is_err());
        assert!(KeyBasis::new(1, vec![f32::INFINITY], vec![1.0], vec![1.0]).is_err());
    }
}
