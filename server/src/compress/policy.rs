//! Which tokens matter: one trait, one table.

use keepwell_kernels::Signal;

use super::policies::{
    attention_mass::AttentionMass, attribution::Attribution, key_norm::KeyNorm, random::Random,
    recency::Recency,
};

/// Every policy; the first is the default. CLI, API and tests read this table.
pub static POLICIES: &[&dyn Policy] = &[&Attribution, &AttentionMass, &Recency, &KeyNorm, &Random];

/// A way to tell which cached tokens matter.
pub trait Policy: Sync {
    fn name(&self) -> &'static str;

    /// What the kernels accumulate for it; `None` reads no query.
    fn signal(&self) -> Option<Signal> {
        None
    }

    /// Which queries it listens to before an event.
    fn queries(&self) -> Queries {
        Queries { prefill: 32, decode: 2, half_life: 16.0 }
    }

    /// Writes one positive number per token of a head; higher is kept. Only ratios matter.
    fn score(&self, signals: &TokenSignals, out: &mut [f32]);
}

/// The last queries of a prefill chunk and of a run of decoded tokens that count, and after how
/// many queries an older signal counts half.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Queries {
    pub prefill: usize,
    pub decode: usize,
    pub half_life: f32,
}

impl Queries {
    /// Factor on the accumulated signal when `rows` more queries arrive.
    pub fn decay(&self, rows: usize) -> f32 {
        (-(rows as f32) / self.half_life).exp2()
    }
}

/// What a policy sees of one head's tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenSignals<'a> {
    /// Index of the (layer, KV head).
    pub head: usize,
    /// Logical positions seen so far.
    pub seq_len: usize,
    pub positions: &'a [u32],
    /// The accumulated signal, 0 where nothing was accumulated.
    pub signals: &'a [f32],
}

/// Index into [`POLICIES`]; only names in the table have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PolicyId(usize);

impl PolicyId {
    pub fn from_name(name: &str) -> Option<Self> {
        POLICIES.iter().position(|p| p.name() == name).map(Self)
    }

    pub fn policy(self) -> &'static dyn Policy {
        POLICIES[self.0]
    }
}

impl std::fmt::Display for PolicyId {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.policy().name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribution_is_the_default_and_every_name_leads_to_its_policy() {
        assert_eq!(PolicyId::default().policy().name(), "attribution");
        for policy in POLICIES {
            let id = PolicyId::from_name(policy.name()).unwrap();
            assert_eq!(id.to_string(), policy.name());
        }
        assert_eq!(PolicyId::from_name("nonsense"), None);
    }

    #[test]
    fn every_policy_gives_positive_finite_scores_whatever_the_signals() {
        let signals = [0.0, 1e-30, 1e30, 3.0];
        let positions = [0, 7, 500, 8191];
        let tokens =
            TokenSignals { head: 3, seq_len: 8192, positions: &positions, signals: &signals };
        for policy in POLICIES {
            let mut out = [f32::NAN; 4];
            policy.score(&tokens, &mut out);
            assert!(out.iter().all(|s| s.is_finite() && *s >= 0.0), "{}: {out:?}", policy.name());
        }
    }

    #[test]
    fn a_signal_counts_half_after_its_half_life() {
        let queries = Queries { prefill: 32, decode: 8, half_life: 32.0 };
        assert_eq!(queries.decay(32), 0.5);
        assert_eq!(queries.decay(0), 1.0);
    }
}
