//! How likely a prompt's own tokens were, told as its chunks are computed.

use super::{TokenLogprobs, sampler::token_logprobs};
use crate::sched::Entry;

/// What is still to be told of one prompt.
pub struct PromptLogprobs {
    num_top: usize,
    prompt_len: usize,
    /// Position of the next token to tell of. The first token of a prompt is not predicted.
    next: usize,
}

impl PromptLogprobs {
    pub fn new(num_top: usize, prompt_len: usize) -> Self {
        Self { num_top, prompt_len, next: 1 }
    }

    /// Last rows of the entry whose logits are wanted: the row of a position predicts the next one.
    /// A prompt that is computed anew was told of before.
    pub fn num_rows(&self, entry: &Entry) -> usize {
        let end = entry.start + entry.num_tokens;
        match self.next < self.prompt_len {
            true => end.saturating_sub(entry.start.max(self.next - 1)),
            false => 0,
        }
    }

    /// Reads the entry's last rows of logits (rows, vocab); `tokens` are the sequence's.
    pub fn read(&mut self, entry: &Entry, tokens: &[u32], rows: &[Vec<f32>]) -> Vec<TokenLogprobs> {
        let first = entry.start + entry.num_tokens - rows.len();
        let predicted = (first + 1..self.prompt_len).zip(rows);
        let told: Vec<_> = predicted
            .filter(|(position, _)| *position >= self.next)
            .map(|(position, logits)| token_logprobs(logits, tokens[position], self.num_top))
            .collect();
        self.next += told.len();
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits that make the token after `id` certain, and the log-probabilities chunk by chunk.
    fn run(prompt: &[u32], chunks: &[(usize, usize)]) -> Vec<usize> {
        let mut told = PromptLogprobs::new(1, prompt.len());
        let row = |position: usize| {
            let mut logits = vec![0.0; 16];
            logits[(position + 1) % 16] = 100.0;
            logits
        };
        let mut lens = vec![];
        for &(start, num_tokens) in chunks {
            let entry = Entry {
                id: crate::sched::SeqId(0),
                start,
                num_tokens,
                samples: false,
                has_event: false,
                scoring: None,
                writes: vec![],
            };
            let num_rows = told.num_rows(&entry).max(1);
            let end = start + num_tokens;
            let rows: Vec<_> = (end - num_rows..end).map(row).collect();
            let logprobs = told.read(&entry, prompt, &rows);
            assert!(logprobs.iter().all(|l| l.chosen.abs() < 1e-3), "{logprobs:?}");
            lens.push(logprobs.len());
        }
        lens
    }

    #[test]
    fn each_token_but_the_first_is_told_of_once_whatever_the_chunks() {
        let prompt: Vec<u32> = (0..7).collect();
        assert_eq!(run(&prompt, &[(0, 7)]), [6]);
        assert_eq!(run(&prompt, &[(0, 3), (3, 4)]), [3, 3]);
        assert_eq!(run(&prompt, &[(0, 7), (7, 1), (8, 1)]), [6, 0, 0]);
        assert_eq!(run(&[0], &[(0, 1)]), [0]);
    }

    #[test]
    fn a_prompt_that_is_computed_anew_is_not_told_of_again() {
        let prompt: Vec<u32> = (0..7).collect();
        assert_eq!(run(&prompt, &[(0, 3), (0, 5), (5, 2), (0, 9)]), [3, 2, 1, 0]);
    }
}
