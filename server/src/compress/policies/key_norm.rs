use keepwell_kernels::Signal;

use crate::compress::{Policy, Queries, TokenSignals};

/// Small keys matter (Devoto et al., arXiv 2406.11430).
pub struct KeyNorm;

impl Policy for KeyNorm {
    fn name(&self) -> &'static str {
        "key_norm"
    }

    fn signal(&self) -> Option<Signal> {
        Some(Signal::KeyNorm)
    }

    fn queries(&self) -> Queries {
        // The norm of a key does not change: the last reading replaces the one before.
        Queries { prefill: 1, decode: 1, half_life: 0.0 }
    }

    fn score(&self, tokens: &TokenSignals, out: &mut [f32]) {
        // The eighth power spreads norms, which differ by small factors, over the price's range.
        for (score, inverse_norm) in out.iter_mut().zip(tokens.signals) {
            *score = inverse_norm.min(1e4).powi(8);
        }
    }
}
