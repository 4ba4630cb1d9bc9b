//! Hadamard rotation of one head's vector: spreads outliers over all channels, so that few bits
//! code them well (QuaRot, arXiv 2404.00456).
//!
//! Channels first change sign by the Golay-Rudin-Shapiro sequence. Its spectrum is flat, so that
//! also a vector whose channels are alike comes out spread; the plain transform would put all of it
//! into one channel.

/// Rotates `x` (D) in place: orthonormal. When D is not a power of two, each run of the largest
/// power of two that divides D is rotated by itself.
pub fn rotate(x: &mut [f32]) {
    for run in x.chunks_exact_mut(run_len(x.len())) {
        flip_signs(run);
        transform(run);
    }
}

/// The inverse of [`rotate`].
pub fn rotate_back(x: &mut [f32]) {
    for run in x.chunks_exact_mut(run_len(x.len())) {
        transform(run);
        flip_signs(run);
    }
}

/// Channels that are rotated together.
pub(crate) fn run_len(dim: usize) -> usize {
    1 << dim.trailing_zeros()
}

/// Whether term i of the Golay-Rudin-Shapiro sequence is -1: the parity of pairs of adjacent ones in
/// i.
pub(crate) const fn is_flipped(i: usize) -> bool {
    (i & (i >> 1)).count_ones() % 2 == 1
}

fn flip_signs(run: &mut [f32]) {
    for (i, x) in run.iter_mut().enumerate() {
        if is_flipped(i) {
            *x = -*x;
        }
    }
}

/// The orthonormal Walsh-Hadamard transform, its own inverse.
fn transform(run: &mut [f32]) {
    let scale = 1.0 / (run.len() as f32).sqrt();
    let mut half = 1;
    while half < run.len() {
        for pair in run.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    run.iter_mut().for_each(|v| *v *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotating_there_and_back_gives_the_vector_and_keeps_its_length() {
        for dim in [16, 64, 96, 128] {
            let x: Vec<f32> = (0..dim).map(|i| ((i * 37 + 11) % 23) as f32 - 9.0).collect();
            let mut y = x.clone();
            rotate(&mut y);
            let norm = |v: &[f32]| v.iter().map(|a| a * a).sum::<f32>();
            assert!((norm(&x) - norm(&y)).abs() < 1e-2 * norm(&x));
            rotate_back(&mut y);
            assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-4));
        }
    }

    #[test]
    fn one_outlier_and_a_constant_are_spread_evenly() {
        let mut outlier = vec![0.0; 64];
        outlier[5] = 8.0;
        for mut x in [outlier, vec![1.0; 64]] {
            rotate(&mut x);
            assert!(x.iter().all(|v| (v.abs() - 1.0).abs() < 1e-6));
        }
    }
}
