//! One vector for a whole prompt.

use crate::sched::Entry;

/// Which of a prompt's states make its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The last token's.
    Last,
}

/// Collects the states of one prompt, chunk by chunk.
pub struct Pooler {
    pooling: Pooling,
    /// Position of the next token whose state is missing.
    next: usize,
    sum: Vec<f32>,
}

impl Pooler {
    pub fn new(pooling: Pooling) -> Self {
        Self { pooling, next: 0, sum: vec![] }
    }

    /// Last rows of the entry whose states are wanted. A prompt that is computed anew was seen.
    pub fn num_rows(&self, entry: &Entry) -> usize {
        let end = entry.start + entry.num_tokens;
        match self.pooling {
            Pooling::Mean => end.saturating_sub(entry.start.max(self.next)),
            Pooling::Last => usize::from(entry.samples),
        }
    }

    /// Adds those states (rows, hidden); after the prompt's last, gives the vector.
    pub fn add(&mut self, entry: &Entry, states: &[Vec<f32>]) -> Option<Vec<f32>> {
        for state in states {
            self.sum.resize(state.len(), 0.0);
            self.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
        }
        self.next += states.len();
        entry.samples.then(|| self.sum.iter().map(|sum| sum / self.next.max(1) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::SeqId;

    /// The vector of five tokens whose states are (1, 10), (2, 20), ... after these chunks.
    fn pool(pooling: Pooling, chunks: &[(usize, usize)]) -> Vec<f32> {
        let mut pooler = Pooler::new(pooling);
        let mut vector = None;
        for &(start, num_tokens) in chunks {
            let end = start + num_tokens;
            let entry = Entry {
                id: SeqId(0),
                start,
                num_tokens,
                samples: end == 5,
                has_event: false,
                scoring: None,
                writes: vec![],
            };
            let rows = end - pooler.num_rows(&entry)..end;
            let states: Vec<_> =
                rows.map(|p| vec![(p + 1) as f32, 10.0 * (p + 1) as f32]).collect();
            vector = pooler.add(&entry, &states);
        }
        vector.unwrap()
    }

    #[test]
    fn the_vector_does_not_depend_on_the_chunks() {
        for chunks in [&[(0, 5)][..], &[(0, 2), (2, 3)], &[(0, 3), (0, 4), (4, 1)]] {
            assert_eq!(pool(Pooling::Mean, chunks), [3.0, 30.0], "{chunks:?}");
            assert_eq!(pool(Pooling::Last, chunks), [5.0, 50.0], "{chunks:?}");
        }
    }
}
