use super::RANK_OCTAVES;
use crate::compress::{Policy, TokenSignals};

/// The newer the better; with the protected first tokens this is sink + recent window
/// (StreamingLLM, arXiv 2309.17453).
pub struct Recency;

impl Policy for Recency {
    fn name(&self) -> &'static str {
        "recency"
    }

    fn score(&self, tokens: &TokenSignals, out: &mut [f32]) {
        let scale = RANK_OCTAVES / tokens.seq_len.max(1) as f32;
        for (score, &position) in out.iter_mut().zip(tokens.positions) {
            *score = (position as f32 * scale).exp2();
        }
    }
}
