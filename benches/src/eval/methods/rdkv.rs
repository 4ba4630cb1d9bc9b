use super::{
    Compressed, Method, Needs, POSITION_BYTES, Prefix, Target, bisect, code_bytes, requantize,
};
use crate::eval::quantize::normal;

/// Bits a token may get, and the relative squared error they leave.
const OPTIONS: [(u32, f64); 5] = [(16, 0.0), (8, 5e-5), (4, 0.0095), (2, 0.1175), (0, 1.0)];

/// Rate-distortion allocation of 16, 8, 4, 2 or 0 bits to each token (RDKV, arXiv 2605.08317): one
/// price per byte over all layers and heads; the distortion of a token is its attention-weighted
/// squared residual over the last queries times the relative error of the bits, and adds up over
/// tokens, evicted ones included. The quantizers are those of the uniform formats, better than the
/// paper's; K and V share a token's bits, where the paper has channels of K.
pub struct RdKv;

impl Method for RdKv {
    fn name(&self) -> &'static str {
        "rdkv"
    }

    fn needs(&self) -> Needs {
        Needs { deletion: true, ..Needs::default() }
    }

    fn compress(&self, prefix: &Prefix, target: &Target) -> Compressed {
        let (dim, free) = (prefix.head_dim(), prefix.free());
        let sizes = OPTIONS.map(|(bits, _)| option_bytes(dim, bits));
        let bytes = |price: f64| {
            let head = |head: &[f32]| {
                head.iter().map(|w| sizes[choose(f64::from(*w), price, &sizes)]).sum::<f64>()
            };
            let total = prefix.map(|_, h| head(&h.deletion[free.clone()]));
            prefix.protected_bytes() + total.iter().sum::<f64>()
        };
        // A lower price keeps more: look for the largest inverse that fits.
        let price = 1.0 / bisect(-100.0, 200.0, |inverse| bytes(1.0 / inverse) <= target.bytes);
        let bits = prefix.map(|_, head| {
            let choice = |w: &f32| OPTIONS[choose(f64::from(*w), price, &sizes)].0;
            head.deletion[free.clone()].iter().map(choice).collect::<Vec<_>>()
        });
        let mut heads = requantize(prefix, |index, keys, values| {
            for x in [keys, values] {
                let vectors = x.chunks_exact_mut(dim).zip(&bits[index]);
                vectors.filter(|(_, bits)| **bits > 0).for_each(|(x, bits)| normal(x, *bits));
            }
        });
        for (head, bits) in heads.iter_mut().zip(&bits) {
            let mut kept = vec![true; prefix.num_tokens()];
            kept[free.clone()].iter_mut().zip(bits).for_each(|(kept, bits)| *kept = *bits > 0);
            head.kept = Some(kept);
        }
        Compressed { heads, bytes: bytes(price) }
    }
}

fn option_bytes(dim: usize, bits: u32) -> f64 {
    let scale = if bits < 16 { 2.0 } else { 0.0 };
    if bits == 0 { 0.0 } else { 2.0 * (code_bytes(dim, bits) + scale) + POSITION_BYTES }
}

/// Index of the option with the least `weight * error + price * bytes`.
fn choose(weight: f64, price: f64, sizes: &[f64; OPTIONS.len()]) -> usize {
    let cost = |i: &usize| weight * OPTIONS[*i].1 + price * sizes[*i];
    let cheaper = |a: usize, b: usize| if cost(&b) < cost(&a) { b } else { a };
    (0..OPTIONS.len()).reduce(cheaper).unwrap_or(0)
}
