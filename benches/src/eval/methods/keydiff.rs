use super::{Compressed, Method, Prefix, Target, evict, exact_tokens_per_head};
use crate::eval::prefix::Head;

/// Keys that differ most in direction from the mean key stay (KeyDiff, arXiv 2504.15364).
pub struct KeyDiff;

impl Method for KeyDiff {
    fn name(&self) -> &'static str {
        "keydiff"
    }

    fn compress(&self, prefix: &Prefix, target: &Target) -> Compressed {
        evict(prefix, exact_tokens_per_head(prefix, target), |_, head| score(head))
    }
}

/// Negative cosine to the mean of the normalized keys. A rotation does not change it.
fn score(head: &Head) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let mut mean = vec![0f32; head.head_dim];
    let inverse = |key: &[f32]| 1.0 / dot(key, key).sqrt().max(f32::MIN_POSITIVE);
    for key in head.keys.chunks_exact(head.head_dim) {
        let scale = inverse(key);
        mean.iter_mut().zip(key).for_each(|(mean, k)| *mean += scale * k);
    }
    (0..head.len()).map(|token| -dot(head.key(token), &mean) * inverse(head.key(token))).collect()
}
