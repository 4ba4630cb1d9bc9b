//! What a policy made of one context, token by token and head by head.

use anyhow::Result;
use keepwell_kernels::{TIERS, page::TierInfo};
use keepwell_models::TextTokenizer;
use keepwell_server::trial::Trial;

/// One context under one policy and budget.
pub struct Snapshot {
    pub policy: &'static str,
    pub budget: f64,
    pub tokens: Vec<Token>,
    /// `[layer][kv_head]`: mean bits of a value of K or V, evicted ones counting 0.
    pub bits: Vec<Vec<f64>>,
}

/// One prompt token over all heads.
#[derive(Clone, Debug, Default)]
pub struct Token {
    pub text: String,
    /// Heads that keep it in each tier, in the order of [`TIERS`].
    pub tiers: Vec<usize>,
    pub evicted: usize,
    /// Attribution over its head's mean, averaged over the heads that keep the token.
    pub score: f64,
    /// Mean bits of a value over all heads.
    pub bits: f64,
}

impl Snapshot {
    /// # Errors
    /// A failing kernel.
    pub fn take(
        trial: &Trial,
        tokenizer: &TextTokenizer,
        (policy, budget): (&'static str, f64),
        num_kv_heads: usize,
    ) -> Result<Self> {
        let text = |id: &u32| Token {
            text: tokenizer.token_text(*id),
            tiers: vec![0; TIERS.len()],
            ..Token::default()
        };
        let mut tokens: Vec<Token> = trial.tokens()[..trial.len()].iter().map(text).collect();
        let num_heads = trial.num_heads();
        let mut heads = Vec::with_capacity(num_heads);
        for head in 0..num_heads {
            let states = trial.states(head)?;
            let total: f64 = states.iter().map(|s| f64::from(s.attribution)).sum();
            let mean = (total / states.len().max(1) as f64).max(f64::MIN_POSITIVE);
            for state in &states {
                let token = &mut tokens[state.position as usize];
                token.tiers[state.tier as usize] += 1;
                token.score += f64::from(state.attribution) / mean;
            }
            let bits = states.iter().map(|s| tier_bits(s.tier.info())).sum::<f64>();
            heads.push(bits / tokens.len() as f64);
        }
        for token in &mut tokens {
            let kept: usize = token.tiers.iter().sum();
            token.evicted = num_heads - kept;
            token.score /= kept.max(1) as f64;
            let bits = TIERS.iter().zip(&token.tiers).map(|(t, n)| tier_bits(t) * *n as f64);
            token.bits = bits.sum::<f64>() / num_heads as f64;
        }
        let bits = heads.chunks(num_kv_heads).map(<[f64]>::to_vec).collect();
        Ok(Self { policy, budget, tokens, bits })
    }
}

/// Mean bits of a value in a tier, scales and metadata left out.
fn tier_bits(tier: &TierInfo) -> f64 {
    const DIM: usize = 64;
    let bytes = tier.key.vector_bytes(DIM) + tier.value.vector_bytes(DIM);
    8.0 * bytes as f64 / (2 * DIM) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_compressed_tier_has_fewer_bits_than_f16() {
        assert_eq!(tier_bits(&TIERS[0]), 16.0);
        assert!(TIERS[1..].iter().all(|tier| (0.5..16.0).contains(&tier_bits(tier))));
    }
}
