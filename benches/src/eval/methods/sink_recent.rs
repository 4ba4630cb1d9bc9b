use super::{Compressed, Method, Prefix, Target, evict, exact_tokens_per_head};

/// The first tokens and the last ones (StreamingLLM, arXiv 2309.17453).
pub struct SinkRecent;

impl Method for SinkRecent {
    fn name(&self) -> &'static str {
        "sink_recent"
    }

    fn compress(&self, prefix: &Prefix, target: &Target) -> Compressed {
        let count = exact_tokens_per_head(prefix, target);
        evict(prefix, count, |_, head| (0..head.len()).map(|token| token as f32).collect())
    }
}
