use keepwell_kernels::Signal;

use crate::compress::{Policy, Queries, TokenSignals};

/// Attention accumulated over all queries: H2O (arXiv 2306.14048), the importance of MiKV
/// (arXiv 2402.18096).
pub struct AttentionMass;

impl Policy for AttentionMass {
    fn name(&self) -> &'static str {
        "attention_mass"
    }

    fn signal(&self) -> Option<Signal> {
        Some(Signal::AttentionMass)
    }

    fn queries(&self) -> Queries {
        Queries { prefill: usize::MAX, decode: usize::MAX, half_life: f32::INFINITY }
    }

    fn score(&self, tokens: &TokenSignals, out: &mut [f32]) {
        out.copy_from_slice(tokens.signals);
    }
}
