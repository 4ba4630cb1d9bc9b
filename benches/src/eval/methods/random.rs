use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Compressed, Method, Prefix, Target, evict, exact_tokens_per_head};

/// Tokens drawn at random, anew for each head: what any choice must beat.
pub struct Random;

impl Method for Random {
    fn name(&self) -> &'static str {
        "random_evict"
    }

    fn compress(&self, prefix: &Prefix, target: &Target) -> Compressed {
        evict(prefix, exact_tokens_per_head(prefix, target), |index, head| {
            let mut rng = StdRng::seed_from_u64(target.seed ^ (index as u64) << 32);
            (0..head.len()).map(|_| rng.random_range(0f32..1.0)).collect()
        })
    }
}
