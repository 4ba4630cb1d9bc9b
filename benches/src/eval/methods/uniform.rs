use super::{Compressed, Method, Prefix, Target, code_bytes, requantize};
use crate::eval::quantize::normal;

/// Every token in the same bits: Hadamard rotation per head and Lloyd-Max levels of a normal variable
/// with one f16 scale each for K and V (QuaRot, arXiv 2404.00456; TurboQuant, arXiv 2504.19874).
pub struct Uniform {
    pub name: &'static str,
    pub key: u32,
    pub value: u32,
}

impl Method for Uniform {
    fn name(&self) -> &'static str {
        self.name
    }

    fn family(&self) -> &'static str {
        "uniform"
    }

    fn is_fixed(&self) -> bool {
        true
    }

    fn compress(&self, prefix: &Prefix, _: &Target) -> Compressed {
        const SCALE_BYTES: f64 = 2.0;
        let dim = prefix.head_dim();
        let heads = requantize(prefix, |_, keys, values| {
            keys.chunks_exact_mut(dim).for_each(|key| normal(key, self.key));
            values.chunks_exact_mut(dim).for_each(|value| normal(value, self.value));
        });
        let token = code_bytes(dim, self.key) + code_bytes(dim, self.value) + 2.0 * SCALE_BYTES;
        let num_tokens = (heads.len() * prefix.free().len()) as f64;
        Compressed { heads, bytes: prefix.protected_bytes() + num_tokens * token }
    }
}
