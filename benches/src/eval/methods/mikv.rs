use super::{
    Compressed, Method, Needs, Prefix, Target, code_bytes, in_original_channels, keep_best,
    requantize,
};
use crate::eval::{prefix::Head, quantize::min_max_groups};

const IMPORTANT: f64 = 0.2;
const HIGH_BITS: u32 = 8;
const LOW_BITS: u32 = 2;
/// Step and zero in f16.
const GROUP_BYTES: f64 = 4.0;

/// The 20 % of tokens with most accumulated attention in 8 bits, the others in 2, per token in groups
/// of D/2 channels; the balancer `sqrt(max|q| / max|k|)` per channel moves outliers of K to the query
/// (MiKV, arXiv 2402.18096).
pub struct MiKv;

impl Method for MiKv {
    fn name(&self) -> &'static str {
        "mikv"
    }

    fn is_fixed(&self) -> bool {
        true
    }

    fn needs(&self) -> Needs {
        Needs { mass: true, ..Needs::default() }
    }

    fn compress(&self, prefix: &Prefix, _: &Target) -> Compressed {
        let (dim, free) = (prefix.head_dim(), prefix.free());
        let num_important = (IMPORTANT * free.len() as f64) as usize;
        let heads = requantize(prefix, |index, keys, values| {
            let head = &prefix.heads[index];
            let important = &keep_best(prefix, &head.mass, num_important)[free.clone()];
            let round = |x: &mut [f32]| {
                for (x, important) in x.chunks_exact_mut(dim).zip(important) {
                    min_max_groups(x, dim / 2, if *important { HIGH_BITS } else { LOW_BITS });
                }
            };
            in_original_channels(keys, dim, |keys| {
                let balancer = balancer(head, keys);
                for key in keys.chunks_exact_mut(dim) {
                    key.iter_mut().zip(&balancer).for_each(|(k, b)| *k *= b);
                }
                round(keys);
                for key in keys.chunks_exact_mut(dim) {
                    key.iter_mut().zip(&balancer).for_each(|(k, b)| *k /= b);
                }
            });
            in_original_channels(values, dim, round);
        });
        let token = |bits| 2.0 * (code_bytes(dim, bits) + 2.0 * GROUP_BYTES);
        let head_bytes = num_important as f64 * token(HIGH_BITS)
            + (free.len() - num_important) as f64 * token(LOW_BITS)
            + 2.0 * dim as f64;
        Compressed { bytes: prefix.protected_bytes() + heads.len() as f64 * head_bytes, heads }
    }
}

/// Per channel of `keys` (N, D), in the original channels.
fn balancer(head: &Head, keys: &[f32]) -> Vec<f32> {
    let mut largest_key = vec![0f32; head.head_dim];
    for key in keys.chunks_exact(head.head_dim) {
        largest_key.iter_mut().zip(key).for_each(|(most, k)| *most = most.max(k.abs()));
    }
    let ratio = |(q, k): (&f32, &f32)| {
        let ratio = (q / k).sqrt();
        if ratio.is_finite() && ratio > 0.0 { ratio } else { 1.0 }
    };
    head.largest_query.iter().zip(&largest_key).map(ratio).collect()
}
