//! Quantize and dequantize one vector: what simulated formats do to K and V.

use half::f16;

/// Lloyd-Max levels of a standard normal variable (Max 1960, table 1), the positive half.
const NORMAL2: [f32; 2] = [0.4528, 1.510];
const NORMAL3: [f32; 4] = [0.2451, 0.7560, 1.344, 2.152];
const NORMAL4: [f32; 8] = [0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326];

fn round_f16(x: f32) -> f32 {
    f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32()
}

/// For rotated vectors: Lloyd-Max levels of a normal variable at 2, 3 and 4 bits, integers at 8,
/// each times one f16 scale; 16 bits leave the vector as it is.
///
/// # Panics
/// On any other number of bits.
pub fn normal(x: &mut [f32], bits: u32) {
    match bits {
        2 => lloyd_max(x, &NORMAL2),
        3 => lloyd_max(x, &NORMAL3),
        4 => lloyd_max(x, &NORMAL4),
        8 => symmetric(x, 127.0),
        16 => {}
        _ => panic!("no format of {bits} bits"),
    }
}

/// `positive`: the positive half of symmetric levels, rising. The scale fits the chosen levels by
/// least squares.
fn lloyd_max(x: &mut [f32], positive: &[f32]) {
    let power = x.iter().map(|v| v * v).sum::<f32>() / x.len().max(1) as f32;
    if power <= 0.0 {
        return x.fill(0.0);
    }
    let inverse = 1.0 / power.sqrt();
    let (mut dot, mut norm) = (0f32, 0f32);
    for v in x.iter_mut() {
        let level = nearest(v.abs() * inverse, positive).copysign(*v);
        dot += *v * level;
        norm += level * level;
        *v = level;
    }
    let scale = round_f16(dot / norm);
    x.iter_mut().for_each(|v| *v *= scale);
}

fn nearest(v: f32, levels: &[f32]) -> f32 {
    let middle = |pair: &[f32]| 0.5 * (pair[0] + pair[1]);
    levels.windows(2).fold(levels[0], |level, pair| if v > middle(pair) { pair[1] } else { level })
}

fn symmetric(x: &mut [f32], steps: f32) {
    let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = round_f16(largest / steps);
    if scale > 0.0 {
        x.iter_mut().for_each(|v| *v = (*v / scale).round().clamp(-steps, steps) * scale);
    }
}

/// Asymmetric rounding of `x[start]`, `x[start + stride]`, ... to the nearest of `2^bits` steps between
/// the least and the largest of them, with step and zero in f16: a group along channels (stride 1)
/// or along tokens (stride D).
pub fn min_max(x: &mut [f32], stride: usize, bits: u32) {
    let range = x
        .iter()
        .step_by(stride)
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
    let steps = ((1u32 << bits) - 1) as f32;
    let zero = round_f16(range.0);
    let step = round_f16((range.1 - range.0) / steps);
    for v in x.iter_mut().step_by(stride) {
        *v = if step > 0.0 {
            ((*v - zero) / step).round().clamp(0.0, steps) * step + zero
        } else {
            zero
        };
    }
}

/// [`min_max`] of each run of `group` channels.
pub fn min_max_groups(x: &mut [f32], group: usize, bits: u32) {
    x.chunks_mut(group).for_each(|run| min_max(run, 1, bits));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Error over power of a normal source, in vectors of 64.
    fn error(quantize: impl Fn(&mut [f32])) -> f64 {
        let mut rng = StdRng::seed_from_u64(1);
        let (mut error, mut power) = (0f64, 0f64);
        for _ in 0..400 {
            let x: Vec<f32> =
                (0..64).map(|_| (0..12).map(|_| rng.random_range(-0.5f32..0.5)).sum()).collect();
            let mut y = x.clone();
            quantize(&mut y);
            error += x.iter().zip(&y).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            power += x.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
        }
        error / power
    }

    #[test]
    fn lloyd_max_leaves_the_errors_of_the_literature() {
        // Max 1960: .1175, .0345, .0095; the fitted scale takes off a little.
        for (bits, expected) in [(2, 0.1175), (3, 0.0345), (4, 0.0095)] {
            let error = error(|x| normal(x, bits));
            assert!((0.85 * expected..1.1 * expected).contains(&error), "{bits}: {error}");
        }
        assert!(error(|x| normal(x, 8)) < 8e-5);
        assert_eq!(error(|x| normal(x, 16)), 0.0);
    }

    #[test]
    fn two_bits_between_least_and_largest_are_worse_than_lloyd_max_on_a_normal_source() {
        let (uniform, fitted) = (error(|x| min_max(x, 1, 2)), error(|x| normal(x, 2)));
        assert!(uniform > 1.3 * fitted && uniform < 3.0 * fitted, "{uniform} {fitted}");
        assert!(error(|x| min_max(x, 1, 8)) < 5e-5);
    }

    #[test]
    fn a_group_along_tokens_touches_one_channel_only() {
        let mut x: Vec<f32> = (0..40).map(|i| i as f32 * 0.37).collect();
        let before = x.clone();
        min_max(&mut x[1..], 4, 2);
        let changed = x.iter().zip(&before).map(|(a, b)| a != b);
        assert!(changed.enumerate().all(|(i, changed)| !changed || i % 4 == 1));
    }

    #[test]
    fn constants_and_zeros_survive() {
        for bits in [2, 3, 4, 8] {
            let mut x = [0.0; 16];
            normal(&mut x, bits);
            assert_eq!(x, [0.0; 16]);
        }
        let mut x = [2.5; 16];
        min_max(&mut x, 1, 2);
        assert_eq!(x, [2.5; 16]);
    }
}
