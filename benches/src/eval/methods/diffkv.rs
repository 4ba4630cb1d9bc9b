use super::{
    Compressed, Method, Needs, POSITION_BYTES, Prefix, Target, bisect, code_bytes,
    in_original_channels, requantize,
};
use crate::eval::quantize::min_max;

/// Thresholds on a token's attention times the number of tokens, of the paper's Llama-3-8B.
const HIGH: f64 = 1.0;
const LOW: f64 = 0.02;
/// Step and zero in f16, each for K and V.
const SCALE_BYTES: f64 = 8.0;

/// Tokens in K8V4, in K4V2, or pruned, by thresholds on the attention of the last 64 queries (DiffKV,
/// arXiv 2412.03131), per token asymmetric. Both thresholds are scaled by one factor to meet the
/// budget. Attention is averaged, not maximized, over the query heads of a group.
pub struct DiffKv;

impl Method for DiffKv {
    fn name(&self) -> &'static str {
        "diffkv"
    }

    fn needs(&self) -> Needs {
        Needs { recent_mass: true, ..Needs::default() }
    }

    fn compress(&self, prefix: &Prefix, target: &Target) -> Compressed {
        let (dim, free) = (prefix.head_dim(), prefix.free());
        // Attention over its mean: 1 is what each token gets when all get the same.
        let shares = prefix.map(|_, head| {
            let total: f32 = head.recent_mass.iter().sum();
            let scale = head.len() as f32 / total.max(f32::MIN_POSITIVE);
            free.clone().map(|token| f64::from(head.recent_mass[token] * scale)).collect::<Vec<_>>()
        });
        let token = |key, value| {
            code_bytes(dim, key) + code_bytes(dim, value) + SCALE_BYTES + POSITION_BYTES
        };
        let bytes = |factor: f64| {
            let token_bytes = |share: &f64| match tier(*share, factor) {
                Some((key, value)) => token(key, value),
                None => 0.0,
            };
            prefix.protected_bytes() + shares.iter().flatten().map(token_bytes).sum::<f64>()
        };
        // A smaller factor keeps more: look for the largest inverse that fits.
        let factor = 1.0 / bisect(-60.0, 60.0, |inverse| bytes(1.0 / inverse) <= target.bytes);
        let mut heads = requantize(prefix, |index, keys, values| {
            let tiers = shares[index].iter().map(|share| tier(*share, factor));
            for (x, is_key) in [(keys, true), (values, false)] {
                in_original_channels(x, dim, |x| {
                    for (x, tier) in x.chunks_exact_mut(dim).zip(tiers.clone()) {
                        let (key, value) = tier.unwrap_or((8, 8));
                        min_max(x, 1, if is_key { key } else { value });
                    }
                });
            }
        });
        for (head, shares) in heads.iter_mut().zip(&shares) {
            let mut kept = vec![true; prefix.num_tokens()];
            for (kept, share) in kept[free.clone()].iter_mut().zip(shares) {
                *kept = tier(*share, factor).is_some();
            }
            head.kept = Some(kept);
        }
        Compressed { heads, bytes: bytes(factor) }
    }
}

/// Bits of K and V; `None` prunes.
fn tier(share: f64, factor: f64) -> Option<(u32, u32)> {
    if share >= HIGH * factor {
        Some((8, 4))
    } else if share >= LOW * factor {
        Some((4, 2))
    } else {
        None
    }
}
