use super::{Compressed, Method, Prefix, Target, code_bytes, in_original_channels, requantize};
use crate::eval::quantize::{min_max, min_max_groups};

/// Tokens of a group of K, channels of a group of V.
const GROUP: usize = 32;
/// Step and zero in f16.
const GROUP_BYTES: usize = 4;

/// K per channel in groups of 32 tokens, V per token in groups of 32 channels, asymmetric, the last
/// tokens exact (KIVI, arXiv 2402.02750).
pub struct Kivi {
    pub name: &'static str,
    pub bits: u32,
}

impl Method for Kivi {
    fn name(&self) -> &'static str {
        self.name
    }

    fn family(&self) -> &'static str {
        "kivi"
    }

    fn is_fixed(&self) -> bool {
        true
    }

    fn compress(&self, prefix: &Prefix, _: &Target) -> Compressed {
        let dim = prefix.head_dim();
        let heads = requantize(prefix, |_, keys, values| {
            in_original_channels(keys, dim, |keys| {
                for tokens in keys.chunks_mut(GROUP * dim) {
                    (0..dim).for_each(|channel| min_max(&mut tokens[channel..], dim, self.bits));
                }
            });
            in_original_channels(values, dim, |values| {
                values.chunks_exact_mut(dim).for_each(|v| min_max_groups(v, GROUP, self.bits));
            });
        });
        let num_tokens = prefix.free().len();
        let codes = 2.0 * num_tokens as f64 * code_bytes(dim, self.bits);
        let num_groups = num_tokens.div_ceil(GROUP) * dim + num_tokens * dim.div_ceil(GROUP);
        let head_bytes = codes + (num_groups * GROUP_BYTES) as f64;
        Compressed { bytes: prefix.protected_bytes() + heads.len() as f64 * head_bytes, heads }
    }
}
