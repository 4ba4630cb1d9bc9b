//! One file per policy; the table is [`super::POLICIES`].

pub mod attention_mass;
pub mod attribution;
pub mod key_norm;
pub mod random;
pub mod recency;

/// Scores of rank-only policies fall by this many powers of two from the best token to the worst:
/// enough for a price to separate any two tokens of a long context.
const RANK_OCTAVES: f32 = 24.0;
