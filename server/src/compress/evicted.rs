//! What evicted tokens were worth, for people who look at a cache.

use super::HeadTokens;
use crate::cache::Assignment;

/// Of each (layer, KV head) the positions that events evicted, in their order, and the scores that
/// they had then: see [`HeadTokens::relative`].
#[derive(Clone, Debug, Default)]
pub struct Evicted(Vec<Vec<(u32, f32)>>);

impl Evicted {
    /// Takes note of an event that decided this about these tokens.
    pub fn note(&mut self, tokens: &[HeadTokens], assignments: &[Vec<Assignment>]) {
        self.0.resize_with(tokens.len(), Vec::new);
        for ((noted, head), tiers) in self.0.iter_mut().zip(tokens).zip(assignments) {
            let scored = head.positions.iter().copied().zip(head.relative());
            let lost = scored.zip(tiers).filter(|(_, tier)| tier.is_none());
            noted.extend(lost.map(|(scored, _)| scored));
        }
    }

    /// Of one head: positions and scores, the last of a position being the one that counts.
    pub fn of_head(&self, head: usize) -> &[(u32, f32)] {
        self.0.get(head).map_or(&[], |noted| noted)
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use keepwell_kernels::Tier;

    use super::*;

    #[test]
    fn a_token_keeps_the_score_that_it_was_evicted_with() {
        let head = |positions: &[u32], signals: &[f32]| HeadTokens {
            positions: positions.to_vec(),
            signals: signals.to_vec(),
        };
        let mut evicted = Evicted::default();
        let tokens = [head(&[2, 0, 1], &[6.0, 1.0, 2.0]), head(&[0, 1], &[0.0, 0.0])];
        let kept = Some(Tier::K4V4);
        evicted.note(&tokens, &[vec![kept, None, kept], vec![kept, kept]]);
        evicted.note(
            &[head(&[2, 1], &[6.0, 2.0]), head(&[0, 1], &[0.0, 0.0])],
            &[vec![kept, None], vec![None, kept]],
        );
        assert_eq!(evicted.of_head(0), [(0, 1.0 / 3.0), (1, 0.5)]);
        assert_eq!(evicted.of_head(1), [(0, 0.0)]);
        evicted.clear();
        assert_eq!(evicted.of_head(0), []);
    }
}
