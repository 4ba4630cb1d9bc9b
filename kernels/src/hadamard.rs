//! Hadamard rotation of one head's vector: spreads outliers over all channels, so that few bits
//! code them well (QuaRot). Orthonormal and its own inverse.

/// Rotates `x` (D) in place. When D is not a power of two, each run of the largest power of two
/// that divides D is rotated by itself.
pub fn rotate(x: &mut [f32]) {
    let block = 1 << x.len().trailing_zeros();
    let scale = 1.0 / (block as f32).sqrt();
    for run in x.chunks_exact_mut(block) {
        let mut half = 1;
        while half < block {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotating_twice_gives_the_vector_back_and_keeps_its_length() {
        for dim in [16, 64, 96, 128] {
            let x: Vec<f32> = (0..dim).map(|i| ((i * 37 + 11) % 23) as f32 - 9.0).collect();
            let mut y = x.clone();
            rotate(&mut y);
            let norm = |v: &[f32]| v.iter().map(|a| a * a).sum::<f32>();
            assert!((norm(&x) - norm(&y)).abs() < 1e-2 * norm(&x));
            rotate(&mut y);
            assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-4));
        }
    }

    #[test]
    fn one_outlier_is_spread_evenly() {
        let mut x = vec![0.0; 64];
        x[5] = 8.0;
        rotate(&mut x);
        assert!(x.iter().all(|v| (v.abs() - 1.0).abs() < 1e-6));
    }
}
