use super::{Compressed, Method, Needs, Prefix, Target, evict, exact_tokens_per_head};

/// Half of the budget for the tokens with most attention accumulated over all queries, half for the
/// last ones (H2O, arXiv 2306.14048).
pub struct H2o;

impl Method for H2o {
    fn name(&self) -> &'static str {
        "h2o"
    }

    fn needs(&self) -> Needs {
        Needs { mass: true, ..Needs::default() }
    }

    fn compress(&self, prefix: &Prefix, target: &Target) -> Compressed {
        let count = exact_tokens_per_head(prefix, target);
        let recent = prefix.free().end - count / 2;
        evict(prefix, count, |_, head| {
            let mut scores = head.mass.clone();
            scores[recent..].fill(f32::INFINITY);
            scores
        })
    }
}
